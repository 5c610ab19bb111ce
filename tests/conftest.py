"""Before jax starts: eight fake devices, and compilation that is quick and kept."""

import os
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_llvm_disable_expensive_passes=true"
)
os.environ.setdefault("FMJAX_CACHE", str(Path(tempfile.gettempdir()) / "fmjax-tests"))
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(os.environ["FMJAX_CACHE"]) / "compilation")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

from fmjax import keep_freed_memory  # noqa: E402

keep_freed_memory()

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
import jaxtyping  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def unchecked():
    """Annotations are not checked, as for users: what our own checks say then shows."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
