"""Names of files and folders that are not UTF-8: refused where a writer needs it, and printed."""

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


def refused(capsys, *arguments):
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    output = capsys.readouterr()
    assert end.value.code == 2
    assert output.err.count("\n") == 1
    return output.err.removeprefix("fmjax: error: ").rstrip("\n")


@pytest.mark.parametrize(
    "command", ["sample", "compare", "evaluate", "likelihood", "invert", "reflow", "export"]
)
def test_run_folders_of_another_encoding_are_refused_by_every_command(tmp_path, capsys, command):
    (tmp_path / NAME).mkdir()
    wanted = f"run folder must be text in UTF-8, got {ascii(str(tmp_path / NAME))}"
    assert refused(capsys, command, tmp_path / NAME) == wanted


def test_training_into_such_a_folder_or_from_one_is_refused_before_it_starts(
    tmp_path, capsys, monkeypatch
):
    config = ROOT / "configs" / "emoji.py"
    command = ("train", config, "--run", tmp_path / NAME)
    wanted = f"run folder must be text in UTF-8, got {ascii(str(tmp_path / NAME))}"
    assert refused(capsys, *command) == wanted
    (tmp_path / NAME).mkdir()
    monkeypatch.chdir(tmp_path / NAME)
    wanted = f"run folder must be text in UTF-8, got {ascii(str(tmp_path / NAME / 'run'))}"
    assert refused(capsys, "train", config, "--run", "run") == wanted
    for option in ("--data.folder", "--sampling.prompts"):
        found = refused(capsys, "train", config, "--run", tmp_path / "run", option, NAME)
        assert found == f"{option[2:]} must be text in UTF-8, got 'caf\\udce9'"
    assert list(tmp_path.iterdir()) == [tmp_path / NAME]
    assert RunFolder(tmp_path / "café").root == tmp_path / "café"


def test_models_and_outputs_of_such_names_are_refused(tmp_path):
    (tmp_path / NAME).symlink_to(MODEL)
    with pytest.raises(
        ValueError, match=r"model folder must be text in UTF-8, got '.*/caf\\udce9'"
    ):
        open_model(tmp_path / NAME)
    with pytest.raises(ValueError, match=r"output must be text in UTF-8, got '.*/caf\\udce9'"):
        encode(open_model(MODEL), tmp_path, tmp_path / NAME)


def test_every_name_can_be_printed(monkeypatch):
    for encoding, shown in (("utf-8", "café caf\\udce9"), ("ascii", "caf\\xe9 caf\\udce9")):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
        print_any_name()
        print("café", NAME, flush=True)  # noqa: T201
        assert written.getvalue().decode() == f"{shown}\n"
        monkeypatch.undo()
