"""Freed memory is kept, as the system's count of page faults shows."""

import os
import subprocess
import sys

import pytest

from fmjax._memory import keep_freed_memory

SIZE, TURNS = 2**26, 8
CHILD = f"""
import ctypes, resource, sys
from fmjax import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else False)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({TURNS}):
    block = libc.malloc({SIZE})
    libc.memset(block, 1, {SIZE})
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(what):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, what],
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = ran.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is not glibc")
def test_memory_that_was_freed_is_used_again():
    """One turn touches each page once; those after it find them there."""
    kept, faults = page_faults("keep")
    _, faults_otherwise = page_faults("leave")
    if not kept:
        pytest.skip("the C library is not glibc")
    assert faults <= 1.1 * faults_otherwise / TURNS


def test_what_the_environment_says_goes_first(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")
    assert not keep_freed_memory()


def test_without_glibc_nothing_is_done(monkeypatch):
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
