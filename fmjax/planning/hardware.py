"""Limits of accelerators, and the number of floating-point operations of a function."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import PyTree

from fmjax._jaxprs import inner_jaxprs


@dataclass(frozen=True)
class Chip:
    """Limits of one device, as JAX counts devices.

    Attributes:
        peak_flops: Peak floating-point operations per second in bfloat16, without sparsity.
        memory: Bytes of device memory available to a program.
        memory_bandwidth: Bytes per second between the device and its memory.
        link_bandwidth: Bytes per second that the device can send to its neighbors, over all links.
        network_bandwidth: Bytes per second that the device can send to other slices or nodes: its
            share of the network bandwidth of its machine.
    """

    peak_flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float


_GIB = 2.0**30
# libtpu gives a program 98 % of the memory of a TPU (15.75 of 16 GiB). JAX allocates three quarters
# of the memory of a GPU, unless XLA_PYTHON_CLIENT_MEM_FRACTION is set.
_OF_TPU, _OF_GPU = 0.984 * _GIB, 0.75

# Keys are `device_kind`. A TPU7x chip is two devices; each has half of the published values.
# Reference: Google Cloud's page of each TPU version (link bandwidths halved, because they are
# stated for both directions); NVIDIA's data sheets of A100, H100 and H200 (SXM), and of DGX A100
# and H100 for the network. Google states no network bandwidth for v4; v5p's is used.
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


def count_flops(fn: Callable[..., PyTree], *args: PyTree) -> float:
    """Count the FLOPs of the matrix products and convolutions in `fn(*args)`.

    A multiplication and an addition count as two operations. Other operations are not counted, as
    is usual. A scan counts once per iteration, a conditional as its most expensive branch, and the
    body of a while loop once.

    Args:
        fn: The function; it is traced, not run.
        args: Arguments of `fn`, arrays or `jax.ShapeDtypeStruct`s.
    """
    return _flops(jax.make_jaxpr(fn)(*args).jaxpr)


def counts_all(fn: Callable[..., PyTree], *args: PyTree) -> bool:
    """Return whether `count_flops` is exact for `fn(*args)`: while loops contain no counted work.

    Args:
        fn: The function; it is traced, not run.
        args: Arguments of `fn`, arrays or `jax.ShapeDtypeStruct`s.
    """
    return _counts_all(jax.make_jaxpr(fn)(*args).jaxpr)


def _counts_all(jaxpr: Jaxpr) -> bool:
    return all(
        _flops(inner) == 0.0 if equation.primitive.name == "while" else _counts_all(inner)
        for equation in jaxpr.eqns
        for inner in inner_jaxprs(equation)
    )


def _flops(jaxpr: Jaxpr) -> float:
    return sum(map(_flops_of_equation, jaxpr.eqns), 0.0)


def _flops_of_equation(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        ((contracted, _), _), left = params["dimension_numbers"], _aval(equation.invars[0]).shape
        num_outputs = _aval(equation.outvars[0]).size
        return 2.0 * num_outputs * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = _aval(equation.invars[1])
        out_channels = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * _aval(equation.outvars[0]).size * kernel.size / out_channels
    if name == "pallas_call":  # The jaxpr of a kernel covers one block only.
        estimate = params.get("cost_estimate")
        return 0.0 if estimate is None else float(estimate.flops)
    inner_flops = [_flops(inner) for inner in inner_jaxprs(equation)]
    if name == "cond":
        return max(inner_flops)
    return sum(inner_flops, 0.0) * (params["length"] if name == "scan" else 1)


def _aval(variable: Var | Literal) -> ShapedArray:
    """Return the shape and dtype of an array in a jaxpr."""
    assert isinstance(variable.aval, ShapedArray)
    return variable.aval
