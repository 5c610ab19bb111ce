"""Before jax starts: eight fake devices, and compilation that is quick and kept."""

import os
import tempfile
from pathlib import Path

from tests.quick import COMPILATION

os.environ["JAX_PLATFORMS"] = "cpu"
_DEVICES = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES} {COMPILATION}"
os.environ.setdefault("FMJAX_CACHE", str(Path(tempfile.gettempdir()) / "fmjax-tests"))
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(os.environ["FMJAX_CACHE"]) / "compilation")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

from fmjax._memory import keep_freed_memory  # noqa: E402
from fmjax._progress import Silent  # noqa: E402

keep_freed_memory()

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Compiled programs stay in memory. Linux allows a process 65,530 memory maps, of which a program
# takes several, and XLA aborts the process when it gets no more.
_MAX_MAPS = 20_000
_MAX_BYTES = 1.8e9


def _num_maps() -> int:
    maps = Path("/proc/self/maps")
    return len(maps.read_bytes().splitlines()) if maps.exists() else 0


def _resident_bytes() -> float:
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096.0 if status.exists() else 0.0


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """Free the compiled programs of earlier modules before the process has too many."""
    yield
    if _resident_bytes() > _MAX_BYTES or _num_maps() > _MAX_MAPS:
        jax.clear_caches()


class Heard(Silent):
    """Keeps what a command would print."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def heard():
    """A progress whose `lines` are what was said."""
    return Heard()


@pytest.fixture
def unchecked():
    """Annotations are not checked, as for users: what our own checks say then shows."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
