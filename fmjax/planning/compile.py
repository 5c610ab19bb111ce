"""Compile a function for devices, present or not, and read memory and traffic of the program."""

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from fmjax._memory import is_out_of_memory
from fmjax.planning.collectives import Traffic, collectives
from fmjax.planning.topology import domain_of

_UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


class OutOfMemory(ValueError):
    """Raised when the program does not fit the memory of a device.

    Attributes:
        needed: Bytes needed on each device, or None if the compiler does not state them.
    """

    def __init__(self, needed: float | None):
        self.needed = needed
        super().__init__("step must fit the memory of a device")


class Compiled(NamedTuple):
    """Memory, traffic and kernels of a compiled program. All bytes are per device.

    Attributes:
        arguments: Bytes of the arguments, such as training state and batch.
        outputs: Bytes of the outputs, such as the next training state (which reuses the buffers of
            the previous one) and the metrics.
        temporaries: Bytes of temporary arrays: activations, gradients, gathered weights.
        peak: Maximum number of bytes held at the same time.
        traffic: Traffic between devices, for each kind of collective.
        seconds: Compile time in seconds.
        kernels: Names of the attention kernels in the program; empty if attention is computed with
            plain matrix products.
    """

    arguments: float
    outputs: float
    temporaries: float
    peak: float
    traffic: dict[str, Traffic]
    seconds: float
    kernels: tuple[str, ...] = ()


def compiled(fn: Callable[..., PyTree], *args: PyTree) -> Compiled:
    """Compile a jitted function for abstract arguments and return its memory and traffic.

    Args:
        fn: A function from `jax.jit`.
        args: Arguments of `fn`, as `jax.ShapeDtypeStruct`s with shardings.

    Raises:
        OutOfMemory: If the program does not fit the devices, where the compiler checks it (TPUs).
    """
    return executable_of(fn, *args)[1]


def executable_of(fn: Callable[..., PyTree], *args: PyTree) -> tuple[jax.stages.Compiled, Compiled]:
    """Compile a jitted function for abstract arguments and also return the executable.

    Args:
        fn: A function from `jax.jit`.
        args: Arguments of `fn`, as `jax.ShapeDtypeStruct`s with shardings.

    Returns:
        The executable, which takes arrays with the shapes and shardings of `args`, and the memory
        and traffic of the program.

    Raises:
        OutOfMemory: If the program does not fit the devices, where the compiler checks it (TPUs).
    """
    assert isinstance(fn, jax.stages.Wrapped)
    start = time.perf_counter()
    lowered = fn.lower(*args)
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(_needed(str(error))) from error
    seconds = time.perf_counter() - start
    memory, text = executable.memory_analysis(), executable.as_text()
    assert memory is not None
    assert text is not None
    return executable, Compiled(
        arguments=float(memory.argument_size_in_bytes),
        outputs=float(memory.output_size_in_bytes),
        temporaries=float(memory.temp_size_in_bytes),
        peak=_peak(memory, jax.tree.leaves(args)[0].sharding),
        traffic=collectives(text, _domains(args)),
        seconds=seconds,
        kernels=attention_kernels(text),
    )


def attention_kernels(program: str) -> tuple[str, ...]:
    """Return the attention kernels that a program calls: splash attention (TPU) or cuDNN (GPU).

    Args:
        program: Text of the program, from `as_text()` of a compiled function.
    """
    calls = (line for line in program.splitlines() if " custom-call(" in line)
    names = {name for line in calls for name in re.findall(r"splash_\w+|__cudnn\$fmha\w+", line)}
    return tuple(sorted(names))


def _peak(memory: Any, sharding: jax.sharding.Sharding) -> float:
    """Return the peak memory: as stated by libtpu, or else the sum of all unshared buffers.

    XLA's own peak for CPUs and GPUs omits temporaries.

    Args:
        memory: Result of `memory_analysis()`.
        sharding: Sharding of an argument, which names the devices.
    """
    if next(iter(sharding.device_set)).platform == "tpu":
        return float(memory.peak_memory_in_bytes)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return float(held + memory.temp_size_in_bytes - memory.alias_size_in_bytes)


def _domains(args: PyTree) -> list[int]:
    """Return the TPU slice or GPU node of each device of the mesh of the arguments."""
    mesh = jax.tree.leaves(args)[0].sharding.mesh
    return [domain_of(device, position) for position, device in enumerate(mesh.devices.flat)]


def _needed(message: str) -> float | None:
    """Parse libtpu's error message for the bytes that the program needs."""
    pattern = r"\(?\b(\d+(?:\.\d+)?)([KMGT]?)B?\)? (?:exceeds|of [\d.]+[KMGT]? hbm)"
    sizes = re.findall(pattern, message)
    return max((float(number) * _UNITS[unit] for number, unit in sizes), default=None)
