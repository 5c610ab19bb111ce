"""Test configuration: eight fake CPU devices and fast, cached compilation."""

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

# Compiled programs stay in memory. Linux allows 65,530 memory maps per process, each program needs
# several, and XLA aborts the process if it gets no more.
_MAX_MAPS = 20_000
_MAX_BYTES = 1.8e9


def _num_maps() -> int:
    maps = Path("/proc/self/maps")
    return len(maps.read_bytes().splitlines()) if maps.exists() else 0


def _resident_bytes() -> float:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096.0 if statm.exists() else 0.0


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """Clear JAX's caches if compiled programs of earlier modules use too much memory."""
    yield
    if _resident_bytes() > _MAX_BYTES or _num_maps() > _MAX_MAPS:
        jax.clear_caches()


class MessageRecorder(Silent):
    """Progress receiver that stores its messages in `lines`."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def recorder():
    """A progress receiver that stores its messages in `lines`."""
    return MessageRecorder()


@pytest.fixture
def unchecked():
    """Disable jaxtyping's checks, as for users, to test the error messages of fmjax."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def lowered():
    """Names of the events at which JAX lowered a new program."""
    events = []

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)
