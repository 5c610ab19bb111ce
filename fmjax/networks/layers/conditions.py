"""Embeddings of times and conditions, shared by the networks.

A condition is an array or nested dicts of arrays, described by a `CondSpec`. Labels, vectors and
sequences are embedded and added to the embedding of the time. A condition with the layout of the
sample, such as an image of the same height and width, is joined to the sample on the channels.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from fmjax._arrays import Cond, FlowMapCond, Points, TextShape, Times
from fmjax._checks import require
from fmjax._inputs import describe
from fmjax._specs import CondSpec, FlowMapConditions, Spec, as_cond_spec, is_given
from fmjax.networks.layers.linear import (
    Linear,
    guidance_features,
    timestep_features,
)
from fmjax.sharding import all_gather_fsdp, shard_batch

NamePath: TypeAlias = tuple[str, ...]
"""Names that lead to an array in nested dicts; empty for a condition that is one array."""
Joined: TypeAlias = tuple[NamePath, ...]
"""The arrays of a condition that are joined to the sample on the channels."""

TIME_FEATURES = 256
_NORMAL = nnx.initializers.normal(0.02)


def cond_leaves(cond: Any) -> dict[NamePath, Any]:
    """Return the arrays of a condition, or the specs of its description, by their names."""
    if isinstance(cond, FlowMapCond):
        cond = cond.cond
    if isinstance(cond, FlowMapConditions):
        cond = cond.conditions
    if isinstance(cond, Mapping):
        return {
            (name, *rest): leaf
            for name in sorted(cond)
            for rest, leaf in cond_leaves(cond[name]).items()
        }
    return {} if cond is None else {(): cond}


def joined_conditions(
    network: str,
    event_shape: tuple[int, ...],
    conditions: CondSpec | FlowMapConditions | int,
    *,
    num_axes: int,
) -> tuple[Joined, int]:
    """Return the conditions that a network joins to the sample, and their number of channels.

    Args:
        network: Name of the network in messages, such as "a DiT".
        event_shape: Shape of one sample.
        conditions: Description of the condition.
        num_axes: Number of axes before the channels of a sample to which conditions can be joined:
            2 for a network on images, 1 for sequences, 0 if it joins no conditions.

    Returns:
        The names of the joined arrays, and the number of channels that `join_conditions` adds.

    Raises:
        ValueError: If the network does not take one of the conditions.
    """
    takes, kinds = "labels, vectors or sequences", ("label", "vector", "sequence")
    joined_kinds: tuple[str, ...] = ()
    if num_axes == 1:
        joined_kinds = ("sequence",)
    if num_axes == 2:
        joined_kinds = ("image", "latent")
        takes = f"labels, vectors, sequences or images of {event_shape[0]}x{event_shape[1]} pixels"
    joined, num_channels = [], 0
    for path, spec in cond_leaves(_cond_spec(conditions)).items():
        is_spec, grid = isinstance(spec, Spec), event_shape[:num_axes]
        is_joined = is_spec and spec.kind in joined_kinds and spec.shape[:-1] == grid
        takes_it = is_joined or (is_spec and spec.kind in kinds)
        kind = spec.kind if is_spec else "text"
        got = f"{kind} of shape {spec.shape}" if is_spec else kind
        require(takes_it, _name("conditions", path), f"be {takes} for {network}", got)
        if is_joined:
            joined.append(path)
            num_channels += spec.shape[-1] + 1
    return tuple(joined), num_channels


def join_conditions(x: Points, cond: Cond, joined: Joined) -> Float[Array, " batch *_event"]:
    """Join conditions with the layout of the sample to it, on the channels.

    Each condition adds its channels and one more, which is 1 where the condition is given. Where
    it is the null condition, all of its channels are 0.
    """
    leaves, parts = cond_leaves(cond), [x]
    for path in joined:
        given = jnp.all(is_given(leaves[path]), axis=-1, keepdims=True)
        parts += [jnp.where(given, leaves[path], 0.0), given]
    return jnp.concatenate([part.astype(x.dtype) for part in parts], axis=-1) if joined else x


class LabelEmbedding(nnx.Embed):
    """Table of one vector per label; its last row is the null label."""

    def __init__(self, num_values: int, width: int, *, rngs: nnx.Rngs):
        super().__init__(num_values + 1, width, embedding_init=_NORMAL, rngs=rngs)

    def __call__(self, inputs: Int[Array, " batch"]) -> Float[Array, "batch width"]:
        """Return one row per label."""
        # `nnx.Embed` would round float64 parameters to float32.
        return jnp.take(all_gather_fsdp(self.embedding[...]), inputs, axis=0)


class ArrayEmbedding(nnx.Module):
    """Embedding of a float array, `W2 silu(W1 x + b1) + b2` of all its elements.

    Where the array is the null condition, the embedding is a vector that is learned instead.
    """

    def __init__(self, size: int, width: int, *, rngs: nnx.Rngs):
        self.hidden = Linear(size, width, rngs=rngs)
        self.out = Linear(width, width, kernel_init=_NORMAL, rngs=rngs)
        self.null = nnx.Param(_NORMAL(rngs.params(), (width,)))

    def __call__(self, x: Points) -> Float[Array, "batch width"]:
        """Return one vector per sample."""
        x = x.reshape(x.shape[0], -1)
        given = jnp.all(is_given(x), axis=-1, keepdims=True)
        embedding = self.out(nnx.silu(self.hidden(jnp.where(given, x, 0.0))))
        return jnp.where(given, embedding, all_gather_fsdp(self.null[...])[None])


class DictEmbedding(nnx.Module):
    """Sum of the embeddings of the members of a dict, without those that are joined to the sample.

    The member `name` has the parameters `cond_name`, in which "/" replaces each dot of the name.
    """

    def __init__(
        self, width: int, specs: Mapping[str, Any], joined: Joined, path: NamePath, rngs: nnx.Rngs
    ):
        self.names = tuple(sorted(specs))
        for name in self.names:
            member = _embedding(width, specs[name], joined, (*path, name), rngs)
            setattr(self, _attribute(name), member)

    def __call__(self, cond: Mapping[str, Any]) -> Float[Array, "batch width"] | float:
        """Return one vector per sample, or 0 if all members are joined."""
        members = [(getattr(self, _attribute(name)), cond[name]) for name in self.names]
        return sum((member(leaf) for member, leaf in members if member is not None), 0.0)


def _attribute(name: str) -> str:
    """Return the name of the parameters of a member; names of parameters have no dots."""
    return f"cond_{name.replace('.', '/')}"


def _embedding(
    width: int, spec: CondSpec, joined: Joined, path: NamePath, rngs: nnx.Rngs
) -> LabelEmbedding | ArrayEmbedding | DictEmbedding | None:
    """Build the embedding of a condition; None if it is joined to the sample."""
    if isinstance(spec, Mapping):
        return DictEmbedding(width, spec, joined, path, rngs)
    if spec is None or path in joined:
        return None
    assert isinstance(spec, Spec), "the network was built with a condition that it does not take"
    if spec.kind == "label":
        return LabelEmbedding(spec.num_values or 0, width, rngs=rngs)
    return ArrayEmbedding(spec.size, width, rngs=rngs)


class ConditionEmbedding(nnx.Module):
    """Embedding of time and condition, `mlp(timestep_features(t)) + embedding(cond)`.

    A label selects a row of a table, whose last row, `num_classes`, is the null class. A float
    array is embedded by a two-layer MLP, or by a learned vector where it is the null condition. The
    embeddings of the members of a dict are added. The MLP of a flow map also takes the interval
    `r - t` and the guidance. The weights of these inputs are initialized to zero, so that a flow
    map initialized from a velocity network predicts its velocity for every r.

    Args:
        width: Length of the embedding vectors.
        conditions: Description of the condition, or conditions of a flow map.
        joined: Arrays of the condition that the network joins to the sample instead.
        rngs: Random keys of the parameters.
    """

    def __init__(
        self,
        width: int,
        conditions: CondSpec | FlowMapConditions | int,
        joined: Joined = (),
        *,
        rngs: nnx.Rngs,
    ):
        zeros = nnx.initializers.zeros
        is_flow_map = isinstance(conditions, FlowMapConditions)
        spec = _cond_spec(conditions)
        self.expected = tuple(cond_leaves(spec).items())
        self.hidden = Linear(TIME_FEATURES, width, kernel_init=_NORMAL, rngs=rngs)
        self.out = Linear(width, width, kernel_init=_NORMAL, rngs=rngs)
        embedding = _embedding(width, spec, joined, (), rngs)
        is_label = isinstance(embedding, LabelEmbedding)
        self.labels = embedding if is_label else None
        self.cond = None if is_label else embedding
        settings: dict[str, Any] = dict(use_bias=False, kernel_init=zeros, rngs=rngs)
        self.span = Linear(TIME_FEATURES, width, **settings) if is_flow_map else None
        guided = is_flow_map and conditions.guided
        self.guidance = Linear(3 * TIME_FEATURES, width, **settings) if guided else None

    def __call__(self, t: Times, cond: Cond) -> Float[Array, "batch width"]:
        """Return one vector per sample, float32."""
        hidden = self.hidden(timestep_features(t, TIME_FEATURES))
        if self.span is not None:
            if not isinstance(cond, FlowMapCond):
                raise ValueError(f"cond must be a FlowMapCond for a flow map, got {describe(cond)}")
            hidden = hidden + self.span(timestep_features(cond.end - t, TIME_FEATURES))
            if self.guidance is not None:
                hidden = hidden + self.guidance(guidance_features(cond.guidance))
            cond = cond.cond
        _require_cond(cond, self.expected, t.shape[0])
        embedding = self.out(nnx.silu(hidden))
        embed: Any = self.labels or self.cond
        return shard_batch(embedding if embed is None else embedding + embed(cond))


def _cond_spec(conditions: CondSpec | FlowMapConditions | int) -> CondSpec:
    """Return the description of the data's condition."""
    if isinstance(conditions, FlowMapConditions):
        conditions = conditions.conditions
    return as_cond_spec(conditions)


