"""What a velocity field is, and what a network is, to the rest of the library."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from fmjax._arrays import Cond, Params, Points, Times
from fmjax._inputs import require_function, require_like


@runtime_checkable
class VelocityFn(Protocol):
    """The velocity `dx/dt` of every point at its time.

    Any function `(t, x, cond) -> velocity` is one: t `[batch]`, x `[batch, *event]`, the
    result shaped like x. Laws: pure; each example's velocity depends on that example alone.
    A field that calls a network more than once says so by a method `evaluations(t)`.
    """

    def __call__(self, t: Times, x: Points, cond: Cond = None) -> Points:
        """Give the velocity at `(t, x)`."""
        ...


class VelocityNet(NamedTuple):
    """A network as a pair of pure functions; `params` is a nested dict of float32 arrays.

    Attributes:
        init: `init(key) -> params`.
        apply: `apply(params, t, x, cond) -> prediction`, shaped like x, float32: a velocity,
            or x1 or x0, as the objective it was trained with says.
        tensor_axes: By the dotted name of a parameter, the axis of it that the mesh axis
            `tensor` splits; those that are not named are not split.
    """

    init: Callable[[Any], Params]
    apply: Callable[..., jax.Array]
    tensor_axes: Mapping[str, int] = MappingProxyType({})


@runtime_checkable
class FlowMapFn(Protocol):
    """The mean velocity of every point on its way from time t, where it is, to time r.

    `u(r, t, x, cond)`: r and t `[batch]`, x `[batch, *event]`, the result shaped like x. The
    trajectory through x at t is at `x + (r - t) u` at r, and for r = t the mean is the velocity
    itself. Laws: as of a `VelocityFn`, and one map after another is the map over both.

    Source: Geng et al. 2025, arXiv:2505.13447, equation 3, with t and r for its t and r and noise
    at 0; Boffi et al. 2024, arXiv:2406.07507 (flow maps).
    """

    def __call__(self, r: Times, t: Times, x: Points, cond: Cond = None) -> Points:
        """Give the mean velocity from t to r of the trajectory that is at x at t."""
        ...


class FlowMapNet(NamedTuple):
    """A network that is a flow map, as pure functions.

    Attributes:
        init: `init(key) -> params`.
        apply: `apply(params, r, t, x, cond, guidance) -> mean velocity`, shaped like x, float32;
            guidance `[batch, 3]` (`FlowMapCond`), None for a network without that input.
        tensor_axes: As of a `VelocityNet`.
        guided: Whether guidance is one of its inputs.
    """

    init: Callable[[Any], Params]
    apply: Callable[..., jax.Array]
    tensor_axes: Mapping[str, int] = MappingProxyType({})
    guided: bool = False


def evaluations(velocity_fn: Callable[..., Any], t: Times) -> Int[Array, " batch"]:
    """How many network evaluations one call at times `t` costs each example (guidance: two)."""
    count = getattr(velocity_fn, "evaluations", None)
    return jnp.ones(t.shape, jnp.int32) if count is None else count(t)


class CountedField(NamedTuple):
    """A velocity field or a flow map made from others, which says what a call costs.

    Attributes:
        fn: The field `(t, x, cond)`, or the map `(r, t, x, cond)`.
        evaluations: Network evaluations of each example at times t, `[batch]` int32.
    """

    fn: Callable[..., Points]
    evaluations: Callable[[Times], Int[Array, " batch"]]

    def __call__(self, *args: Any, **kwargs: Any) -> Points:
        """Give what `fn` gives."""
        return self.fn(*args, **kwargs)


def velocity_of(map_fn: FlowMapFn) -> VelocityFn:
    """The velocity field of a flow map, `v(t, x) = u(t, t, x)`; it costs what the map does."""
    return CountedField(
        lambda t, x, cond=None: map_fn(t, t, x, cond), lambda t: evaluations(map_fn, t)
    )


def over_interval(velocity_fn: VelocityFn, start: Any, end: Any) -> VelocityFn:
    """The motion from time `start` to time `end`, as its own time r goes from 0 to 1.

    `v'(r, x) = (end - start) v((1 - r) start + r end, x)`, exactly at `start` and `end` for
    r = 0 and 1. Backwards where `end` is less than `start`. It costs what `velocity_fn` costs
    at those times.

    Args:
        velocity_fn: The field.
        start: A time, one number.
        end: Another.
    """
    require_function("velocity_fn", velocity_fn)

    def at(r: Times) -> Times:
        return (1.0 - r) * start + r * end

    def velocity(r: Times, x: Points, cond: Cond = None) -> Points:
        value = velocity_fn(at(r), x, cond)
        require_like("velocity_fn", value, x)
        return (end - start) * value

    return CountedField(velocity, lambda r: evaluations(velocity_fn, at(r)))


def reversed_time(velocity_fn: VelocityFn) -> VelocityFn:
    """The same motion with time running the other way: `v(t, x) -> -v(1 - t, x)`.

    For fields trained with t = 0 at the data (SD3, FLUX, MeanFlow write them so). It costs
    what `velocity_fn` costs at `1 - t`.
    """
    return over_interval(velocity_fn, 1.0, 0.0)
