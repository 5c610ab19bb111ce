import os
import stat
from pathlib import Path

import numpy as np
import pytest

from fmjax._files import cache_dir, read_npz, write_atomically
from fmjax._progress import Progress, Silent


def test_a_file_appears_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "figure.png"
    with write_atomically(path) as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == path.parent
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")

    def write_half():
        with write_atomically(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path):
    umask = os.umask(0o027)
    try:
        with write_atomically(tmp_path / "report.html") as temporary:
            temporary.write_text("")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "report.html").stat().st_mode) == 0o640


def test_any_wrong_byte_of_an_npz_is_harmless_or_named(tmp_path):
    """Zip archives have bytes that mean nothing; no other byte may change a number unnoticed."""
    path, numbers = tmp_path / "a.npz", np.arange(40.0)
    np.savez_compressed(path, x=numbers)
    whole, refusals = path.read_bytes(), []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            arrays = read_npz(path)
        except ValueError as error:
            refusals.append(str(error))
        else:
            for found in arrays.values():  # An archive's name for it may have changed.
                np.testing.assert_array_equal(found, numbers)
    assert len(refusals) > len(whole) / 2
    assert all(line.startswith(f"file {path} must be a valid .npz file, got ") for line in refusals)


@pytest.mark.parametrize("content", [None, b"", b"something else"])
def test_what_is_no_npz_is_named(tmp_path, content):
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
def test_the_cache_is_where_the_environment_says(monkeypatch, environment, expected):
    for name in ("FMJAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)


def test_silence_is_a_way_to_report_progress(capsys):
    progress = Silent()
    assert isinstance(progress, Progress)
    progress.say("a line")
    with progress.task("training", 10) as advance:
        advance()
        advance(3, note="loss 0.1")
    assert capsys.readouterr() == ("", "")
