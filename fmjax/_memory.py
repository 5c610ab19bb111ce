"""The host's memory, which XLA on the CPU asks for anew at every call of a program."""

import ctypes
import os

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for the next allocation, for the whole process.

    XLA on the CPU allocates a program's temporary arrays at each call. Blocks of that size glibc
    takes from the system and gives back, and the system clears every page once more: 15,800 page
    faults in each training step on the digits, a third of its time. The price is that the process
    stays as large as it ever was. `fmjax` on the command line does this where it computes on the
    CPU; the environment variables that glibc reads (`MALLOC_MMAP_MAX_`, `MALLOC_TRIM_THRESHOLD_`)
    go first.

    Returns:
        Whether it could be done: only glibc (Linux) has the setting.

    Source: mallopt(3).
    """
    if {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; no such library on Windows
        return False
    # mallopt says 1 for success.
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
