"""Compiling a step for devices that need not be there, and what that tells."""

import re
import time
from typing import Any, NamedTuple

import jax

from fmjax._memory import is_out_of_memory
from fmjax.planning.collectives import Traffic, collectives
from fmjax.planning.topology import domain_of

_UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


class OutOfMemory(ValueError):
    """The compiler found no way to run the step in a device's memory.

    Attributes:
        needed: Bytes of each device, as far as the compiler says.
    """

    def __init__(self, needed: float | None):
        self.needed = needed
        super().__init__("step must fit the memory of a device")


class Compiled(NamedTuple):
    """A step as the compiler made it. Bytes are those of each device.

    Attributes:
        arguments: State and batch.
        outputs: The next state, which takes the place of the last, and the metrics.
        temporaries: Activations, gradients, gathered weights.
        peak: The most that is held at once.
        traffic: What is sent between devices, by kind.
        seconds: That compilation took.
        kernels: Of attention, by the names that they have in the program; none where it is plain
            products.
    """

    arguments: float
    outputs: float
    temporaries: float
    peak: float
    traffic: dict[str, Traffic]
    seconds: float
    kernels: tuple[str, ...] = ()


def compiled(fn: Any, *args: Any) -> Compiled:
    """A jitted function, compiled for abstract arguments that say where they lie.

    Raises:
        OutOfMemory: If it does not fit the devices, where the compiler knows (for TPUs).
    """
    return executable_of(fn, *args)[1]


def executable_of(fn: Any, *args: Any) -> tuple[jax.stages.Compiled, Compiled]:
    """Compile a jitted function for abstract arguments.

    Returns:
        The program, which takes arrays of the arguments' shapes and shardings, and its figures.

    Raises:
        OutOfMemory: If it does not fit the devices, where the compiler knows (for TPUs).
    """
    started = time.perf_counter()
    lowered = fn.lower(*args)
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(_needed(str(error))) from error
    seconds = time.perf_counter() - started
    memory, text = executable.memory_analysis(), executable.as_text()
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
    """The attention kernels that a compiled program calls: splash's on TPU, cuDNN's on GPU."""
    calls = (line for line in program.splitlines() if " custom-call(" in line)
    found = {name for line in calls for name in re.findall(r"splash_\w+|__cudnn\$fmha\w+", line)}
    return tuple(sorted(found))


def _peak(memory: Any, where: jax.sharding.Sharding) -> float:
    """The most at once: what libtpu says and, of others, all that does not share.

    XLA's figure for CPUs and GPUs leaves temporaries out.
    """
    if next(iter(where.device_set)).platform == "tpu":
        return float(memory.peak_memory_in_bytes)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return float(held + memory.temp_size_in_bytes - memory.alias_size_in_bytes)


def _domains(args: Any) -> list[int]:
    """The slice or node of each device of the mesh that arguments lie on."""
    mesh = jax.tree.leaves(args)[0].sharding.mesh
    return [domain_of(device, number) for number, device in enumerate(mesh.devices.flat)]


def _needed(message: str) -> float | None:
    """The bytes that libtpu says the program would take."""
    said = r"\(?\b(\d+(?:\.\d+)?)([KMGT]?)B?\)? (?:exceeds|of [\d.]+[KMGT]? hbm)"
    sizes = re.findall(said, message)
    return max((float(number) * _UNITS[unit] for number, unit in sizes), default=None)
