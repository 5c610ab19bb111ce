"""Gradients of a solve: through the steps that were taken, or by the adjoint ODE.

The gradient a(t) of a loss of `x1` with respect to x_t follows `da/dt = -a . dv/dx` from t = 1,
where it is the gradient of the loss, to t = 0, where it is the gradient with respect to x0. The
integral of `a . dv/dtheta` is the gradient with respect to parameters theta of v. The points are
solved backwards at the same time, so that none need to be stored.

Reference: Chen et al. 2018, arXiv:1806.07366, section 2 and appendix B.
"""

import enum
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from diffrax import AbstractAdjoint
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from fmjax._arrays import Cond, expand_like
from fmjax._checks import require
from fmjax.paths import VelocityFn
from fmjax.solvers.engine.diffrax_solvers import Solver, is_implicit
from fmjax.solvers.engine.nfe_counter import ToTimes
from fmjax.solvers.engine.vector_field import closure_convert, largest_sample_norm
from fmjax.solvers.steppers.ode import FixedStepSolver, solve_fixed
from fmjax.solvers.steps import AdaptiveSteps, FixedSteps, Samples, Time, as_times


class Adjoint(enum.Enum):
    """How a solve is differentiated, and the memory in addition to that of one step."""

    RECURSIVE_CHECKPOINT = "recursive_checkpoint"
    """Reverse mode: the exact gradient of the steps that were taken. With at most n steps
    (`max_steps`) Diffrax's solvers store about sqrt(2 n) states and recompute the steps in between;
    solvers of `fmjax.solvers.steppers.ode` store the points of every step. Not for
    `ErrorControl.PER_SAMPLE`, which JAX differentiates in forward mode only."""
    BACKSOLVE = "backsolve"
    """Reverse mode by an ODE from t = 1 backwards, which stores nothing for any number of steps.
    The gradient is as accurate as the solve; contracting flows expand backwards in time, so that
    loose tolerances diverge. It takes the same kind of steps as the solve; adaptive steps have one
    step size for the batch."""
    FORWARD = "forward"
    """Forward mode (`jax.jvp`): the exact derivative of the steps that were taken. It stores
    nothing."""

    @property
    def diffrax(self) -> AbstractAdjoint:
        """The adjoint that Diffrax's solve uses; `BACKSOLVE` does not differentiate that solve."""
        checkpointing = self is Adjoint.RECURSIVE_CHECKPOINT
        return diffrax.RecursiveCheckpointAdjoint() if checkpointing else diffrax.ForwardMode()


def check_backsolve(solver: Solver, saved: jax.Array | None) -> None:
    """Raise if `Adjoint.BACKSOLVE` does not support the solve.

    Raises:
        ValueError: If the solver is implicit, or there are `saved` times.
    """
    name = type(solver).__name__
    require(not is_implicit(solver), "solver", "be explicit for Adjoint.BACKSOLVE", name)
    require(saved is None, "save_at", "be None for Adjoint.BACKSOLVE", saved)


# The samples, arrays that are not differentiable, and the tolerances or time grid.
_Constants: TypeAlias = tuple[Samples, PyTree, PyTree]
# The points, their gradient, and the sum of the gradient with respect to the inputs of the field.
_BackState: TypeAlias = tuple[jax.Array, jax.Array, PyTree]


