"""Tests of the commands, options, links and file names in the documentation."""

import contextlib
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from fmjax._specs import class_spec
from fmjax.cli import commands, released as released_commands, train as train_commands
from fmjax.jobs.train.prepare import prepare
from fmjax.runs.folder import RunFolder
from fmjax.runs.load_config import load_config

ROOT = Path(__file__).parents[1]
PAGES = (
    "docs/tpu.md",
    "docs/gpu.md",
    "docs/few_steps.md",
    "docs/text_to_image.md",
    "docs/own_images.md",
    "docs/posterior.md",
)
RELEASED = ("FLUX.1-dev", "FLUX.1-schnell", "stable-diffusion-3.5-large", "mine")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Lines indented by at least four spaces after an empty line or a heading.
INDENTED = re.compile(r"(?:\A|\n\n|(?<=\n)#[^\n]*\n)((?: {4,}\S[^\n]*\n)+)")


def fenced(page, language):
    return [text for name, text in FENCE.findall((ROOT / page).read_text()) if name == language]


def scripts(page):
    """Return the shell scripts of a page: blocks fenced as bash, and indented blocks."""
    unfenced = FENCE.sub("", (ROOT / page).read_text())
    return fenced(page, "bash") + INDENTED.findall(unfenced)


def words(script):
    """Yield the words of a script, and the words of scripts in its quoted strings."""
    script = re.sub(r"\$\([^()]*\)", "0", script)
    lexer = shlex.shlex(script.replace("\\\n", " "), posix=True, punctuation_chars=";&|<>\n")
    lexer.whitespace, lexer.whitespace_split = " \t", True
    for word in lexer:
        if "\n" in word.strip("\n") or "fmjax " in word:
            yield from words(word)
        else:
            yield re.sub(r"\$\{?\w+\}?", "0", word)


def fmjax_commands(script):
    """Yield the arguments of each `fmjax COMMAND ...` in a script."""
    arguments = None
    script_words = list(words(script))
    for previous, word in zip(["", *script_words], script_words, strict=False):
        if Path(previous).name == "fmjax" and word in commands.COMMANDS:
            arguments = [word]
        elif arguments and re.fullmatch(r"[;&|<>\n]+", word):
            yield arguments
            arguments = None
        elif arguments:
            arguments.append(word)
    if arguments:
        yield arguments


def container_arguments(node):
    """Yield the arguments of every container in a Kubernetes manifest."""
    if isinstance(node, dict):
        if "image" in node:
            yield [str(word) for word in node.get("args", ())]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from container_arguments(child)


def manifests(page):
    return [document for text in fenced(page, "yaml") for document in yaml.safe_load_all(text)]


def all_commands(page):
    shell = [command for script in scripts(page) for command in fmjax_commands(script)]
    manifest = [command for text in manifests(page) for command in container_arguments(text)]
    return shell + manifest


class ArgumentsParsed(Exception):
    """Stops a command after it has parsed its arguments."""


@pytest.fixture
def parse_only(monkeypatch):
    """A function that runs a command until its arguments are parsed."""

    @contextlib.contextmanager
    def stop(*_):
        raise ArgumentsParsed
        yield

    monkeypatch.setattr(commands, "command_progress", stop)
    monkeypatch.setattr(train_commands, "command_progress", stop)
    monkeypatch.setattr(released_commands, "command_progress", stop)
    monkeypatch.setattr(commands, "console", stop)
    monkeypatch.chdir(ROOT)

    def parse(arguments):
        with pytest.raises(ArgumentsParsed):
            commands.COMMANDS[arguments[0]](arguments[1:])

    return parse


COMMANDS = {" ".join(command): command for page in PAGES for command in all_commands(page)}


def test_commands_of_the_pages_are_found():
    assert sum(command[0] == "train" for command in COMMANDS.values()) >= 7
    assert sum(command[0] == "plan" for command in COMMANDS.values()) >= 4
    assert len(manifests("docs/tpu.md")) == 1
    assert list(fmjax_commands("ssh --command='cd x && ~/e/bin/fmjax plan c.py > log &'")) == [
        ["plan", "c.py"]
    ]


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_documented_commands_are_accepted(arguments, parse_only, tmp_path):
    if Path(arguments[1]).name in RELEASED:  # A tiny model replaces the released one.
        arguments = [arguments[0], str(ROOT / "tests/golden/sd3-pipeline-tiny"), *arguments[2:]]
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("a red fox")
        arguments = [str(prompts) if word == prompts.name else word for word in arguments]
    elif arguments[0] not in ("train", "plan", "data"):  # The command needs a run folder.
        config = load_config(ROOT / "configs" / "digits.py")
        prepare(RunFolder(tmp_path / "run"), config, (8, 8, 1), class_spec(10))
        arguments = [arguments[0], str(tmp_path / "run"), *arguments[2:]]
    parse_only(arguments)


@pytest.mark.parametrize("page", PAGES)
def test_options_named_in_the_text_are_accepted(page, parse_only, tmp_path):
    config = load_config(ROOT / "configs" / "digits.py")
    prepare(RunFolder(tmp_path / "run"), config, (8, 8, 1), class_spec(10))
    text = re.sub(r"\s+", " ", FENCE.sub("", (ROOT / page).read_text()))
    named = re.findall(r"`(--(?:mesh|training|network|evaluation|reflow|loss)\.[^`]*)`", text)
    assert len(named) >= 2
    for options in named:
        if page == "docs/few_steps.md":
            parse_only(["reflow", str(tmp_path / "run"), *options.split()])
        elif options.count(" ") > 0:
            parse_only(["train", "configs/imagenet256_sit.py", *options.split()])


@pytest.mark.parametrize("page", PAGES)
def test_shell_scripts_have_valid_syntax(page):
    assert len(scripts(page)) >= 2
    for script in scripts(page):
        result = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert not result.returncode, (script, result.stderr)
        assert not result.stderr, (script, result.stderr)


@pytest.mark.parametrize("page", [*PAGES, "docs/performance.md", "README.md"])
def test_links_have_existing_targets(page):
    for link in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings], link


def test_named_extras_and_files_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    texts = [(ROOT / name).read_text() for name in (*PAGES, "Dockerfile")]
    named = re.findall(r"EXTRA=(\w+)|(?:\.|fmjax)\[(\w+)\]", "".join(texts))
    assert len(named) >= 6
    assert {build_argument or extra for build_argument, extra in named} <= set(extras)
    for name in (ROOT / ".dockerignore").read_text().splitlines():
        if name.startswith("!"):
            assert (ROOT / name[1:]).exists()


def test_docker_image_runs_fmjax_as_a_user_without_privileges():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    (entry,) = (line for line in lines if line.startswith("ENTRYPOINT"))
    assert json.loads(entry.removeprefix("ENTRYPOINT")) == ["fmjax"]
    assert any(re.match(r"USER [1-9]", line) for line in lines)
