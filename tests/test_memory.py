"""Tests of `keep_freed_memory`, by the number of page faults."""

import os
import subprocess
import sys

import pytest

from fmjax._memory import keep_freed_memory

SIZE, REPEATS = 2**26, 8
PROGRAM = f"""
import ctypes, resource, sys
from fmjax import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else False)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({REPEATS}):
    block = libc.malloc({SIZE})
    libc.memset(block, 1, {SIZE})
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")
    }
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = result.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is not glibc")
def test_freed_memory_is_reused():
    """Only the first repeat causes page faults."""
    kept, faults = page_faults("keep")
    _, default_faults = page_faults("default")
    if not kept:
        pytest.skip("the C library is not glibc")
    assert faults <= 1.1 * default_faults / REPEATS


def test_environment_variables_take_precedence(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")
    assert not keep_freed_memory()


def test_nothing_changes_without_glibc(monkeypatch):
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
