"""Protocols of velocity fields and flow maps, and their networks as pure functions."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from fmjax._arrays import Cond, Params, Points, PRNGKey, Times
from fmjax._inputs import require_function, require_like


@runtime_checkable
class VelocityFn(Protocol):
    """Velocity field: a function `(t, x, cond) -> dx/dt`.

    t is `[batch]`, x is `[batch, *event]`, and the result is shaped like x. The function must be
    pure, and the velocity of each sample must depend on that sample only. A field that evaluates a
    network more than once per call must have a method `evaluations(t)` (see `CountedField`).
    """

    def __call__(self, t: Times, x: Points, cond: Cond = None) -> Points:
        """Return the velocity at `(t, x)`."""
        ...


class VelocityNet(NamedTuple):
    """Network as pure functions; its parameters are a nested dict of float32 arrays.

    Attributes:
        init: Function `init(key) -> params`.
        apply: Function `apply(params, t, x, cond) -> prediction`, shaped like x, float32. The
            training objective determines whether it predicts velocity, x1 or x0.
        tensor_axes: Maps the dotted name of a parameter to the axis that is split over the mesh
            axis `tensor`. Other parameters are not split.
        takes_keys: Whether training calls `apply(params, t, x, cond, keys=keys)` with one random
            key per example, `[batch]`, for layers such as dropout. Sampling passes no keys, and the
            network must then be deterministic. The prediction for example i must use key i only, as
            in `jax.vmap(jax.random.bernoulli, ...)(keys, ...)`: the result of a training step then
            does not depend on microbatches and devices.
    """

    init: Callable[[PRNGKey], Params]
    apply: Callable[..., jax.Array]
    tensor_axes: Mapping[str, int] = MappingProxyType({})
    takes_keys: bool = False


@runtime_checkable
class FlowMapFn(Protocol):
    """Flow map as its mean velocity: a function `u(r, t, x, cond)` from time t to time r.

    r and t are `[batch]`, x is `[batch, *event]`, and the result is shaped like x. The trajectory
    that passes x at time t reaches `x + (r - t) u` at time r; for r = t, u is the velocity. The
    requirements of `VelocityFn` apply, and consecutive maps must compose: the map from t to s
    followed by the map from s to r equals the map from t to r.

    Reference: Geng et al. 2025, arXiv:2505.13447, equation 3, here with the noise at time 0; Boffi
    et al. 2024, arXiv:2406.07507 (flow maps).
    """

    def __call__(self, r: Times, t: Times, x: Points, cond: Cond = None) -> Points:
        """Return the mean velocity from t to r of the trajectory that is at x at time t."""
        ...


class FlowMapNet(NamedTuple):
    """Flow-map network as pure functions; its parameters are a nested dict of float32 arrays.

    Attributes:
        init: Function `init(key) -> params`.
        apply: Function `apply(params, r, t, x, cond, guidance) -> mean velocity`, shaped like x,
            float32. guidance is `[batch, 3]` (see `FlowMapCond`), or None for a network without a
            guidance input.
        tensor_axes: Maps the dotted name of a parameter to the axis that is split over the mesh
            axis `tensor`. Other parameters are not split.
        guided: Whether the network takes guidance as an input.
        takes_keys: Whether training passes one random key per example, as for a `VelocityNet`. All
            evaluations of an example with the trained parameters use the same key.
    """

    init: Callable[[PRNGKey], Params]
    apply: Callable[..., jax.Array]
    tensor_axes: Mapping[str, int] = MappingProxyType({})
    guided: bool = False
    takes_keys: bool = False


def evaluations(velocity_fn: Callable[..., Points], t: Times) -> Int[Array, " batch"]:
    """Number of network evaluations (NFE) per sample of one call at times `t`.

    1 unless `velocity_fn` has a method `evaluations(t)`; 2 with classifier-free guidance.
    """
    count = getattr(velocity_fn, "evaluations", None)
    return jnp.ones(t.shape, jnp.int32) if count is None else count(t)


class CountedField(NamedTuple):
    """Velocity field or flow map with the number of network evaluations per call.

    Attributes:
        fn: Velocity field `(t, x, cond)`, or flow map `(r, t, x, cond)`.
        evaluations: Function `evaluations(t)`, the network evaluations per sample of one call at
            times t, `[batch]` int32.
    """

    fn: Callable[..., Points]
    evaluations: Callable[[Times], Int[Array, " batch"]]

    def __call__(self, *args: PyTree, **kwargs: PyTree) -> Points:
        """Call `fn`."""
        return self.fn(*args, **kwargs)


def velocity_of(map_fn: FlowMapFn) -> VelocityFn:
    """Return the velocity field `v(t, x) = u(t, t, x)` of a flow map, at the same cost per call."""
    return CountedField(
        lambda t, x, cond=None: map_fn(t, t, x, cond), lambda t: evaluations(map_fn, t)
    )


def over_interval(
    velocity_fn: VelocityFn, start: Array | float | int, end: Array | float | int
) -> VelocityFn:
    """Rescale the part of a velocity field between two times to r in [0, 1].

    `v'(r, x) = (end - start) v((1 - r) start + r end, x)`. r = 0 and r = 1 map exactly to `start`
    and `end`. A call costs as many network evaluations as `velocity_fn` at the mapped times.

    Args:
        velocity_fn: The velocity field.
        start: Time at r = 0, a scalar.
        end: Time at r = 1, a scalar; if less than `start`, time runs backward.
    """
    require_function("velocity_fn", velocity_fn)

    def time_at(r: Times) -> Times:
        return (1.0 - r) * start + r * end

    def velocity(r: Times, x: Points, cond: Cond = None) -> Points:
        value = velocity_fn(time_at(r), x, cond)
        require_like("velocity_fn", value, x)
        return (end - start) * value

    return CountedField(velocity, lambda r: evaluations(velocity_fn, time_at(r)))


def reversed_time(velocity_fn: VelocityFn) -> VelocityFn:
    """Reverse the time of a velocity field: `v'(t, x) = -v(1 - t, x)`.

    Used for fields with t = 0 at the data, as in SD3, FLUX and MeanFlow. A call costs as many
    network evaluations as `velocity_fn` at `1 - t`.
    """
    return over_interval(velocity_fn, 1.0, 0.0)