def _name(name: str, path: NamePath) -> str:
    """Return the name of a member in messages, such as `cond['pose']`."""
    return name + "".join(f"[{part!r}]" for part in path)


def _require_cond(
    cond: Cond, expected: tuple[tuple[NamePath, Spec | TextShape], ...], batch: int
) -> None:
    """Raise unless a condition has the names, shapes and types of its specs."""
    if not expected:
        require(cond is None, "cond", "be None for a network without conditions", describe(cond))
    leaves = cond_leaves(cond)
    names = [path for path, _ in expected]
    if names != [()]:
        rule = f"be a dict of arrays: {', '.join(_name('cond', path) for path in names)}"
        given = ", ".join(_name("cond", path) for path in leaves)
        is_dict = isinstance(cond, Mapping) or cond is None
        got = describe(cond) if not is_dict or not leaves else given
        require(list(leaves) == names, "cond", rule, got)
    for path, spec in expected:
        assert isinstance(spec, Spec)
        leaf: Any = leaves.get(path) if path else cond
        shape = (batch, *spec.shape)
        is_integer = spec.num_values is not None
        dtype = jnp.integer if is_integer else jnp.floating
        rule = f"be {'integers' if is_integer else 'floats'} of shape {shape}"
        if spec.kind == "label":
            rule = f"be class labels, {rule.removeprefix('be ')}"
        fits = getattr(leaf, "shape", None) == shape and jnp.issubdtype(leaf.dtype, dtype)
        require(fits, _name("cond", path), rule, describe(leaf))
