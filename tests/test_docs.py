"""The commands that the pages on TPUs, GPUs and images show are ones that there are."""

import contextlib
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from fmjax.cli import commands
from fmjax.cli import released as generating
from fmjax.cli import train as training
from fmjax.jobs.train.prepare import prepare
from fmjax.runs.folder import RunFolder
from fmjax.runs.load_config import load_config

ROOT = Path(__file__).parents[1]
PAGES = ("docs/tpu.md", "docs/gpu.md", "docs/few_steps.md", "docs/text_to_image.md")
RELEASED = ("FLUX.1-dev", "FLUX.1-schnell", "stable-diffusion-3.5-large", "mine")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Indented by at least four, after an empty line or a heading.
INDENTED = re.compile(r"(?:\A|\n\n|(?<=\n)#[^\n]*\n)((?: {4,}\S[^\n]*\n)+)")


def fenced(page, language):
    return [text for name, text in FENCE.findall((ROOT / page).read_text()) if name == language]


def scripts(page):
    """What is meant for a shell: fenced as bash, or indented."""
    rest = FENCE.sub("", (ROOT / page).read_text())
    return fenced(page, "bash") + INDENTED.findall(rest)


def words(script):
    """The words of a script; of those in quotes that are a script themselves, its words."""
    script = re.sub(r"\$\([^()]*\)", "0", script)
    lexer = shlex.shlex(script.replace("\\\n", " "), posix=True, punctuation_chars=";&|<>\n")
    lexer.whitespace, lexer.whitespace_split = " \t", True
    for word in lexer:
        if "\n" in word.strip("\n") or "fmjax " in word:
            yield from words(word)
        else:
            yield re.sub(r"\$\{?\w+\}?", "0", word)


def fmjax_commands(script):
    """The arguments of each `fmjax COMMAND ...` in a script."""
    found = None
    for before, word in zip(["", *(all_words := list(words(script)))], all_words, strict=False):
        if Path(before).name == "fmjax" and word in commands.COMMANDS:
            found = [word]
        elif found and re.fullmatch(r"[;&|<>\n]+", word):
            yield found
            found = None
        elif found:
            found.append(word)
    if found:
        yield found


def container_arguments(node):
    """The arguments of every container in a manifest."""
    if isinstance(node, dict):
        if "image" in node:
            yield [str(word) for word in node.get("args", ())]
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from container_arguments(each)


def manifests(page):
    return [each for text in fenced(page, "yaml") for each in yaml.safe_load_all(text)]


def all_commands(page):
    found = [each for script in scripts(page) for each in fmjax_commands(script)]
    return found + [each for text in manifests(page) for each in container_arguments(text)]


class Read(Exception):
    """The arguments were read; the work does not begin."""


@pytest.fixture
def only_read(monkeypatch):
    @contextlib.contextmanager
    def stop(*_):
        raise Read
        yield

    monkeypatch.setattr(commands, "working", stop)
    monkeypatch.setattr(training, "working", stop)
    monkeypatch.setattr(generating, "working", stop)
    monkeypatch.setattr(commands, "console", stop)
    monkeypatch.chdir(ROOT)

    def read(arguments):
        with pytest.raises(Read):
            commands.COMMANDS[arguments[0]](arguments[1:])

    return read


COMMANDS = {" ".join(each): each for page in PAGES for each in all_commands(page)}


def test_the_commands_of_the_pages_are_found():
    assert sum(each[0] == "train" for each in COMMANDS.values()) >= 7
    assert sum(each[0] == "plan" for each in COMMANDS.values()) >= 4
    assert len(manifests("docs/tpu.md")) == 1
    assert list(fmjax_commands("ssh --command='cd x && ~/e/bin/fmjax plan c.py > log &'")) == [
        ["plan", "c.py"]
    ]


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_the_command_line_knows_every_option_that_is_shown(arguments, only_read, tmp_path):
    if Path(arguments[1]).name in RELEASED:  # A model of that kind stands for it.
        arguments = [arguments[0], str(ROOT / "tests/golden/sd3-pipeline-tiny"), *arguments[2:]]
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("a red fox")
        arguments = [str(prompts) if word == prompts.name else word for word in arguments]
    elif arguments[0] not in ("train", "plan"):  # About a run, which must be there.
        config = load_config(ROOT / "configs" / "digits.py")
        prepare(RunFolder(tmp_path / "run"), config, (8, 8, 1), 10)
        arguments = [arguments[0], str(tmp_path / "run"), *arguments[2:]]
    only_read(arguments)


@pytest.mark.parametrize("page", PAGES)
def test_options_named_in_the_text_are_options_too(page, only_read, tmp_path):
    config = load_config(ROOT / "configs" / "digits.py")
    prepare(RunFolder(tmp_path / "run"), config, (8, 8, 1), 10)
    text = re.sub(r"\s+", " ", FENCE.sub("", (ROOT / page).read_text()))
    named = re.findall(r"`(--(?:mesh|training|network|evaluation|reflow|loss)\.[^`]*)`", text)
    assert len(named) >= 2
    for options in named:
        if page == "docs/few_steps.md":
            only_read(["reflow", str(tmp_path / "run"), *options.split()])
        elif options.count(" ") > 0:
            only_read(["train", "configs/imagenet256_sit.py", *options.split()])


@pytest.mark.parametrize("page", PAGES)
def test_the_shell_can_read_every_script(page):
    assert len(scripts(page)) >= 2
    for script in scripts(page):
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert not done.returncode, (script, done.stderr)
        assert not done.stderr, (script, done.stderr)


@pytest.mark.parametrize("page", [*PAGES, "docs/performance.md", "README.md"])
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings], link


def test_the_extras_and_files_that_are_named_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    texts = [(ROOT / name).read_text() for name in (*PAGES, "Dockerfile")]
    named = re.findall(r"EXTRA=(\w+)|(?:\.|fmjax)\[(\w+)\]", "".join(texts))
    assert len(named) >= 6
    assert {left or right for left, right in named} <= set(extras)
    for name in (ROOT / ".dockerignore").read_text().splitlines():
        if name.startswith("!"):
            assert (ROOT / name[1:]).exists()


def test_the_image_starts_the_command_line_as_its_first_process():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    (entry,) = (line for line in lines if line.startswith("ENTRYPOINT"))
    assert json.loads(entry.removeprefix("ENTRYPOINT")) == ["fmjax"]
    assert any(re.match(r"USER [1-9]", line) for line in lines)
