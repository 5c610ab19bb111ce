"""Calibrated grids: where N fixed steps go best on one field, measured on a few of its paths."""

import jax
import jax.numpy as jnp
import numpy as np
from diffrax import Tsit5

from fmjax._arrays import Cond, Points
from fmjax._checks import require, require_count
from fmjax._inputs import require_cond, require_function, require_points
from fmjax.paths import Tabulated, VelocityFn
from fmjax.solvers.ode import sample
from fmjax.solvers.steps import AdaptiveSteps, ErrorControl, is_concrete

# Of the mean density: where the field stands still, steps are long but finite.
_LEAST = 0.01


def calibrate(
    velocity_fn: VelocityFn,
    x0: Points,
    cond: Cond = None,
    *,
    tolerance: float = 1e-4,
    num_pieces: int = 64,
) -> Tabulated:
    """Measure how densely fixed steps should lie: `density ~ |dv/dt|^(1/2)`.

    One Euler step of length h errs by `h^2 |dv/dt| / 2`, with dv/dt the velocity's change along
    the path. With `n(t)` steps per unit of time those errors add up to the integral of
    `|dv/dt| / (2 n)`, which for a given number of steps is least for this density
    (`fmjax.paths.quantile_grid` makes the grid). It is best for Euler's method as far as errors
    are carried along unchanged; other methods profit as far as theirs are large at the same times.

    Args:
        velocity_fn: The field, guided or not, that the grid is for.
        x0: A few noises at t = 0, `[batch, *event]`; 16 to 64 are enough.
        cond: Their conditions.
        tolerance: How closely Tsit5 follows the paths, relative and absolute.
        num_pieces: Equal pieces of [0, 1] on which |dv/dt| is measured, as the rms over samples
            and events. Costs `num_pieces + 1` evaluations of each sample beside the solve's.

    Returns:
        The density, a plain object of numbers, that configs can hold.

    Raises:
        ValueError: If called on traced values, or no sample arrives with finite velocities.

    Source: arXiv:2605.11547.
    """
    require_function("velocity_fn", velocity_fn)
    require_points("x0", x0)
    require(
        is_concrete(x0), "x0", "be known when a grid is calibrated (outside of jit)", "a tracer"
    )
    require_cond(cond, x0.shape[0])
    require_count("num_pieces", num_pieces, 1)
    times = jnp.linspace(0.0, 1.0, num_pieces + 1)
    # Each sample's own steps: one that fails must not end the others' solve.
    steps = AdaptiveSteps(tolerance, tolerance, ErrorControl.PER_SAMPLE)

    def velocities(x0: Points, cond: Cond) -> tuple[jax.Array, jax.Array]:
        solved = sample(velocity_fn, x0, cond, solver=Tsit5(), steps=steps, save_at=times)

        def velocity(point: tuple[jax.Array, Points]) -> Points:
            t, x = point
            return velocity_fn(jnp.broadcast_to(t, x.shape[:1]), x, cond)

        points = (times.astype(x0.dtype), solved.trajectory)
        return jax.lax.map(velocity, points), solved.succeeded

    v, arrived = jax.jit(velocities)(x0, cond)
    kept = np.asarray(arrived) & np.all(np.isfinite(v), axis=(0, *range(2, v.ndim)))
    require(bool(kept.any()), "x0", "hold a sample that arrives at t = 1", f"{len(kept)} that fail")
    change = np.diff(np.asarray(v, np.float64)[:, kept], axis=0) * num_pieces
    acceleration = np.sqrt(np.mean(np.square(change), axis=tuple(range(1, change.ndim))))
    density = np.sqrt(acceleration)
    mean = float(density.mean())
    if mean == 0.0:  # Straight paths: all times alike.
        return Tabulated()
    return Tabulated(
        tuple(np.linspace(0.0, 1.0, num_pieces + 1).tolist()),
        tuple(np.maximum(density / mean, _LEAST).tolist()),
    )
