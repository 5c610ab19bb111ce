"""Step settings of a solve, fixed or adaptive, and its result `Samples`."""

import dataclasses
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from fmjax._arrays import Points, event_axes
from fmjax._checks import require, require_count, require_positive
from fmjax._inputs import describe, is_array

Time: TypeAlias = Float[Array, ""]
"""One time for all samples."""
RealScalar: TypeAlias = Array | np.ndarray | float | int
"""A real number, traced or not. The type that Diffrax uses for times and tolerances."""

if TYPE_CHECKING:
    ScalarLike: TypeAlias = Array | np.ndarray | float
    TimesLike: TypeAlias = Array | np.ndarray | Sequence[float]
else:
    # JAX rebuilds registered dataclasses with placeholders in the place of arrays, which a runtime
    # type checker would refuse.
    ScalarLike = TimesLike = Any


def is_concrete(value: object) -> bool:
    """Whether `value` consists of known numbers, not of tracers."""
    known = (bool, int, float, list, tuple, np.ndarray, np.generic, jax.Array)
    return isinstance(value, known) and not isinstance(value, Tracer)


class ErrorControl(enum.Enum):
    """Which error estimate sets the step size of a batch.

    The error of one sample is the rms over its event axes of `error / (atol + rtol |x|)`.
    """

    LARGEST_SAMPLE = "largest_sample"
    """One step size for the batch, from the largest error of a sample. Every sample is at least as
    accurate as when solved alone."""
    PER_SAMPLE = "per_sample"
    """A separate step size for each sample. The batch is evaluated until its slowest sample
    reaches t = 1."""
    WHOLE_BATCH_RMS = "whole_batch_rms"
    """One step size for the batch, from the rms error over batch and event axes. The error of an
    outlier is averaged out: one sample in n may exceed the tolerance by a factor of sqrt(n)."""


