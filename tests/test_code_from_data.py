"""Nothing that a file holds is run, except the config that the user names."""

import ast
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fmjax.cli.work import _compilation_cache
from fmjax.data.sources.image_files import ImageFiles, open_image
from fmjax.jobs.invert.image_examples import read_image

PACKAGE = Path(__file__).parents[1] / "fmjax"
RUNS_CODE = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "subprocess"),
    *("yaml", "runpy", "serialize_executable", "torch"),
}
RUN_BY_CALL = {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_imports_or_calls_what_runs_code_from_a_file(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {part for alias in node.names for part in alias.name.split(".")}
            names |= set((getattr(node, "module", None) or "").split("."))
            assert not names & RUNS_CODE, (path, names & RUNS_CODE)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in RUN_BY_CALL, (path, node.lineno)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            assert called != "os.system", (path, node.lineno)
            if called == "np.load":
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("allow_pickle") == "False", (path, node.lineno)
            if called.endswith(
                "exec_module"
            ):  # A config, which the user names on the command line.
                assert path.name == "load_config.py"


def test_an_image_that_is_postscript_runs_no_program(tmp_path):
    picture, ran = tmp_path / "photo.png", tmp_path / "ran"
    picture.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    read = (
        "import sys; from pathlib import Path; from PIL import Image\n"
        "from fmjax.data.sources.image_files import ImageFiles\n"
        "ImageFiles([Path(sys.argv[1])], 8)[:]"
    )
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", read, str(picture)],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path},
    )
    assert "photo.png must be a valid image file" in done.stderr
    assert not ran.exists()
    with pytest.raises(ValueError, match="must be a valid image file, got cannot identify"):
        ImageFiles([picture], 8)[:]
    with pytest.raises(ValueError, match="must be a valid image file, got cannot identify"):
        read_image(picture, (8, 8, 3))
    with pytest.raises(OSError, match="cannot identify"):
        open_image(picture)


def test_compiled_programs_are_taken_only_from_a_folder_that_no_one_else_can_write(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path))
    folder = _compilation_cache()
    assert folder == tmp_path / "compilation"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    assert _compilation_cache() is None
    folder.chmod(0o755)
    assert _compilation_cache() == folder
