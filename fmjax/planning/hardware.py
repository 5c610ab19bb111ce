"""What accelerators can do at most, and how much work a function is."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from fmjax._jaxprs import inner_jaxprs


@dataclass(frozen=True)
class Chip:
    """Limits of one device, as JAX counts devices.

    Attributes:
        peak_flops: Floating-point operations per second in bfloat16, without sparsity.
        memory: Bytes of its own that a program can have.
        memory_bandwidth: Bytes per second to and from it.
        link_bandwidth: Bytes per second that it can send to its neighbours, over all links.
        network_bandwidth: Its share of what its machine can send to other slices or nodes.
    """

    peak_flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float


_GIB = 2.0**30
# Of a TPU's memory libtpu leaves a program all but 2 % (15.75 of 16 GiB). Of a GPU's JAX takes
# three quarters, unless XLA_PYTHON_CLIENT_MEM_FRACTION says another share.
_OF_TPU, _OF_GPU = 0.984 * _GIB, 0.75

# By `device_kind`. A TPU7x chip is two devices, which share what its maker states.
# Sources: Google Cloud's pages of each TPU version (both directions of its links halved);
# NVIDIA's data sheets of A100, H100 and H200, SXM, and of DGX A100 and H100 for their networks. For
# v4 Google states no network; it is taken for v5p's.
CHIPS = {
    "TPU v4": Chip(275e12, 32 * _OF_TPU, 1.2e12, 300e9, 6.25e9),
    "TPU v5 lite": Chip(197e12, 16 * _OF_TPU, 819e9, 200e9, 3.125e9),
    "TPU v5": Chip(459e12, 95 * _OF_TPU, 2.765e12, 600e9, 6.25e9),
    "TPU v6 lite": Chip(918e12, 32 * _OF_TPU, 1.6e12, 400e9, 12.5e9),
    "TPU7x": Chip(1153e12, 96 * _OF_TPU, 3.69e12, 300e9, 6.25e9),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 42.5e9 * _OF_GPU, 1.555e12, 300e9, 25e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 85.1e9 * _OF_GPU, 2.039e12, 300e9, 25e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 84.9e9 * _OF_GPU, 3.35e12, 450e9, 50e9),
    "NVIDIA H200": Chip(989e12, 150.8e9 * _OF_GPU, 4.8e12, 450e9, 50e9),
}


def count_flops(fn: Callable[..., Any], *args: Any) -> float:
    """Operations in the products of matrices and the convolutions of `fn(*args)`, forwards.

    A multiplication and an addition are two. Everything else a network does is left out, as is
    usual. A scan counts as often as it runs, a conditional as its dearest branch, the body of a
    while loop once.

    Args:
        fn: Traced, not run.
        args: Arrays or `jax.ShapeDtypeStruct`s.
    """
    return _flops(jax.make_jaxpr(fn)(*args).jaxpr)


def counts_all(fn: Callable[..., Any], *args: Any) -> bool:
    """Whether `count_flops` counts all of `fn(*args)`: no while loop of it has work in it."""
    return _counts_all(jax.make_jaxpr(fn)(*args).jaxpr)


def _counts_all(jaxpr: Any) -> bool:
    return all(
        _flops(inner) == 0.0 if equation.primitive.name == "while" else _counts_all(inner)
        for equation in jaxpr.eqns
        for inner in inner_jaxprs(equation)
    )


def _flops(jaxpr: Any) -> float:
    return sum(map(_flops_of_equation, jaxpr.eqns), 0.0)


def _flops_of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        ((contracted, _), _), left = params["dimension_numbers"], equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * equation.outvars[0].aval.size * kernel.size / outputs
    if name == "pallas_call":  # A kernel's inside is that of one block.
        estimate = params.get("cost_estimate")
        return 0.0 if estimate is None else float(estimate.flops)
    inside = [_flops(inner) for inner in inner_jaxprs(equation)]
    if name == "cond":
        return max(inside)
    return sum(inside, 0.0) * (params["length"] if name == "scan" else 1)
