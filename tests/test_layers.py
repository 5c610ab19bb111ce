"""Tests of the import structure: layers of packages and the users of heavy dependencies."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import fmjax

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fmjax"
MAX_FUNCTION_LINES = 60  # Without the docstring.

# Layers from lowest to highest. A module imports only from lower layers and the same package.
LAYERS = (
    ("_checks", "_jaxprs", "_json", "_progress", "_signals", "_trees", "_version"),
    ("_arrays", "_locks", "_memory"),
    ("_files", "_inputs", "_specs"),
    ("sharding",),
    ("paths",),
    ("data", "losses", "networks", "solvers"),
    ("metrics", "planning", "pretrained"),
    ("report", "training"),
    ("config",),
    ("runs",),
    ("jobs.evaluate", "jobs.planning", "jobs.sample"),
    ("jobs.compare",),
    ("jobs.invert", "jobs.released", "jobs.train"),
    ("jobs.data", "jobs.report", "jobs.study"),
    ("cli",),
)
LAYER_OF = {package: index for index, layer in enumerate(LAYERS) for package in layer}

# Packages and modules of fmjax that may import each dependency.
ALLOWED_IMPORTERS = {
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


def top_level(file: Path) -> str:
    """Return the first name below fmjax: `training` for `fmjax/training/step.py`."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> list[str]:
    """Return all imported names in full, such as `fmjax.paths.affine.AffinePath`."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.fixture(params=MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def module(request):
    return request.param


def package_of(name: str) -> str:
    """Return the entry of `LAYERS` that contains a module, such as `jobs.train`."""
    parts = name.removeprefix("fmjax.").split(".")
    longest = ".".join(parts[:2])
    return longest if longest in LAYER_OF else parts[0]


def test_every_module_has_a_layer(module):
    name = ".".join(module.relative_to(PACKAGE).with_suffix("").parts)
    assert package_of(name) in LAYER_OF or name in ("__init__", "jobs.__init__")


def test_modules_import_only_from_lower_layers(module):
    package = package_of(".".join(module.relative_to(PACKAGE).with_suffix("").parts))
    for name in imports(module):
        imported = package_of(name)
        if not name.startswith("fmjax.") or package == imported or name == "fmjax.__version__":
            continue
        assert package == "__init__" or LAYER_OF[imported] < LAYER_OF[package], (package, name)


def test_dependencies_are_imported_only_where_allowed(module):
    for name in imports(module):
        allowed = ALLOWED_IMPORTERS.get(name.split(".")[0], {top_level(module)})
        assert top_level(module) in allowed, f"{name} belongs in {allowed}"


def test_only_the_command_line_prints(module):
    calls = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)]
    printing = [call.lineno for call in calls if getattr(call.func, "id", "") == "print"]
    assert top_level(module) == "cli" or not printing


def test_functions_have_a_maximum_length(module):
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and node.body[1:] else node.body
            assert node.end_lineno - body[0].lineno < MAX_FUNCTION_LINES, node.name


def test_public_names_are_imported_on_first_use():
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    imported = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in imported if node.module for alias in node.names]
    packages = [alias.name for node in imported if not node.module for alias in node.names]
    assert len(names) == len(set(names)) <= 60
    assert {*names, *packages} == set(fmjax.__all__)
    folders = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert set(packages) == folders - {"cli"}
    for name in names:
        getattr(fmjax, name)
    with pytest.raises(AttributeError, match="No fmjax attribute denoiser"):
        _ = fmjax.denoiser


def test_packages_are_attributes_of_fmjax():
    program = "import fmjax; fmjax.metrics.frechet_distance; fmjax.config.Config; fmjax.runs"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_importing_fmjax_loads_no_heavy_dependency():
    heavy = sorted({*ALLOWED_IMPORTERS, "sklearn", "scipy.stats", "tensorboardX", "torch"})
    program = f"import sys, fmjax; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == "[]"


def test_benchmarks_import_existing_names():
    """No other test runs all benchmarks."""
    for file in sorted((ROOT / "benchmarks").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fmjax"):
                module = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{file.name}: {missing} of {node.module}"
