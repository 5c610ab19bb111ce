"""Tests that fmjax runs no code from files, except the config that the user names."""

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
FORBIDDEN_MODULES = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "subprocess"),
    *("yaml", "runpy", "serialize_executable", "torch"),
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.stem)
def test_modules_avoid_functions_that_run_code_from_files(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {part for alias in node.names for part in alias.name.split(".")}
            names |= set((getattr(node, "module", None) or "").split("."))
            assert not names & FORBIDDEN_MODULES, (file, names & FORBIDDEN_MODULES)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, (file, node.lineno)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            function = ast.unparse(node.func)
            assert function != "os.system", (file, node.lineno)
            if function == "np.load":
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("allow_pickle") == "False", (file, node.lineno)
            # The user names the config on the command line.
            if function.endswith("exec_module"):
                assert file.name == "load_config.py"


def test_postscript_images_are_rejected_without_running_ghostscript(tmp_path):
    image, executed = tmp_path / "photo.png", tmp_path / "executed"
    image.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {executed}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    script = (
        "import sys; from pathlib import Path; from PIL import Image\n"
        "from fmjax.data.sources.image_files import ImageFiles\n"
        "ImageFiles([Path(sys.argv[1])], 8)[:]"
    )
    search_path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        [sys.executable, "-c", script, str(image)],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": search_path},
    )
    assert "photo.png must be a valid image file" in result.stderr
    assert not executed.exists()
    with pytest.raises(ValueError, match="must be a valid image file, got cannot identify"):
        ImageFiles([image], 8)[:]
    with pytest.raises(ValueError, match="must be a valid image file, got cannot identify"):
        read_image(image, (8, 8, 3))
    with pytest.raises(OSError, match="cannot identify"):
        open_image(image)


def test_compilation_cache_is_disabled_if_others_can_write_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path))
    folder = _compilation_cache()
    assert folder == tmp_path / "compilation"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    assert _compilation_cache() is None
    folder.chmod(0o755)
    assert _compilation_cache() == folder
