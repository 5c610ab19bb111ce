"""Compile for devices that are not present, count FLOPs, and list the limits of accelerators."""

from fmjax.planning.flops import (
    count_flops as count_flops,
    counts_all as counts_all,
    flops_per_example as flops_per_example,
)
from fmjax.planning.hardware import CHIPS as CHIPS, Chip as Chip
from fmjax.planning.topology import devices_of as devices_of
