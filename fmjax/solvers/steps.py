"""What a solve is asked for and what it gives back: fixed or adaptive steps, and `Samples`."""

import enum
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from fmjax._arrays import Points, event_axes
from fmjax._checks import require, require_count, require_positive
from fmjax._inputs import described, is_array


def is_concrete(value: Any) -> bool:
    """Whether the numbers in `value` are known now, while the program is traced."""
    known = (bool, int, float, list, tuple, np.ndarray, np.generic, jax.Array)
    return isinstance(value, known) and not isinstance(value, Tracer)


class ErrorControl(enum.Enum):
    """Whose error decides the steps of a batch.

    The error of one sample is the rms over its event axes of `error / (atol + rtol |x|)`.
    """

    LARGEST_SAMPLE = "largest_sample"
    """One step for all, from the largest of the samples' own errors: no sample is worse than
    it would be alone."""
    PER_SAMPLE = "per_sample"
    """A step for each sample. The batch is evaluated until its slowest member arrives."""
    WHOLE_BATCH_RMS = "whole_batch_rms"
    """One step for all, from the rms over batch and event. An outlier is drowned by the rest:
    one sample in n may exceed the tolerance by sqrt(n)."""


@partial(jax.tree_util.register_dataclass, data_fields=["times"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class FixedSteps:
    """Steps at given times, whatever the error.

    Attributes:
        times: Rising from 0 to 1, one more than there are steps (`fmjax.paths` has grids). The
            last time may be repeated: such steps are not taken, so that, given as an argument
            of a jitted function, grids of several lengths padded with ones share one program.
    """

    times: Any

    def __post_init__(self) -> None:
        if not hasattr(self.times, "shape") and not isinstance(self.times, (list, tuple)):
            return  # a placeholder that JAX puts into the tree
        shape = np.shape(self.times)
        require(
            len(shape) == 1 and shape[0] >= 2,
            "times",
            "be one row of at least 2 times (1 step)",
            f"shape {shape}",
        )
        if is_concrete(self.times):
            times = np.asarray(self.times)
            ends = bool(times[0] == 0.0 and times[-1] == 1.0)
            require(ends, "times", "go from 0 to 1", f"{times[0]} to {times[-1]}")
            rising = np.all(np.diff(times[: num_steps(times) + 1]) > 0.0)
            require(bool(rising), "times", "rise strictly from 0 to 1", times.tolist())


def as_times(steps: FixedSteps) -> Any:
    """The grid as an array."""
    return steps.times if hasattr(steps.times, "shape") else np.asarray(steps.times)


def num_steps(times: Any) -> Any:
    """Steps in a grid that may be padded with ones."""
    return (times[:-1] < 1.0).sum()


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["rtol", "atol"],
    meta_fields=["control", "max_steps", "pcoeff", "icoeff", "dcoeff", "slots"],
)
@dataclass(frozen=True)
class AdaptiveSteps:
    """Steps as long as the error allows.

    Attributes:
        rtol: Relative tolerance of one step. Both tolerances may be traced arrays: one program
            serves them all.
        atol: Absolute tolerance of one step, in data units.
        control: Whose error decides.
        max_steps: A solve that takes more, rejected ones included, fails.
        pcoeff: Weight of the last two errors' ratio in the next step's length (0: plain "I"
            control). 0.3 to 0.4 with icoeff 0.3 to 0.4 is steadier where steps are rejected often.
        icoeff: Weight of the last error.
        dcoeff: Weight of the change of that ratio.
        slots: Samples in flight on each device, for `PER_SAMPLE` only. None solves the whole
            batch at once, and waits for its slowest. A number streams: whenever a sample
            arrives, the next of those that wait takes its slot. So a large batch costs about
            the mean of its samples' evaluations, not the most (`fmjax.solvers.engine.streaming`).

    Source: Hairer and Wanner 1996, Solving ODEs II, section IV.2; Diffrax's `PIDController`.
    """

    rtol: Any = 1e-4
    atol: Any = 1e-4
    control: ErrorControl = ErrorControl.LARGEST_SAMPLE
    max_steps: int = 4096
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    slots: int | None = None

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if is_concrete(value):
                require_positive(name, float(value))
        require_count("max_steps", self.max_steps, 1)
        if self.slots is not None:
            require_count("slots", self.slots, 1)
            streams = self.control is ErrorControl.PER_SAMPLE
            require(streams, "control", "be PER_SAMPLE with slots", self.control.name)


def require_steps(steps: Any) -> None:
    """Raise unless `steps` are fixed or adaptive steps made of numbers."""
    known = isinstance(steps, (FixedSteps, AdaptiveSteps))
    require(known, "steps", "be FixedSteps or AdaptiveSteps", described(steps))
    fixed = isinstance(steps, FixedSteps)
    for name in ("times",) if fixed else ("rtol", "atol"):
        value = getattr(steps, name)
        numbers = is_array(value) or isinstance(value, (list, tuple) if fixed else (int, float))
        require(numbers, name, "be numbers" if fixed else "be a number", described(value))


class Samples(NamedTuple):
    """Where the points went, and at what cost.

    Attributes:
        x1: The points at t = 1 (or where the solve gave up: see `succeeded`).
        nfe: Network evaluations spent on each sample, those of rejected steps included.
        num_accepted: Accepted steps of each sample.
        num_rejected: Rejected steps of each sample.
        succeeded: Whether the sample arrived at t = 1, every number of it finite. One that is
            not finite at t = 0 fails by itself, whoever decides the steps.
        times: Ends of the accepted steps, then +inf: `[steps]`, or `[batch, steps]` if each
            sample has its own. Of adaptive steps the first 1,024 are kept.
        trajectory: The points at the times `save_at`, `[times, batch, *event]`, or None.
            Infinite where a solve that failed did not come to.
    """

    x1: Points
    nfe: Int[Array, " batch"]
    num_accepted: Int[Array, " batch"]
    num_rejected: Int[Array, " batch"]
    succeeded: Bool[Array, " batch"]
    times: Float[Array, "..."]
    trajectory: Float[Array, "saved batch ..."] | None


def samples_on_grid(x1: Any, nfe: Any, times: Any, trajectory: Any = None) -> Samples:
    """The result of fixed steps over `times`, of which those of no length were not taken."""
    nothing, taken = jnp.zeros(x1.shape[:1], jnp.int32), times[1:] > times[:-1]
    # Of a grid that was traced nobody has seen yet where it goes.
    arrived = (times[0] == 0.0) & (times[-1] == 1.0)
    return Samples(
        x1=x1,
        nfe=nfe,
        num_accepted=nothing + jnp.sum(taken, dtype=jnp.int32),
        num_rejected=nothing,
        succeeded=arrived & jnp.all(jnp.isfinite(x1), axis=event_axes(x1)),
        times=jnp.sort(jnp.where(taken, times[1:], jnp.inf)),
        trajectory=trajectory,
    )
