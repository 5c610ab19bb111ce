"""The solvers of a comparison, with the settings that form its rows."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from fmjax._arrays import Cond, Params, Points
from fmjax._checks import require
from fmjax.config import SolveFn, Steps
from fmjax.paths import VelocityFn, uniform_grid
from fmjax.solvers import AdaptiveSteps, ErrorControl, FixedSteps, Samples, sample
from fmjax.solvers.engine.diffrax_solvers import Solver


class Setting(NamedTuple):
    """The steps or tolerances of a method for one row.

    Attributes:
        steps: Argument of the method's `solve`.
        num_steps: Number of fixed steps; None for adaptive steps.
        tolerance: Relative and absolute tolerance of adaptive steps; None for fixed steps.
    """

    steps: Steps
    num_steps: int | None = None
    tolerance: float | None = None


class Method(NamedTuple):
    """A solver with its settings. Methods with the same `solve` share one compiled program.

    Attributes:
        name: Name in the report, such as "Heun" or "Heun, calibrated grid".
        family: "fixed", "adaptive" or "stochastic".
        solve: Computes a batch of samples from source points.
        settings: Settings of the rows, from cheap to expensive. Their steps have the same shapes.
    """

    name: str
    family: str
    solve: SolveFn
    settings: tuple[Setting, ...]


def ode_solve(make_velocity_fn: Callable[[Params], VelocityFn], solver: Solver) -> SolveFn:
    """Return the function that solves an ODE with one solver.

    Args:
        make_velocity_fn: Returns the velocity field for given parameters.
        solver: The solver, as for `fmjax.solvers.sample`.
    """

    def solve(
        params: Params, x0: Points, keys: Key[Array, " batch"] | None, cond: Cond, steps: Steps
    ) -> Samples:
        del keys
        return sample(make_velocity_fn(params), x0, cond, solver=solver, steps=steps)

    return solve


def fixed_settings(
    num_steps: Iterable[int], make_grid: Callable[[int], jax.Array] | None = None
) -> tuple[Setting, ...]:
    """Return settings with fixed steps, padded to one length so that they share a program.

    Args:
        num_steps: Number of steps of each setting.
        make_grid: Returns the time grid for a number of steps; None means a uniform grid.

    Raises:
        ValueError: If a number of steps is not positive.
    """
    counts = sorted(num_steps)
    require(min(counts, default=1) > 0, "num_steps", "be positive", tuple(counts))
    make = uniform_grid if make_grid is None else make_grid
    longest = max(counts, default=1)
    return tuple(
        Setting(FixedSteps(jnp.concatenate([make(n), jnp.ones(longest - n)])), num_steps=n)
        for n in counts
    )


def adaptive_settings(
    tolerances: Iterable[float],
    control: ErrorControl = ErrorControl.LARGEST_SAMPLE,
    slots: int | None = None,
) -> tuple[Setting, ...]:
    """Return one setting of a compared solver per tolerance of its adaptive steps.

    Args:
        tolerances: Relative and absolute tolerance of each setting.
        control: How the errors of the samples in a batch determine the step size.
        slots: Number of samples that are solved at the same time when streaming, or None.

    Raises:
        ValueError: If a tolerance is not positive.
    """
    loose_first = sorted(tolerances, reverse=True)
    require(min(loose_first, default=1) > 0, "tolerances", "be positive", tuple(loose_first))
    return tuple(
        Setting(AdaptiveSteps(jnp.float32(t), jnp.float32(t), control, slots=slots), tolerance=t)
        for t in loose_first
    )
