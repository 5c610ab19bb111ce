"""Gradients through a solve: of the steps that it took, or by an ODE that runs back along it.

A loss of `x1` has, at every t, a gradient a(t) with respect to x_t. Back in time it follows
`da/dt = -a . dv/dx`, from the loss's own gradient at t = 1 to the one with respect to x0, and
`a . dv/dtheta`, added up on the way, is the gradient of anything else that v depends on. The
points are found again by solving for them backwards, so that none need be kept.

Source: Chen et al. 2018, arXiv:1806.07366, section 2 and appendix B.
"""

import enum
from collections.abc import Callable
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fmjax._arrays import Cond, expand_like
from fmjax._checks import require
from fmjax.solvers.engine.diffrax_solvers import is_implicit
from fmjax.solvers.engine.nfe_counter import ToTimes
from fmjax.solvers.engine.vector_field import closure_convert, largest_sample_norm
from fmjax.solvers.steppers.ode import FixedStepSolver, solve_fixed
from fmjax.solvers.steps import AdaptiveSteps, FixedSteps, Samples, as_times


class Adjoint(enum.Enum):
    """How a solve is differentiated. Memory is what a gradient needs beside one step's own."""

    RECURSIVE_CHECKPOINT = "recursive_checkpoint"
    """Reverse mode, the exact gradient of the steps that were taken. Of at most n steps
    (`max_steps`) Diffrax's solvers keep about sqrt(2 n) states and take the steps in between
    again; those of `fmjax.solvers.steppers.ode` keep the points of every step. Not for
    `ErrorControl.PER_SAMPLE`, which JAX differentiates forwards only."""
    BACKSOLVE = "backsolve"
    """Reverse mode by an ODE back from t = 1: nothing is kept, however many steps. Exact as the
    solve is, not better; and where trajectories come together forwards they part backwards, so
    that a loose tolerance loses the way. It steps as forwards, under adaptive control with one
    step for the whole batch."""
    FORWARD = "forward"
    """Forward mode (`jax.jvp`), the exact derivative of the steps taken: nothing is kept."""

    @property
    def diffrax(self) -> Any:
        """For a solve by Diffrax, which backsolving does not differentiate itself."""
        checkpointing = self is Adjoint.RECURSIVE_CHECKPOINT
        return diffrax.RecursiveCheckpointAdjoint() if checkpointing else diffrax.ForwardMode()


def check_backsolve(solver: Any, saved: Any) -> None:
    """Refuse a solve that the backward ODE does not undo.

    Raises:
        ValueError: If the solver is implicit, or points along the way are asked for.
    """
    name = type(solver).__name__
    require(not is_implicit(solver), "solver", "be explicit for Adjoint.BACKSOLVE", name)
    require(saved is None, "save_at", "be None for Adjoint.BACKSOLVE", saved)


def backsolved(
    solve: Callable[[jax.Array, Any], Samples],
    velocity_fn: Any,
    x0: jax.Array,
    cond: Any,
    solver: Any,
    steps: FixedSteps | AdaptiveSteps,
) -> Samples:
    """`solve(x0, cond)`, with gradients of `x1` by the adjoint ODE.

    They are with respect to x0, cond and all that the field closes over. A sample that did not
    arrive has none (zero), and if the solve back fails they are NaN.
    """
    samples = _constant(solve, x0, cond)
    # A gradient rule may close over no array: what can have a gradient, and what is only data,
    # are handed over.
    field = closure_convert(velocity_fn, x0, cond, x0.shape[0])
    adaptive = isinstance(steps, AdaptiveSteps)
    numbers = (steps.rtol, steps.atol) if adaptive else jnp.asarray(as_times(steps), x0.dtype)
    wanted, rest = eqx.partition((field, cond), eqx.is_inexact_array)
    data, static = eqx.partition(rest, eqx.is_array)

    @jax.custom_vjp
    def attach(x0: jax.Array, wanted: Any, given: Any) -> jax.Array:
        del x0, wanted
        return given[0].x1

    def forward(x0: jax.Array, wanted: Any, given: Any) -> Any:
        return attach(x0, wanted, given), (wanted, given)

    def backward(kept: Any, bar: jax.Array) -> Any:
        wanted, (samples, data, numbers) = kept
        wanted = jax.tree.map(jnp.asarray, wanted)  # Numbers of Python may be among them.

        def velocity(wanted: Any, t: jax.Array, x: jax.Array) -> jax.Array:
            field, cond = eqx.combine(wanted, data, static)
            return field(t, x, cond)

        alive = expand_like(samples.succeeded, bar)
        x1, bar = (jnp.where(alive, a, 0.0) for a in (samples.x1, bar))
        return *_solve_back(velocity, wanted, x1, bar, solver, steps, numbers), None

    attach.defvjp(forward, backward)
    return samples._replace(x1=attach(x0, wanted, (samples, data, numbers)))


