"""The host's memory: how much there is, and how XLA on the CPU asks for it."""

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmjax._checks import require

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


def is_out_of_memory(error: Exception) -> bool:
    """Whether XLA raised the error because a device or its compiler has too little memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


def host_memory() -> float:
    """Bytes of memory of this machine, or of this process's control group if that has less."""
    try:
        total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # Not on Windows.
        return float("inf")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, float(limit)) if limit.isdecimal() else total


def require_host_memory(name: str, num_bytes: float, what: str) -> None:
    """Raise unless some bytes fit this machine's memory.

    Args:
        name: What the user would make smaller.
        num_bytes: An estimate from below: what must be held at once in any case.
        what: What takes them.

    Raises:
        ValueError: If they do not fit.
    """
    limit = host_memory()
    rule = f"fit the {limit / 1e9:,.1f} GB of this machine's memory"
    require(num_bytes <= limit, name, rule, f"about {num_bytes / 1e9:,.1f} GB of {what}")


def require_device_memory(name: str, tree: Any, what: str) -> None:
    """Raise unless arrays fit the memory of the devices that they are to lie on; none is made.

    Devices of the CPU share the machine's memory. Of others the limit is the one that they state;
    of those that state none nothing is required.

    Args:
        name: What the user would make smaller.
        tree: `jax.ShapeDtypeStruct`s with shardings.
        what: What the arrays are.

    Raises:
        ValueError: If they do not fit.
    """
    import jax  # `keep_freed_memory` is called before JAX is there.

    held: dict[Any, float] = {}
    for leaf in jax.tree.leaves(tree):
        for device in leaf.sharding.addressable_devices:
            shard = leaf.sharding.shard_shape(leaf.shape)
            size = float(leaf.dtype.itemsize)
            for length in shard:
                size *= length
            held[device] = held.get(device, 0.0) + size
    on_host = sum(size for device, size in held.items() if device.platform == "cpu")
    require_host_memory(name, on_host, what)
    for device, size in held.items():
        stated: Mapping[str, Any] = (device.platform != "cpu" and device.memory_stats()) or {}
        limit = float(stated.get("bytes_limit", float("inf")))
        rule = f"fit the {limit / 1e9:,.1f} GB of a device's memory"
        require(size <= limit, name, rule, f"about {size / 1e9:,.1f} GB of {what} on each")