@partial(jax.tree_util.register_dataclass, data_fields=["times"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class FixedSteps:
    """Steps on a given time grid, without error control.

    Attributes:
        times: Time grid, strictly increasing from 0 to 1, with one more time than there are steps
            (`fmjax.paths` makes grids). The last time may be repeated, which adds no steps: grids
            of different lengths, padded with ones and passed as an argument of a jitted function,
            share one compiled program.
    """

    times: TimesLike

    def __post_init__(self) -> None:
        if not hasattr(self.times, "shape") and not isinstance(self.times, (list, tuple)):
            return  # A placeholder that JAX puts in the place of an array.
        shape = np.shape(self.times)
        require(
            len(shape) == 1 and shape[0] >= 2,
            "times",
            "be a 1-D array of at least 2 times (1 step)",
            f"shape {shape}",
        )
        if is_concrete(self.times):
            times = np.asarray(self.times)
            spans_interval = bool(times[0] == 0.0 and times[-1] == 1.0)
            require(spans_interval, "times", "go from 0 to 1", f"{times[0]} to {times[-1]}")
            increasing = bool(np.all(np.diff(times[: num_steps(times) + 1]) > 0.0))
            require(increasing, "times", "increase strictly from 0 to 1", times.tolist())


def as_times(steps: FixedSteps) -> Array | np.ndarray:
    """Return the time grid as an array."""
    times = steps.times
    return times if isinstance(times, (jax.Array, np.ndarray)) else np.asarray(times)


def num_steps(times: Array | np.ndarray) -> Array | np.integer:
    """Return the number of steps of a time grid that may be padded with ones."""
    return (times[:-1] < 1.0).sum()


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["rtol", "atol"],
    meta_fields=["control", "max_steps", "pcoeff", "icoeff", "dcoeff", "slots"],
)
@dataclass(frozen=True)
class AdaptiveSteps:
    """Steps whose size follows from error estimates and tolerances.

    Attributes:
        rtol: Relative tolerance of one step. Both tolerances may be traced arrays, so that one
            compiled program serves all tolerances.
        atol: Absolute tolerance of one step, in data units.
        control: Which error estimate sets the step size of a batch.
        max_steps: Maximum number of steps, rejected ones included. A solve that needs more fails.
        pcoeff: PID coefficient of the proportional term, the ratio of the last two errors. With 0
            it is plain integral control; 0.3 to 0.4 with icoeff 0.3 to 0.4 avoids oscillating step
            sizes where many steps are rejected.
        icoeff: PID coefficient of the integral term, the last error.
        dcoeff: PID coefficient of the derivative term, the change of the ratio of errors.
        slots: Number of samples solved at a time on each device, for `PER_SAMPLE` only. None
            solves the entire batch at once and waits for its slowest sample. With a number, the
            next waiting sample takes the slot of each finished one, so that a large batch costs
            about the mean number of evaluations per sample instead of the maximum
            (`fmjax.solvers.engine.streaming`).

    Reference: Hairer and Wanner 1996, Solving ODEs II, section IV.2; Diffrax's `PIDController`.
    """

    rtol: ScalarLike = 1e-4
    atol: ScalarLike = 1e-4
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
            per_sample = self.control is ErrorControl.PER_SAMPLE
            require(per_sample, "control", "be PER_SAMPLE if slots is set", self.control.name)


_Steps = TypeVar("_Steps", FixedSteps, AdaptiveSteps, FixedSteps | AdaptiveSteps)


def as_arguments(steps: _Steps) -> _Steps:
    """Return steps whose numbers are few arguments of a program: a grid as an array, not padded."""
    if not isinstance(steps, FixedSteps) or not is_concrete(steps.times):
        return steps
    times = np.asarray(steps.times)
    return dataclasses.replace(steps, times=times[: num_steps(times) + 1])


def require_steps(steps: object) -> None:
    """Raise unless `steps` is a `FixedSteps` or `AdaptiveSteps` that holds numbers."""
    known = isinstance(steps, (FixedSteps, AdaptiveSteps))
    require(known, "steps", "be FixedSteps or AdaptiveSteps", describe(steps))
    fixed = isinstance(steps, FixedSteps)
    for name in ("times",) if fixed else ("rtol", "atol"):
        value = getattr(steps, name)
        numbers = is_array(value) or isinstance(value, (list, tuple) if fixed else (int, float))
        require(numbers, name, "be numbers" if fixed else "be a number", describe(value))


class SolveStats(NamedTuple):
    """Steps of a solve, and the points at the requested times.

    Attributes:
        num_accepted: Number of accepted steps of each sample.
        num_rejected: Number of rejected steps of each sample.
        step_ends: End times of the accepted steps, padded with +inf: `[steps]`, or `[batch, steps]`
            if each sample has separate steps. Adaptive solves keep the first 1,024.
        trajectory: Points at the times `save_at`, `[times, batch, *event]`, or None. Infinite at
            times that a failed solve did not reach.
    """

    num_accepted: Int[Array, " batch"]
    num_rejected: Int[Array, " batch"]
    step_ends: Float[Array, "..."]
    trajectory: Float[Array, "saved batch ..."] | None = None


class Samples(NamedTuple):
    """Result of a solve: the samples and their cost.

    Attributes:
        x1: Points at t = 1, or where a failed solve stopped (see `succeeded`).
        nfe: Network evaluations (NFE) of each sample, including those of rejected steps.
        succeeded: Whether each sample reached t = 1 and is finite. A sample that is not finite at
            t = 0 fails without affecting the others, with any `ErrorControl`.
        stats: Steps of the solve, or None for samplers without steps in time.
    """

    x1: Points
    nfe: Int[Array, " batch"]
    succeeded: Bool[Array, " batch"]
    stats: SolveStats | None = None


def samples_on_grid(
    x1: Array, nfe: Array, times: Array, trajectory: Array | None = None
) -> Samples:
    """Make the `Samples` of fixed steps on the grid `times`, ignoring steps of length zero."""
    zeros, taken = jnp.zeros(x1.shape[:1], jnp.int32), times[1:] > times[:-1]
    # The ends of a traced grid were not checked when it was made.
    spans_interval = (times[0] == 0.0) & (times[-1] == 1.0)
    stats = SolveStats(
        num_accepted=zeros + jnp.sum(taken, dtype=jnp.int32),
        num_rejected=zeros,
        step_ends=jnp.sort(jnp.where(taken, times[1:], jnp.inf)),
        trajectory=trajectory,
    )
    succeeded = spans_interval & jnp.all(jnp.isfinite(x1), axis=event_axes(x1))
    return Samples(x1, nfe, succeeded, stats)
