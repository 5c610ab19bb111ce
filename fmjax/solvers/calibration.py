"""Calibrated time grids: the best times of fixed steps, measured on a few trajectories."""

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

# Lower bound of the density, relative to its mean. It keeps steps finite where the velocity is
# constant.
_MIN_DENSITY = 0.01


def calibrate(
    velocity_fn: VelocityFn,
    x0: Points,
    cond: Cond = None,
    *,
    tolerance: float = 1e-4,
    num_pieces: int = 64,
) -> Tabulated:
    """Measure the density of fixed steps over time: `density ~ |dv/dt|^(1/2)`.

    One Euler step of size h has the error `h^2 |dv/dt| / 2`, with dv/dt the change of the velocity
    along the trajectory. With `n(t)` steps per unit of time these errors sum to the integral of
    `|dv/dt| / (2 n)`, which is smallest for this density at a given number of steps
    (`fmjax.paths.quantile_grid` makes the grid). It is optimal for Euler's method if the flow
    neither amplifies nor damps errors; other methods benefit if their errors are large at the same
    times.

    Args:
        velocity_fn: Velocity field that the grid is for, guided or not.
        x0: A few samples of the source distribution at t = 0, `[batch, *event]`; 16 to 64 suffice.
        cond: Their conditions.
        tolerance: Relative and absolute tolerance of Tsit5 along the trajectories.
        num_pieces: Number of equal intervals of [0, 1] on which |dv/dt| is measured, as the rms
            over samples and events. It takes `num_pieces + 1` evaluations of each sample in
            addition to those of the solve.

    Returns:
        The density, a plain object of numbers that configs can hold.

    Raises:
        ValueError: If called on traced values, or if no sample reaches t = 1 with finite
            velocities.

    Reference: arXiv:2605.11547.
    """
    require_function("velocity_fn", velocity_fn)
    require_points("x0", x0)
    rule = "be a concrete array (call calibrate outside of jax.jit)"
    require(is_concrete(x0), "x0", rule, "a tracer")
    require_cond(cond, x0.shape[0])
    require_count("num_pieces", num_pieces, 1)
    times = jnp.linspace(0.0, 1.0, num_pieces + 1)
    # Separate steps, so that a sample that fails does not end the solve of the others.
    steps = AdaptiveSteps(tolerance, tolerance, ErrorControl.PER_SAMPLE)

    def velocities(x0: Points, cond: Cond) -> tuple[jax.Array, jax.Array]:
        solved = sample(velocity_fn, x0, cond, solver=Tsit5(), steps=steps, save_at=times)

        def velocity(point: tuple[jax.Array, Points]) -> Points:
            t, x = point
            return velocity_fn(jnp.broadcast_to(t, x.shape[:1]), x, cond)

        assert solved.stats is not None
        points = (times.astype(x0.dtype), solved.stats.trajectory)
        return jax.lax.map(velocity, points), solved.succeeded

    v, succeeded = jax.jit(velocities)(x0, cond)
    valid = np.asarray(succeeded) & np.all(np.isfinite(v), axis=(0, *range(2, v.ndim)))
    require(
        bool(valid.any()),
        "x0",
        "contain a sample that reaches t = 1 with finite velocities",
        f"{len(valid)} that fail",
    )
    change = np.diff(np.asarray(v, np.float64)[:, valid], axis=0) * num_pieces
    acceleration = np.sqrt(np.mean(np.square(change), axis=tuple(range(1, change.ndim))))
    density = np.sqrt(acceleration)
    mean = float(density.mean())
    if mean == 0.0:  # On straight trajectories all times are equally good.
        return Tabulated()
    return Tabulated(
        tuple(np.linspace(0.0, 1.0, num_pieces + 1).tolist()),
        tuple(np.maximum(density / mean, _MIN_DENSITY).tolist()),
    )
