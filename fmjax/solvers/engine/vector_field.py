"""What a solve by Diffrax is given: the points of a batch together, or one sample by itself."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr

from fmjax._arrays import event_axes
from fmjax._inputs import require_like
from fmjax.paths import evaluations
from fmjax.solvers.engine.diffrax_solvers import is_implicit


def checked_velocity(velocity_fn: Any, t: jax.Array, x: jax.Array, cond: Any) -> jax.Array:
    """The velocity in the points' precision.

    Raises:
        ValueError: If it is not shaped like them.
    """
    velocity = velocity_fn(t, x, cond)
    require_like("velocity_fn", velocity, x)
    return velocity.astype(x.dtype)


def largest_sample_norm(x: Any) -> jax.Array:
    """The largest of the samples' rms over their event axes; see `_rms`."""
    return jnp.max(_rms(x, event_axes(x)))


def rms_norm(x: Any) -> jax.Array:
    """The rms over everything; see `_rms`."""
    return _rms(x, None)


def _rms(x: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
    """The rms over `axes` of an error over its tolerance.

    It decides step lengths, which a gradient takes as constants, so it has no gradient. (That of
    a root is infinite at zero, the error of every network that is initialised with zeros.)
    An error that is NaN (infinity by infinity) is infinite: the step is shortened.
    """
    x = jax.lax.stop_gradient(jnp.where(jnp.isnan(x), jnp.inf, x))
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=axes))


class BatchedField(NamedTuple):
    """What is solved: the points of a batch together, or one sample by itself.

    Attributes:
        field: `field(t, x, cond)`, t scalar.
        field_of_one: The same for one sample without batch axis.
        evaluations: `evaluations(t)` of one call of `field_of_one`, a scalar.
        batch: The batch axis, () for one sample.
        norm: Of an error over its tolerance.
    """

    field: Callable[..., jax.Array]
    field_of_one: Callable[..., jax.Array]
    evaluations: Callable[[jax.Array], jax.Array]
    batch: tuple[int, ...]
    norm: Callable[[jax.Array], jax.Array]

    def cost(self, t: jax.Array) -> jax.Array:
        """Network evaluations of one call of `field`, of each example."""
        return jnp.broadcast_to(self.evaluations(t), self.batch)


def make_batched_field(velocity_fn: Any, batch: tuple[int, ...], norm: Any) -> BatchedField:
    """The points of a batch, all at one time."""
    return BatchedField(
        field=lambda t, x, cond: checked_velocity(velocity_fn, jnp.broadcast_to(t, batch), x, cond),
        field_of_one=partial(_velocity_of_one, velocity_fn),
        evaluations=partial(_evaluations_of_one, velocity_fn),
        batch=batch,
        norm=norm,
    )


def _velocity_of_one(velocity_fn: Any, t: jax.Array, x: jax.Array, cond: Any) -> jax.Array:
    cond = jax.tree.map(lambda c: c[None], cond)
    return checked_velocity(velocity_fn, t[None], x[None], cond)[0]


def _evaluations_of_one(velocity_fn: Any, t: jax.Array) -> jax.Array:
    return evaluations(velocity_fn, t[None])[0].astype(jnp.int32)


def closure_convert(velocity_fn: Any, x0: jax.Array, cond: Any, size: int) -> Any:
    """The field of `size` samples like these: a pytree of all arrays that it closes over.

    As `equinox.filter_closure_convert`, which refuses arguments on a mesh, for it compares
    their shardings too.
    """
    given = (jnp.zeros(x0.shape[:1], x0.dtype), x0, cond)
    rows = jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype), given)
    closed = jax.make_jaxpr(partial(checked_velocity, velocity_fn))(*rows)

    def field(arrays: Any, t: jax.Array, x: jax.Array, cond: Any) -> jax.Array:
        (velocity,) = eval_jaxpr(closed.jaxpr, arrays, *jax.tree.leaves((t, x, cond)))
        return velocity

    return jax.tree_util.Partial(field, closed.consts)


def make_sample_field(
    velocity_fn: Any, solver: Any, x0: jax.Array, cond: Any, num: int
) -> BatchedField:
    """One of the samples `x0`; `num` of them, under vmap, call the field together again.

    Without that, `vmap` would turn a choice between two networks (guidance inside its interval)
    into both of them.
    """
    field_of_one = partial(_velocity_of_one, velocity_fn)
    # Batching rules may close over no array that is traced, such as parameters under `jit`.
    fields = {size: closure_convert(velocity_fn, x0, cond, size) for size in {1, num}}
    arrays, static = eqx.partition(fields, eqx.is_array)

    @jax.custom_batching.custom_vmap
    def rejoined(arrays: Any, t: jax.Array, x: jax.Array, cond: Any) -> jax.Array:
        return _velocity_of_one(eqx.combine(arrays, static)[1], t, x, cond)

    @rejoined.def_vmap
    def _(axis_size: int, batched: Any, arrays: Any, t: Any, x: Any, cond: Any) -> Any:
        def spread(value: jax.Array, is_batched: bool) -> jax.Array:
            return value if is_batched else jnp.broadcast_to(value, (axis_size, *value.shape))

        t, x, cond = jax.tree.map(spread, (t, x, cond), tuple(batched[1:]))
        return eqx.combine(arrays, static)[axis_size](t, x, cond), True

    return BatchedField(
        # A Jacobian cannot be taken through the rejoined field.
        field=field_of_one if is_implicit(solver) else partial(rejoined, arrays),
        field_of_one=field_of_one,
        evaluations=partial(_evaluations_of_one, velocity_fn),
        batch=(),
        norm=rms_norm,
    )
