"""The accurate solve with which a comparison measures errors, in float64 if supported."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jaxtyping import ArrayLike

from fmjax._arrays import Cond, Params, Points
from fmjax._jaxprs import equations
from fmjax.paths import VelocityFn
from fmjax.report.comparison import Reference
from fmjax.solvers import DIFFRAX_SOLVERS, AdaptiveSteps, ErrorControl, Samples, sample

SOLVER = "Dopri8"
# In float32, a smaller tolerance would resolve rounding errors at a higher cost.
TOLERANCE = {"float64": 1e-7, "float32": 1e-6}
# Factor by which the tolerance of the second solve, which estimates the error of the reference, is
# larger. For a DiT on the digits, the solves took 6,790 evaluations at 1e-7 and 1,954 at 1e-4, with
# errors of 0.6 to 5 times the tolerance.
LOOSER = 1000


class ReferenceProgram(NamedTuple):
    """A reference solve that is traced but not compiled.

    Attributes:
        lowered: `lowered.compile()` returns a program with arguments (params, x0, cond, tolerance).
        arguments: params, x0 and cond in the precision of the solve.
        tolerance: Relative and absolute tolerance.
        precision: "float64" or "float32".
        note: Reason why the precision is not float64, or empty.
    """

    lowered: jax.stages.Lowered
    arguments: tuple[Params, Points, Cond]
    tolerance: float
    precision: str
    note: str


class Exact(NamedTuple):
    """A computed reference.

    Attributes:
        info: Tolerance, precision, cost and uncertainty.
        x1: The end points `[batch, *event]`, float64 in host memory.
    """

    info: Reference
    x1: np.ndarray


def lower_reference(
    make_velocity_fn: Callable[[Params], VelocityFn],
    params: Params,
    x0: Points,
    cond: Cond,
    tolerance: float | None = None,
    *,
    in_float64: bool = True,
) -> ReferenceProgram:
    """Trace a Dopri8 solve in float64, or in float32 on a TPU.

    Args:
        make_velocity_fn: Returns the velocity field for given parameters.
        params: The parameters; floating-point leaves are cast to float64.
        x0: Source points.
        cond: Condition, passed to the velocity field unchanged.
        tolerance: Relative and absolute tolerance; None means 1e-7 in float64 and 1e-6 in float32.
        in_float64: Set to False to use float32 on all devices.
    """
    on_tpu, note = jax.default_backend() == "tpu", ""
    if on_tpu:
        note = "The reference is computed in float32, because TPUs do not support float64."
    elif not in_float64:
        note = "The reference is computed in float32."
    with jax.enable_x64(not note):
        if not note:
            params, x0 = jax.tree.map(_to_float64, (params, x0))
            if _rounds_to_less(make_velocity_fn, params, x0, cond):
                note = (
                    "The velocity field computes with less than float64 precision, which limits "
                    "the reference."
                )
        precision = "float32" if note else "float64"
        tight = TOLERANCE[precision] if tolerance is None else tolerance
        solver = DIFFRAX_SOLVERS[SOLVER.lower()]()

        def solve(params: Params, x0: Points, cond: Cond, tolerance: jax.Array) -> Samples:
            steps = AdaptiveSteps(tolerance, tolerance, ErrorControl.LARGEST_SAMPLE)
            return sample(make_velocity_fn(params), x0, cond, solver=solver, steps=steps)

        lowered = jax.jit(solve).lower(params, x0, cond, jnp.asarray(tight, x0.dtype))
    return ReferenceProgram(lowered, (params, x0, cond), tight, precision, note)


def solve_reference(program: ReferenceProgram, compiled: Callable[..., Samples]) -> Exact:
    """Solve with the reference's tolerance and with 1000 times this tolerance.

    The error of a solve is roughly proportional to its tolerance, so 1/1000 of the difference
    between the two solves estimates the error of the reference. Ten times this estimate is reported
    as its uncertainty.

    Args:
        program: The traced reference.
        compiled: The compiled program, from `program.lowered.compile()`.
    """
    x0 = program.arguments[1]
    with jax.enable_x64(x0.dtype == jnp.float64):
        tight, loose = (
            compiled(*program.arguments, jnp.asarray(factor * program.tolerance, x0.dtype))
            for factor in (1, LOOSER)
        )
        x1 = np.asarray(tight.x1, np.float64)
        difference = rmse(np.asarray(loose.x1, np.float64), x1)
        succeeded = bool(np.all(tight.succeeded))
    failure = "" if succeeded else "Some samples did not reach t = 1, so errors are unreliable."
    info = Reference(
        solver=SOLVER,
        tolerance=program.tolerance,
        precision=program.precision,
        nfe=int(np.max(tight.nfe)),
        uncertainty=float(np.max(difference)) * 10 / LOOSER,
        note=" ".join(filter(None, (program.note, failure))),
    )
    return Exact(info, x1)


def rmse(x: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return the root mean square difference of each sample; infinite if it is not finite.

    Args:
        x: Samples `[batch, *event]`.
        exact: Reference samples of the same shape.

    Returns:
        The error of each sample, `[batch]`: the root of the mean over the event axes.
    """
    square = np.mean(np.square(x - exact).reshape(len(x), -1), axis=1)
    return np.where(np.isfinite(square), np.sqrt(square), np.inf)


def _to_float64(leaf: ArrayLike) -> ArrayLike:
    is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.asarray(leaf, jnp.float64) if is_float else leaf


def _rounds_to_less(
    make_velocity_fn: Callable[[Params], VelocityFn], params: Params, x: Points, cond: Cond
) -> bool:
    """Return whether the velocity field casts float64 values to a narrower type."""
    trace = jax.make_jaxpr(lambda params, t, x, cond: make_velocity_fn(params)(t, x, cond))
    return any(
        eqn.primitive.name == "convert_element_type"
        and isinstance(aval := eqn.invars[0].aval, ShapedArray)
        and aval.dtype == jnp.float64
        and jnp.issubdtype(eqn.params["new_dtype"], jnp.floating)
        and eqn.params["new_dtype"] != jnp.float64
        for eqn in equations(trace(params, jnp.full(len(x), 0.5), x, cond).jaxpr)
    )
