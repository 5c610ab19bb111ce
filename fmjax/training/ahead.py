"""Compiling a step for devices that need not be there, and what that tells."""

import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fmjax._arrays import Batch
from fmjax.losses.objective import Objective
from fmjax.training.collectives import Traffic, collectives
from fmjax.training.sharding import batch_sharding
from fmjax.training.state import TrainState
from fmjax.training.step import abstract_state, make_train_step
from fmjax.velocity import VelocityNet

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
        executable: The program; of devices that are here, it can run.
        arguments: State and batch.
        outputs: The next state, which takes the place of the last, and the metrics.
        temporaries: Activations, gradients, gathered weights.
        peak: The most that is held at once.
        traffic: What is sent between devices, by kind.
        seconds: That compilation took.
    """

    executable: Any
    arguments: float
    outputs: float
    temporaries: float
    peak: float
    traffic: dict[str, Traffic]
    seconds: float


def abstract_batch(
    event_shape: tuple[int, ...], num_classes: int | None, batch_size: int, mesh: Mesh
) -> Batch:
    """A batch of the data, as `jax.ShapeDtypeStruct`s."""
    rows = batch_sharding(mesh)

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=rows)

    labels = None if num_classes is None else array((), jnp.int32)
    return Batch(array(event_shape, jnp.float32), labels)


def compile_step(
    net: VelocityNet,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    batch: Batch,
    *,
    accumulation_steps: int = 1,
    ema_decay: float = 0.999,
) -> Compiled:
    """The training step, compiled for the devices of `mesh`.

    Raises:
        OutOfMemory: If it does not fit them, where the compiler knows (for TPUs).
    """
    state: TrainState = abstract_state(net, optimizer, mesh)
    step = make_train_step(
        objective,
        optimizer,
        mesh=mesh,
        state_sharding=jax.tree.map(lambda leaf: leaf.sharding, state),
        ema_decay=ema_decay,
        accumulation_steps=accumulation_steps,
    )
    return compiled(step, state, batch)


def compiled(fn: Any, *args: Any) -> Compiled:
    """A jitted function, compiled for abstract arguments that say where they lie."""
    started = time.perf_counter()
    lowered = fn.lower(*args)
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(_needed(str(error))) from error
    memory = executable.memory_analysis()
    return Compiled(
        executable=executable,
        arguments=float(memory.argument_size_in_bytes),
        outputs=float(memory.output_size_in_bytes),
        temporaries=float(memory.temp_size_in_bytes),
        peak=_peak(memory),
        traffic=collectives(executable.as_text()),
        seconds=time.perf_counter() - started,
    )


def _peak(memory: Any) -> float:
    """The most at once: what the compiler says or, for the CPU, all that does not share."""
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    held += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    said = memory.peak_memory_in_bytes
    return float(said if said >= memory.argument_size_in_bytes else held)


def _needed(message: str) -> float | None:
    """The bytes that libtpu says the program would take."""
    said = r"\(?\b(\d+(?:\.\d+)?)([KMGT]?)B?\)? (?:exceeds|of [\d.]+[KMGT]? hbm)"
    sizes = re.findall(said, message)
    return max((float(number) * _UNITS[unit] for number, unit in sizes), default=None)