def without_rejected(
    velocity_fn: Callable[..., jax.Array], x0: jax.Array, cond: Cond
) -> Callable[..., jax.Array]:
    """The field of a batch, without the gradients of evaluations whose result is not used.

    A step that leaves the domain of the field (a square root, a logarithm) is rejected, and the
    gradient of its result is zero; times an infinite slope that would be NaN.

    Returns:
        `field(t, x, cond)` with t of shape `[batch]`, for reverse mode only.
    """

    def evaluate(
        field: Callable[..., jax.Array], t: jax.Array, x: jax.Array, cond: Cond
    ) -> jax.Array:
        return field(t, x, cond)

    def backward(pull: Callable[..., Any], bar: jax.Array) -> Any:
        used = jnp.any(bar != 0.0)
        return jax.tree.map(
            lambda g: g if g.dtype == jax.dtypes.float0 else jnp.where(used, g, 0.0), pull(bar)
        )

    differentiable = jax.custom_vjp(evaluate)
    differentiable.defvjp(partial(jax.vjp, evaluate), backward)
    return partial(differentiable, closure_convert(velocity_fn, x0, cond, x0.shape[0]))


def _constant(fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)` without gradients, not even of what it closes over."""
    closed = eqx.filter_closure_convert(fn, *args)
    arrays, rest = eqx.partition((closed, args), eqx.is_inexact_array)
    fn, args = eqx.combine(jax.lax.stop_gradient(arrays), rest)
    return fn(*args)


def _solve_back(
    velocity: Any, wanted: Any, x1: jax.Array, bar: jax.Array, solver: Any, steps: Any, numbers: Any
) -> tuple[jax.Array, Any]:
    """The gradients with respect to x0 and to what is `wanted`, from that to x1."""
    # The ODE is linear in the gradient: its largest number is made one, so that an absolute
    # tolerance means the same whatever the loss is measured in.
    size = jnp.max(jnp.abs(bar))
    size = jnp.where(size > 0.0, size, 1.0)

    def back(r: jax.Array, y: Any, args: Any = None) -> Any:
        """`y` is the points, their gradient, and the sum for what is wanted, at t = 1 - r."""
        del args
        x, a, sums = y
        t = jnp.broadcast_to(1.0 - r, x.shape[:1])
        dx, pull = jax.vjp(lambda wanted, x: velocity(wanted, t, x), wanted, x)
        of_wanted, of_x = pull(a)
        return -dx, of_x, jax.tree.map(lambda new, like: new.astype(like.dtype), of_wanted, sums)

    wide = jax.tree.map(
        lambda w: jnp.zeros(w.shape, jnp.promote_types(w.dtype, jnp.float32)), wanted
    )
    solve = _step_back if isinstance(solver, FixedStepSolver) else _diffeqsolve_back
    (_, a, sums), arrived = solve(back, (x1, bar / size, wide), solver, steps, numbers)
    size = jnp.where(arrived, size, jnp.nan)
    return size * a, jax.tree.map(lambda s, w: (size * s).astype(w.dtype), sums, wanted)


def _step_back(back: Any, y: Any, solver: Any, steps: Any, times: jax.Array) -> Any:
    """By one of our own solvers, whose points are one array: everything as one sample."""
    del steps
    row, parts_of = ravel_pytree(y)

    def field(r: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        return ravel_pytree(back(r, parts_of(rows[0])))[0][None], jnp.zeros((1,), jnp.int32)

    solved = solve_fixed(solver, field, row[None], _reversed(times), None)
    return parts_of(solved.x1[0]), True


def _diffeqsolve_back(back: Any, y: Any, solver: Any, steps: Any, numbers: Any) -> Any:
    """By Diffrax, under adaptive control with one step for all."""
    dtype = y[0].dtype
    if isinstance(steps, AdaptiveSteps):
        rtol, atol = numbers
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
        controller, max_steps = ToTimes(_reversed(numbers)), len(numbers) - 1
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
    ends: Any = solution.ys
    return jax.tree.map(lambda a: a[0], ends), solution.result == diffrax.RESULTS.successful


def _largest_norm(y: Any) -> jax.Array:
    """Of any sample's points or gradient. The sums decide nothing, so need no shorter steps.

    Source: Kidger et al. 2021, arXiv:2009.09457.
    """
    x, a, _ = y
    return jnp.maximum(largest_sample_norm(x), largest_sample_norm(a))


def _reversed(times: jax.Array) -> jax.Array:
    """The grid of `1 - t`, padding last again."""
    back = 1.0 - times[::-1]
    padding = jnp.sum(back <= 0.0) - 1
    return jnp.take(back, jnp.arange(len(back)) + padding, mode="clip")