def with_backsolve_adjoint(
    solve: Callable[[jax.Array, Cond], Samples],
    velocity_fn: VelocityFn,
    x0: jax.Array,
    cond: Cond,
    solver: Solver,
    steps: FixedSteps | AdaptiveSteps,
) -> Samples:
    """Compute `solve(x0, cond)` with gradients of `x1` by the adjoint ODE.

    The gradients are with respect to x0, cond and everything that the field closes over. They are
    zero for a sample that failed, and NaN if the backward solve fails.
    """
    samples = _without_gradients(solve, x0, cond)
    # A gradient rule cannot close over arrays: differentiable ones and others are its arguments.
    field = closure_convert(velocity_fn, x0, cond, x0.shape[0])
    adaptive = isinstance(steps, AdaptiveSteps)
    settings = (steps.rtol, steps.atol) if adaptive else jnp.asarray(as_times(steps), x0.dtype)
    inputs, others = eqx.partition((field, cond), eqx.is_inexact_array)
    data, static = eqx.partition(others, eqx.is_array)

    @jax.custom_vjp
    def attach(x0: jax.Array, inputs: PyTree, constants: _Constants) -> jax.Array:
        del x0, inputs
        return constants[0].x1

    def forward(
        x0: jax.Array, inputs: PyTree, constants: _Constants
    ) -> tuple[jax.Array, tuple[PyTree, _Constants]]:
        return attach(x0, inputs, constants), (inputs, constants)

    def backward(
        residuals: tuple[PyTree, _Constants], x1_bar: jax.Array
    ) -> tuple[jax.Array, PyTree, None]:
        inputs, (samples, data, settings) = residuals
        inputs = jax.tree.map(jnp.asarray, inputs)  # They may contain Python numbers.

        def velocity(inputs: PyTree, t: jax.Array, x: jax.Array) -> jax.Array:
            field, cond = eqx.combine(inputs, data, static)
            return field(t, x, cond)

        succeeded = expand_like(samples.succeeded, x1_bar)
        x1, x1_bar = (jnp.where(succeeded, a, 0.0) for a in (samples.x1, x1_bar))
        return *_solve_back(velocity, inputs, x1, x1_bar, solver, steps, settings), None

    attach.defvjp(forward, backward)
    return samples._replace(x1=attach(x0, inputs, (samples, data, settings)))


def without_rejected(
    velocity_fn: VelocityFn, x0: jax.Array, cond: Cond
) -> Callable[..., jax.Array]:
    """Make the field of a batch without gradients of evaluations whose result is not used.

    A step that leaves the domain of the field (of a square root or logarithm) is rejected, and the
    gradient of its result is zero; multiplied by an infinite derivative it would be NaN.

    Returns:
        `field(t, x, cond)` with t of shape `[batch]`, for reverse mode only.
    """

    def evaluate(
        field: Callable[..., jax.Array], t: jax.Array, x: jax.Array, cond: Cond
    ) -> jax.Array:
        return field(t, x, cond)

    def backward(vjp: Callable[..., PyTree], velocity_bar: jax.Array) -> PyTree:
        is_used = jnp.any(velocity_bar != 0.0)
        return jax.tree.map(
            lambda g: g if g.dtype == jax.dtypes.float0 else jnp.where(is_used, g, 0.0),
            vjp(velocity_bar),
        )

    differentiable = jax.custom_vjp(evaluate)
    differentiable.defvjp(partial(jax.vjp, evaluate), backward)
    return partial(differentiable, closure_convert(velocity_fn, x0, cond, x0.shape[0]))


def _without_gradients(fn: Callable[[jax.Array, Cond], Samples], *args: PyTree) -> Samples:
    """Compute `fn(*args)` without gradients, including those of what it closes over."""
    closed = eqx.filter_closure_convert(fn, *args)
    arrays, others = eqx.partition((closed, args), eqx.is_inexact_array)
    fn, args = eqx.combine(jax.lax.stop_gradient(arrays), others)
    return fn(*args)


