"""Vector fields for Diffrax: of all samples of a batch at one time, or of a single sample."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jaxtyping import PyTree

from fmjax._arrays import Cond, event_axes
from fmjax._inputs import require_like
from fmjax.paths import VelocityFn, evaluations
from fmjax.solvers.engine.diffrax_solvers import Solver, is_implicit


def checked_velocity(velocity_fn: VelocityFn, t: jax.Array, x: jax.Array, cond: Cond) -> jax.Array:
    """Evaluate a velocity field, check the shape of the result and cast it to the dtype of `x`.

    Raises:
        ValueError: If the velocity does not have the shape of `x`.
    """
    velocity = velocity_fn(t, x, cond)
    require_like("velocity_fn", velocity, x)
    return velocity.astype(x.dtype)


def largest_sample_norm(x: jax.Array) -> jax.Array:
    """The maximum over samples of the rms over event axes, as a norm of scaled errors."""
    return jnp.max(_rms(x, event_axes(x)))


def rms_norm(x: jax.Array) -> jax.Array:
    """The rms over all axes, as a norm of scaled errors."""
    return _rms(x, None)


def _rms(x: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
    """The rms over `axes` of an error divided by its tolerance, without a gradient.

    It sets step sizes, which gradients treat as constants. (The derivative of the square root is
    infinite at zero, which is the error of every network that is initialized with zeros.)
    NaN counts as infinite, so that the step is shortened.
    """
    x = jax.lax.stop_gradient(jnp.where(jnp.isnan(x), jnp.inf, x))
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=axes))


class BatchedField(NamedTuple):
    """A velocity field as one solve of Diffrax uses it: for a batch, or for a single sample.

    Attributes:
        field: Velocity `field(t, x, cond)` of everything that is solved, t scalar.
        field_of_one: Velocity `field_of_one(t, x, cond)` of one sample without batch axis.
        evaluations: Network evaluations `evaluations(t)` of one call of `field_of_one`, a scalar.
        batch: Shape of the batch axis, () for a single sample.
        norm: Norm of an error divided by its tolerance.
    """

    field: Callable[..., jax.Array]
    field_of_one: Callable[..., jax.Array]
    evaluations: Callable[[jax.Array], jax.Array]
    batch: tuple[int, ...]
    norm: Callable[[jax.Array], jax.Array]

    def cost(self, t: jax.Array) -> jax.Array:
        """Count the network evaluations of each sample in one call of `field` at time t."""
        return jnp.broadcast_to(self.evaluations(t), self.batch)


def make_batched_field(
    velocity_fn: VelocityFn, batch: tuple[int, ...], norm: Callable[[jax.Array], jax.Array]
) -> BatchedField:
    """Make the field of a batch whose samples are all at the same time."""
    return BatchedField(
        field=lambda t, x, cond: checked_velocity(velocity_fn, jnp.broadcast_to(t, batch), x, cond),
        field_of_one=partial(_velocity_of_one, velocity_fn),
        evaluations=partial(_evaluations_of_one, velocity_fn),
        batch=batch,
        norm=norm,
    )


def _velocity_of_one(velocity_fn: VelocityFn, t: jax.Array, x: jax.Array, cond: Cond) -> jax.Array:
    cond = jax.tree.map(lambda c: c[None], cond)
    return checked_velocity(velocity_fn, t[None], x[None], cond)[0]


def _evaluations_of_one(velocity_fn: VelocityFn, t: jax.Array) -> jax.Array:
    return evaluations(velocity_fn, t[None])[0].astype(jnp.int32)


def closure_convert(
    velocity_fn: VelocityFn, x0: jax.Array, cond: Cond, size: int
) -> jax.tree_util.Partial:
    """Trace the field for a batch of `size` samples, as a pytree of the arrays it closes over.

    `equinox.filter_closure_convert` does the same, but compares the shardings of its arguments
    and so refuses arrays on a mesh.
    """
    inputs = (jnp.zeros(x0.shape[:1], x0.dtype), x0, cond)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype), inputs)
    closed = jax.make_jaxpr(partial(checked_velocity, velocity_fn))(*shapes)

    def field(arrays: PyTree, t: jax.Array, x: jax.Array, cond: Cond) -> jax.Array:
        (velocity,) = eval_jaxpr(closed.jaxpr, arrays, *jax.tree.leaves((t, x, cond)))
        return velocity

    return jax.tree_util.Partial(field, closed.consts)


def make_sample_field(
    velocity_fn: VelocityFn, solver: Solver, x0: jax.Array, cond: Cond, num: int
) -> BatchedField:
    """Make the field of a single sample that calls `velocity_fn` on a batch under `vmap`.

    A plain `vmap` would turn a choice between two networks (guidance inside an interval) into an
    evaluation of both.

    Args:
        velocity_fn: Velocity field of a batch.
        solver: Solver that evaluates the field.
        x0: Points `[batch, *event]`, for the shape and dtype of a sample.
        cond: Condition, with a leading batch axis.
        num: Number of samples that are mapped over.
    """
    field_of_one = partial(_velocity_of_one, velocity_fn)
    # Batching rules cannot close over traced arrays, such as parameters under `jit`.
    fields = {size: closure_convert(velocity_fn, x0, cond, size) for size in {1, num}}
    arrays, static = eqx.partition(fields, eqx.is_array)

    @jax.custom_batching.custom_vmap
    def rebatched(arrays: PyTree, t: jax.Array, x: jax.Array, cond: Cond) -> jax.Array:
        return _velocity_of_one(eqx.combine(arrays, static)[1], t, x, cond)

    @rebatched.def_vmap
    def _(
        axis_size: int,
        batched: Sequence[PyTree],
        arrays: PyTree,
        t: jax.Array,
        x: jax.Array,
        cond: Cond,
    ) -> tuple[jax.Array, bool]:
        def broadcast(value: jax.Array, is_batched: bool) -> jax.Array:
            return value if is_batched else jnp.broadcast_to(value, (axis_size, *value.shape))

        t, x, cond = jax.tree.map(broadcast, (t, x, cond), tuple(batched[1:]))
        return eqx.combine(arrays, static)[axis_size](t, x, cond), True

    return BatchedField(
        # JAX cannot take a Jacobian of a function with a custom batching rule.
        field=field_of_one if is_implicit(solver) else partial(rebatched, arrays),
        field_of_one=field_of_one,
        evaluations=partial(_evaluations_of_one, velocity_fn),
        batch=(),
        norm=rms_norm,
    )
