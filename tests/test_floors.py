"""The library's floors: imports go down only, and each great dependency has one home."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import fmjax

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fmjax"
MAX_FUNCTION_LINES = 60  # Without its docstring; a file is as long as its subject.

# A package's or module's floor; what it imports of fmjax stands lower, or in its own package.
FLOORS = {
    **dict.fromkeys(("_checks", "_stopping"), -1),
    "_locks": -0.8,
    "_files": -0.6,
    "_json": -0.3,
    **dict.fromkeys(
        (
            "_arrays",
            "_jaxprs",
            "_layout",
            "_memory",
            "_progress",
            "_trees",
        ),
        0,
    ),
    "_inputs": 0.5,
    **dict.fromkeys(("schedules", "velocity", "times", "couplings", "manifolds", "hardware"), 1),
    **dict.fromkeys(("paths", "rates", "guidance", "networks"), 2),
    **dict.fromkeys(("losses", "solvers"), 3),
    **dict.fromkeys(("training", "data", "metrics"), 4),
    "pretrained": 4.5,  # Lays weights over a mesh.
    "config": 5,
    "report": 6,
    "studies": 6.5,  # Writes reports.
    "cli": 7,
}

# Who may import what: packages or modules of fmjax.
HOMES = {
    "flax": {"networks"},
    "diffrax": {"solvers"},
    "equinox": {"solvers"},
    "lineax": {"solvers"},
    "orbax": {"training"},
    "grain": {"data"},
    "array_record": {"data"},
    "tokenizers": {"pretrained", "data"},
    "fontTools": {"data"},
    "tyro": {"cli"},
    "rich": {"cli"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "safetensors": {"pretrained"},
}

MODULES = sorted(PACKAGE.rglob("*.py"))


def home(path: Path) -> str:
    """The first name below fmjax: `training` for `fmjax/training/step.py`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """All names that a module imports, anywhere in it, in full: `fmjax.paths.affine.AffinePath`."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.fixture(params=MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def module(request):
    return request.param


def test_every_module_has_a_floor():
    assert {home(path) for path in MODULES} - set(FLOORS) == {"__init__"}


def test_imports_go_down_only(module):
    here = home(module)
    if here == "__init__":  # The public face shows what it likes.
        return
    for name in imports(module):
        top, *rest = name.split(".")
        if top != "fmjax" or rest in ([], ["__version__"]):
            continue
        there = rest[0]
        assert there == here or FLOORS[there] < FLOORS[here], f"{here} imports {name}"


def test_each_dependency_is_imported_at_home_only(module):
    for name in imports(module):
        allowed = HOMES.get(name.split(".")[0], {home(module)})
        assert home(module) in allowed, f"{name} belongs in {allowed}"


def test_only_the_command_line_prints(module):
    calls = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)]
    printing = [call.lineno for call in calls if getattr(call.func, "id", "") == "print"]
    assert home(module) == "cli" or not printing


def test_functions_are_short_enough_to_read(module):
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and node.body[1:] else node.body
            assert node.end_lineno - body[0].lineno < MAX_FUNCTION_LINES, node.name


def test_the_public_face_names_for_type_checkers_what_it_loads_when_asked():
    named = [name for name in imports(PACKAGE / "__init__.py") if name.startswith("fmjax.")]
    homes = fmjax._HOMES.items()
    loaded = [f"fmjax.{where}.{name}" for where, names in homes for name in names]
    assert sorted(named) == sorted(loaded)
    for name in dir(fmjax):
        getattr(fmjax, name)
    with pytest.raises(AttributeError, match="module 'fmjax' has no attribute 'denoiser'"):
        _ = fmjax.denoiser


def test_importing_fmjax_loads_nothing_heavy():
    heavy = sorted({*HOMES, "sklearn", "scipy.stats", "tensorboardX", "torch"})
    program = f"import sys, fmjax; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == "[]"


def test_benchmarks_import_what_there_is():
    """Nothing else runs all of them."""
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fmjax"):
                module = importlib.import_module(node.module)
                missing = [each.name for each in node.names if not hasattr(module, each.name)]
                assert not missing, f"{path.name}: {missing} of {node.module}"