def _solve_back(
    velocity: Callable[[PyTree, jax.Array, jax.Array], jax.Array],
    inputs: PyTree,
    x1: jax.Array,
    x1_bar: jax.Array,
    solver: Solver,
    steps: FixedSteps | AdaptiveSteps,
    settings: PyTree,
) -> tuple[jax.Array, PyTree]:
    """Return the gradients with respect to x0 and to `inputs`, from that with respect to x1."""
    # The ODE is linear in the gradient. Dividing by its largest number makes the absolute tolerance
    # independent of the scale of the loss.
    scale = jnp.max(jnp.abs(x1_bar))
    scale = jnp.where(scale > 0.0, scale, 1.0)

    def back(r: jax.Array, y: _BackState, args: None = None) -> _BackState:
        """Compute the derivative of the state `y` with respect to r, at t = 1 - r."""
        del args
        x, a, sums = y
        t = jnp.broadcast_to(1.0 - r, x.shape[:1])
        dx, vjp = jax.vjp(lambda inputs, x: velocity(inputs, t, x), inputs, x)
        inputs_bar, x_bar = vjp(a)
        sums_rate = jax.tree.map(lambda new, like: new.astype(like.dtype), inputs_bar, sums)
        return -dx, x_bar, sums_rate

    # Accumulated in at least float32.
    zeros = jax.tree.map(
        lambda w: jnp.zeros(w.shape, jnp.promote_types(w.dtype, jnp.float32)), inputs
    )
    y: _BackState = (x1, x1_bar / scale, zeros)
    if isinstance(solver, FixedStepSolver):
        (_, a, sums), succeeded = _step_back(back, y, solver, settings)
    else:
        (_, a, sums), succeeded = _diffeqsolve_back(back, y, solver, steps, settings)
    scale = jnp.where(succeeded, scale, jnp.nan)
    return scale * a, jax.tree.map(lambda s, w: (scale * s).astype(w.dtype), sums, inputs)


def _step_back(
    back: Callable[..., _BackState], y: _BackState, solver: FixedStepSolver, times: jax.Array
) -> tuple[_BackState, bool]:
    """Solve the adjoint ODE with a fixed-step solver, the state flattened to one sample."""
    row, unravel = ravel_pytree(y)

    def field(r: Time, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        return ravel_pytree(back(r, unravel(rows[0])))[0][None], jnp.zeros((1,), jnp.int32)

    solved = solve_fixed(solver, field, row[None], _reversed(times), None)
    return unravel(solved.x1[0]), True


def _diffeqsolve_back(
    back: Callable[..., _BackState],
    y: _BackState,
    solver: diffrax.AbstractSolver,
    steps: FixedSteps | AdaptiveSteps,
    settings: PyTree,
) -> tuple[_BackState, jax.Array]:
    """Solve the adjoint ODE with Diffrax; adaptive steps have one step size for the batch."""
    dtype = y[0].dtype
    if isinstance(steps, AdaptiveSteps):
        rtol, atol = settings
        controller, max_steps = (
            diffrax.PIDController(
                rtol=rtol,
                atol=atol,
                norm=_largest_norm,
                pcoeff=steps.pcoeff,
                icoeff=steps.icoeff,
                dcoeff=steps.dcoeff,
            ),
            steps.max_steps,
        )
    else:
        controller, max_steps = ToTimes(_reversed(settings)), len(settings) - 1
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(back),
        solver,
        jnp.zeros((), dtype),
        jnp.ones((), dtype),
        None,
        y,
        stepsize_controller=controller,
        max_steps=max_steps,
        adjoint=diffrax.ForwardMode(),
        throw=False,
    )
    ends = jax.tree.map(lambda a: a[0], solution.ys)
    return ends, solution.result == diffrax.RESULTS.successful


def _largest_norm(y: _BackState) -> jax.Array:
    """The largest norm of a sample's points or gradient.

    The sums are ignored: they do not affect the solution, so they need no shorter steps.

    Reference: Kidger et al. 2021, arXiv:2009.09457.
    """
    x, a, _ = y
    return jnp.maximum(largest_sample_norm(x), largest_sample_norm(a))


def _reversed(times: jax.Array) -> jax.Array:
    """Reverse a time grid as `1 - times`, with its padding of ones still at the end."""
    reversed_times = 1.0 - times[::-1]
    num_padding = jnp.sum(reversed_times <= 0.0) - 1
    indices = jnp.arange(len(reversed_times)) + num_padding
    return jnp.take(reversed_times, indices, mode="clip")
