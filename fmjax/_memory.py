"""Memory of the host and the devices: limits, checks, and the allocator of the C library."""

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
    """Make the C library keep freed memory for later allocations of this process.

    XLA on the CPU allocates a program's temporary arrays at each call. By default, glibc maps
    blocks of that size anew and returns them to the system, which clears every page again: 15,800
    page faults, a third of the time, in each training step on the digits. With this setting, the
    process never returns memory to the system. The command line calls this function when it
    computes on the CPU. It does nothing if an environment variable of glibc
    (`MALLOC_MMAP_MAX_`, `MALLOC_TRIM_THRESHOLD_`) is set.

    Returns:
        Whether the setting was applied; only glibc (Linux) has it.

    Reference: mallopt(3).
    """
    if {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # Not glibc; `CDLL(None)` fails on Windows.
        return False
    # mallopt returns 1 on success.
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))


def is_out_of_memory(error: Exception) -> bool:
    """Return whether XLA raised the error because a device or the compiler ran out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


def host_memory() -> float:
    """Return the memory of this machine in bytes, or the limit of the control group if lower."""
    try:
        total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # Windows.
        return float("inf")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, float(limit)) if limit.isdecimal() else total


def require_host_memory(name: str, num_bytes: float, what: str) -> None:
    """Raise unless `num_bytes` fit into the memory of this machine.

    Args:
        name: Setting that the user can reduce, for the error message.
        num_bytes: Lower bound of the memory that is required at the same time.
        what: Description of the data, for the error message.

    Raises:
        ValueError: If the memory is too small.
    """
    limit = host_memory()
    rule = f"fit the {limit / 1e9:,.1f} GB of this machine's memory"
    require(num_bytes <= limit, name, rule, f"about {num_bytes / 1e9:,.1f} GB of {what}")


def require_device_memory(name: str, tree: object, what: str) -> None:
    """Raise unless arrays fit into the memory of their devices, without allocating them.

    CPU devices share the memory of the machine. Other devices report their limit; those that
    report none are not checked.

    Args:
        name: Setting that the user can reduce, for the error message.
        tree: Pytree of `jax.ShapeDtypeStruct` with shardings.
        what: Description of the arrays, for the error message.

    Raises:
        ValueError: If the memory of a device is too small.
    """
    import jax  # Not at the top: `keep_freed_memory` must be called before JAX is imported.

    bytes_per_device: dict[Any, float] = {}
    for leaf in jax.tree.leaves(tree):
        for device in leaf.sharding.addressable_devices:
            shard = leaf.sharding.shard_shape(leaf.shape)
            size = float(leaf.dtype.itemsize)
            for length in shard:
                size *= length
            bytes_per_device[device] = bytes_per_device.get(device, 0.0) + size
    cpu_bytes = sum(size for device, size in bytes_per_device.items() if device.platform == "cpu")
    require_host_memory(name, cpu_bytes, what)
    for device, size in bytes_per_device.items():
        stats: Mapping[str, float] = (device.platform != "cpu" and device.memory_stats()) or {}
        limit = float(stats.get("bytes_limit", float("inf")))
        rule = f"fit the {limit / 1e9:,.1f} GB of a device's memory"
        require(size <= limit, name, rule, f"about {size / 1e9:,.1f} GB of {what} on each")
