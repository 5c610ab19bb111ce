"""The tight solve that a comparison measures errors against, in float64 where there is any."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._arrays import Cond, Params, Points
from fmjax._jaxprs import equations
from fmjax.paths import VelocityFn
from fmjax.report.comparison import Reference
from fmjax.solvers import DIFFRAX_SOLVERS, AdaptiveSteps, ErrorControl, sample

SOLVER = "Dopri8"
# In float32 a tighter solve takes rounding errors for its own and only costs more.
TOLERANCE = {"float64": 1e-7, "float32": 1e-6}
# How much looser the second solve is that tells the reference's own error. A digits DiT takes
# 6,790 evaluations at 1e-7 and 1,954 at 1e-4; its errors were 0.6 to 5 times the tolerance.
LOOSER = 1000


class ReferenceProgram(NamedTuple):
    """A reference that waits to be compiled.

    Attributes:
        lowered: `lowered.compile()` gives a program of (params, x0, cond, tolerance).
        arguments: params, x0 and cond in the precision of the solve.
        tolerance: Relative and absolute.
        precision: "float64" or "float32".
        note: Why it is not float64.
    """

    lowered: jax.stages.Lowered
    arguments: tuple[Params, Points, Cond]
    tolerance: float
    precision: str
    note: str


class Exact(NamedTuple):
    """The reference in figures, and its end points on the host, float64."""

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
        make_velocity_fn: The field of some parameters.
        params: Its parameters; floating-point leaves are taken to float64.
        x0: Starting points.
        cond: Passed to the field as it is.
        tolerance: None takes 1e-7 in float64, 1e-6 in float32.
        in_float64: False takes float32 anywhere.
    """
    on_tpu, note = jax.default_backend() == "tpu", ""
    if on_tpu:
        note = "A TPU has no float64 of its own, so the reference is one of float32."
    elif not in_float64:
        note = "The reference is one of float32."
    with jax.enable_x64(not note):
        if not note:
            params, x0 = jax.tree.map(_to_float64, (params, x0))
            if _rounds_to_less(make_velocity_fn, params, x0, cond):
                note = "The field computes in less than float64, which limits the reference too."
        precision = "float32" if note else "float64"
        tight = TOLERANCE[precision] if tolerance is None else tolerance
        solver = DIFFRAX_SOLVERS[SOLVER.lower()]()

        def solve(params: Params, x0: Points, cond: Cond, tolerance: jax.Array) -> Any:
            steps = AdaptiveSteps(tolerance, tolerance, ErrorControl.LARGEST_SAMPLE)
            return sample(make_velocity_fn(params), x0, cond, solver=solver, steps=steps)

        lowered = jax.jit(solve).lower(params, x0, cond, jnp.asarray(tight, x0.dtype))
    return ReferenceProgram(lowered, (params, x0, cond), tight, precision, note)


def solve_reference(program: ReferenceProgram, compiled: Callable[..., Any]) -> Exact:
    """Solve at the reference's tolerance, and at a thousand times it to see how far that moves.

    The error of a solve is about proportional to its tolerance, so a thousandth of that is
    the reference's own error; ten times as much is given as its uncertainty.
    """
    x0 = program.arguments[1]
    with jax.enable_x64(x0.dtype == jnp.float64):
        tight, loose = (
            compiled(*program.arguments, jnp.asarray(factor * program.tolerance, x0.dtype))
            for factor in (1, LOOSER)
        )
        x1 = np.asarray(tight.x1, np.float64)
        moved = rmse(np.asarray(loose.x1, np.float64), x1)
        arrived = bool(np.all(tight.succeeded))
    late = "" if arrived else "It did not bring every sample to t = 1: its errors mean little."
    info = Reference(
        solver=SOLVER,
        tolerance=program.tolerance,
        precision=program.precision,
        nfe=int(np.max(tight.nfe)),
        uncertainty=float(np.max(moved)) * 10 / LOOSER,
        note=" ".join(filter(None, (program.note, late))),
    )
    return Exact(info, x1)


def rmse(x: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Root mean square difference of each sample, over its event axes; infinite where NaN."""
    square = np.mean(np.square(x - exact).reshape(len(x), -1), axis=1)
    return np.where(np.isfinite(square), np.sqrt(square), np.inf)


def _to_float64(leaf: Any) -> Any:
    is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.asarray(leaf, jnp.float64) if is_float else leaf


def _rounds_to_less(
    make_velocity_fn: Callable[[Params], VelocityFn], params: Params, x: Points, cond: Cond
) -> bool:
    """Whether the field, given float64, rounds anything to a narrower type on its way."""
    field = jax.make_jaxpr(lambda params, t, x, cond: make_velocity_fn(params)(t, x, cond))
    return any(
        eqn.primitive.name == "convert_element_type"
        and eqn.invars[0].aval.dtype == jnp.float64
        and jnp.issubdtype(eqn.params["new_dtype"], jnp.floating)
        and eqn.params["new_dtype"] != jnp.float64
        for eqn in equations(field(params, jnp.full(len(x), 0.5), x, cond).jaxpr)
    )
