"""What a comparison runs: solvers, each with the settings that become its rows."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmjax._arrays import Cond, Params, Points
from fmjax._checks import require
from fmjax.config import SolveFn, Steps
from fmjax.paths import VelocityFn, uniform_grid
from fmjax.solvers import AdaptiveSteps, ErrorControl, FixedSteps, Samples, sample


class Setting(NamedTuple):
    """Of a method, what makes one row.

    Attributes:
        steps: Given to its `solve`.
        num_steps: How many they are, where they are fixed.
        tolerance: rtol = atol, where they adapt.
    """

    steps: Steps
    num_steps: int | None = None
    tolerance: float | None = None


class Method(NamedTuple):
    """A way from noise to samples. Methods that share `solve` share its compiled program.

    Attributes:
        name: As the report has it, such as "Heun" or "Heun, calibrated grid".
        family: "fixed", "adaptive" or "stochastic".
        solve: Solves a batch.
        settings: Its rows, from cheap to dear; each one's steps are of the same shapes.
    """

    name: str
    family: str
    solve: SolveFn
    settings: tuple[Setting, ...]


def ode_solve(make_velocity_fn: Callable[[Params], VelocityFn], solver: Any) -> SolveFn:
    """The solve of an ODE by one solver."""

    def solve(params: Params, x0: Points, keys: Any, cond: Cond, steps: Steps) -> Samples:
        del keys
        return sample(make_velocity_fn(params), x0, cond, solver=solver, steps=steps)

    return solve


def fixed_settings(
    num_steps: Iterable[int], make_grid: Callable[[int], jax.Array] | None = None
) -> tuple[Setting, ...]:
    """Fixed steps of several numbers, padded alike so that one program serves them.

    Args:
        num_steps: How many.
        make_grid: Where they lie; None takes equal steps.

    Raises:
        ValueError: If a number is not positive.
    """
    numbers = sorted(num_steps)
    require(min(numbers, default=1) > 0, "num_steps", "be positive", tuple(numbers))
    make = uniform_grid if make_grid is None else make_grid
    longest = max(numbers, default=1)
    return tuple(
        Setting(FixedSteps(jnp.concatenate([make(n), jnp.ones(longest - n)])), num_steps=n)
        for n in numbers
    )


def adaptive_settings(
    tolerances: Iterable[float],
    control: ErrorControl = ErrorControl.LARGEST_SAMPLE,
    slots: int | None = None,
) -> tuple[Setting, ...]:
    """Adaptive steps at several tolerances, relative and absolute alike.

    Raises:
        ValueError: If a tolerance is not positive.
    """
    loose_first = sorted(tolerances, reverse=True)
    require(min(loose_first, default=1) > 0, "tolerances", "be positive", tuple(loose_first))
    return tuple(
        Setting(AdaptiveSteps(jnp.float32(t), jnp.float32(t), control, slots=slots), tolerance=t)
        for t in loose_first
    )
