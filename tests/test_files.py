"""Tests of atomic writes, .npz files and the cache folder."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from fmjax._files import cache_dir, read_npz, write_atomically
from fmjax._progress import Progress, Silent


def test_atomic_write_creates_only_the_complete_file(tmp_path):
    file = tmp_path / "new" / "figure.png"
    with write_atomically(file) as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == file.parent
        temporary.write_text("complete")
        assert not file.exists()
    assert file.read_text() == "complete"
    assert list(file.parent.iterdir()) == [file]


def test_failed_write_keeps_the_old_file(tmp_path):
    file = tmp_path / "metrics.json"
    file.write_text("old")

    def write_half():
        with write_atomically(file) as temporary:
            temporary.write_text("half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_half()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_written_files_have_the_permissions_of_the_umask(tmp_path):
    umask = os.umask(0o027)
    try:
        with write_atomically(tmp_path / "report.html") as temporary:
            temporary.write_text("")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "report.html").stat().st_mode) == 0o640


def test_wrong_bytes_of_an_npz_are_harmless_or_rejected(tmp_path):
    """Some bytes of zip archives have no effect; all others must cause an error."""
    file, numbers = tmp_path / "a.npz", np.arange(40.0)
    np.savez_compressed(file, x=numbers)
    content, errors = file.read_bytes(), []
    for i in range(len(content)):
        file.write_bytes(content[:i] + bytes([content[i] ^ 255]) + content[i + 1 :])
        try:
            arrays = read_npz(file)
        except ValueError as error:
            errors.append(str(error))
        else:
            for array in arrays.values():  # The name of the array may have changed.
                np.testing.assert_array_equal(array, numbers)
    assert len(errors) > len(content) / 2
    assert all(line.startswith(f"file {file} must be a valid .npz file, got ") for line in errors)


@pytest.mark.parametrize("content", [None, b"", b"something else"])
def test_files_that_are_no_npz_are_rejected(tmp_path, content):
    if content is not None:
        (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz must be a valid \.npz file, got no zip archive"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FMJAX_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/fmjax"),
        ({"HOME": "/c"}, "/c/.cache/fmjax"),
    ],
)
def test_cache_folder_follows_the_environment(monkeypatch, environment, expected):
    for name in ("FMJAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)


def test_silent_progress_prints_nothing(capsys):
    progress = Silent()
    assert isinstance(progress, Progress)
    progress.say("a line")
    with progress.task("training", 10) as advance:
        advance()
        advance(3, note="loss 0.1")
    assert capsys.readouterr() == ("", "")
