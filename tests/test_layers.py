"""The layers of the library, and which package may import each heavy dependency."""

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

# Lowest first. A module imports from lower layers and from its own package only.
LAYERS = (
    ("_checks", "_jaxprs", "_json", "_progress", "_stopping", "_trees", "_version"),
    ("_arrays", "_locks", "_memory"),
    ("_files", "_inputs"),
    ("sharding",),
    ("paths",),
    ("data", "losses", "networks", "solvers"),
    ("metrics", "planning", "pretrained"),
    ("report", "training"),
    ("config",),
    ("runs",),
    ("runs.sampling",),
    ("jobs.evaluate", "jobs.planning", "jobs.sample"),
    ("jobs.compare",),
    ("jobs.invert", "jobs.released", "jobs.train"),
    ("jobs.report", "jobs.study"),
    ("cli",),
)
LAYER_OF = {package: index for index, layer in enumerate(LAYERS) for package in layer}

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


def package_of(name: str) -> str:
    """The entry of `LAYERS` that a module belongs to, such as `jobs.train`."""
    parts = name.removeprefix("fmjax.").split(".")
    longest = ".".join(parts[:2])
    return longest if longest in LAYER_OF else parts[0]


def test_every_module_has_a_layer(module):
    name = ".".join(module.relative_to(PACKAGE).with_suffix("").parts)
    assert package_of(name) in LAYER_OF or name in ("__init__", "jobs.__init__")


def test_imports_go_to_lower_layers_only(module):
    here = package_of(".".join(module.relative_to(PACKAGE).with_suffix("").parts))
    for name in imports(module):
        there = package_of(name)
        if not name.startswith("fmjax.") or here == there or name == "fmjax.__version__":
            continue
        assert here == "__init__" or LAYER_OF[there] < LAYER_OF[here], f"{here} imports {name}"


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


def test_each_public_name_is_imported_on_first_use():
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    imported = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in imported if node.module for alias in node.names]
    packages = [alias.name for node in imported if not node.module for alias in node.names]
    assert len(names) == len(set(names)) <= 60
    assert {*names, *packages} == set(fmjax.__all__)
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(packages) == folders - {"cli"}
    for name in names:
        getattr(fmjax, name)
    with pytest.raises(AttributeError, match="No fmjax attribute denoiser"):
        _ = fmjax.denoiser


def test_packages_are_attributes_without_an_import_of_their_own():
    program = "import fmjax; fmjax.metrics.frechet_distance; fmjax.config.Config; fmjax.runs"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


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
