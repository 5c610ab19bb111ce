"""Tests of file and folder names that are not UTF-8."""

import io
import sys
from pathlib import Path

import pytest

from fmjax.cli import main
from fmjax.cli.console import print_any_name
from fmjax.jobs.released.encode import encode
from fmjax.pretrained.folder import open_model
from fmjax.runs.folder import RunFolder

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "tests" / "golden" / "sd3-pipeline-tiny"
NAME = "caf\udce9"  # The byte E9, "é" in Latin-1, as Python reads it from a file system.


def error_of(capsys, *arguments):
    """Run a command that fails and return its one-line error."""
    with pytest.raises(SystemExit) as exit_info:
        main(list(map(str, arguments)))
    output = capsys.readouterr()
    assert exit_info.value.code == 2
    assert output.err.count("\n") == 1
    return output.err.removeprefix("fmjax: error: ").rstrip("\n")


@pytest.mark.parametrize(
    "command", ["sample", "compare", "evaluate", "likelihood", "invert", "reflow", "export"]
)
def test_commands_reject_run_folders_that_are_not_utf8(tmp_path, capsys, command):
    (tmp_path / NAME).mkdir()
    expected = f"run folder must be text in UTF-8, got {ascii(str(tmp_path / NAME))}"
    assert error_of(capsys, command, tmp_path / NAME) == expected


def test_training_rejects_folders_that_are_not_utf8_before_it_starts(tmp_path, capsys, monkeypatch):
    config = ROOT / "configs" / "emoji.py"
    command = ("train", config, "--run", tmp_path / NAME)
    expected = f"run folder must be text in UTF-8, got {ascii(str(tmp_path / NAME))}"
    assert error_of(capsys, *command) == expected
    (tmp_path / NAME).mkdir()
    monkeypatch.chdir(tmp_path / NAME)
    expected = f"run folder must be text in UTF-8, got {ascii(str(tmp_path / NAME / 'run'))}"
    assert error_of(capsys, "train", config, "--run", "run") == expected
    for option in ("--data.folder", "--sampling.prompts"):
        error = error_of(capsys, "train", config, "--run", tmp_path / "run", option, NAME)
        assert error == f"{option[2:]} must be text in UTF-8, got 'caf\\udce9'"
    assert list(tmp_path.iterdir()) == [tmp_path / NAME]
    assert RunFolder(tmp_path / "café").root == tmp_path / "café"


def test_models_and_outputs_with_names_not_utf8_are_rejected(tmp_path):
    (tmp_path / NAME).symlink_to(MODEL)
    with pytest.raises(
        ValueError, match=r"model folder must be text in UTF-8, got '.*/caf\\udce9'"
    ):
        open_model(tmp_path / NAME)
    with pytest.raises(ValueError, match=r"output must be text in UTF-8, got '.*/caf\\udce9'"):
        encode(open_model(MODEL), tmp_path, tmp_path / NAME)


def test_file_names_of_any_encoding_can_be_printed(monkeypatch):
    for encoding, expected in (("utf-8", "café caf\\udce9"), ("ascii", "caf\\xe9 caf\\udce9")):
        output = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding))
        print_any_name()
        print("café", NAME, flush=True)  # noqa: T201
        assert output.getvalue().decode() == f"{expected}\n"
        monkeypatch.undo()
