"""Compile for devices that are not present, count FLOPs, and list the limits of accelerators."""

from fmjax.planning.flops import (
    flops_per_example,
)
from fmjax.planning.hardware import (
    CHIPS,
    Chip,
    count_flops,
    counts_all,
)
from fmjax.planning.topology import (
    devices_of,
)

__all__ = [
    "CHIPS",
    "Chip",
    "count_flops",
    "counts_all",
    "devices_of",
    "flops_per_example",
]
