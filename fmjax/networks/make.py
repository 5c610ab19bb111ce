"""Build a network from its config."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmjax._arrays import Cond, FlowMapCond, Params, Points, TextShape, Times
from fmjax._checks import require
from fmjax._inputs import describe
from fmjax._specs import (
    CondSpec,
    FlowMapConditions,
    Spec,
    abstract_cond,
    as_cond_spec,
    is_captions,
    is_given,
)
from fmjax.networks.mlp import MLPConfig, make_mlp
from fmjax.networks.text_encoders.word_encoder import (
    TextEncoderConfig,
    make_text_encoder,
    with_encoder,
)
from fmjax.networks.transformers.dit import DiTConfig, make_dit
from fmjax.networks.transformers.flux import FluxConfig, make_flux
from fmjax.networks.transformers.mmdit import MMDiTConfig, make_mmdit
from fmjax.networks.transformers.sequence import (
    SequenceTransformerConfig,
    make_sequence_transformer,
)
from fmjax.networks.unet import UNetConfig, make_unet
from fmjax.paths import FlowMapNet, VelocityNet

NetworkConfig = (
    MLPConfig | UNetConfig | DiTConfig | SequenceTransformerConfig | FluxConfig | MMDiTConfig
)

_FLOW_MAPS = "an MLPConfig, UNetConfig, DiTConfig or SequenceTransformerConfig"


@runtime_checkable
class NetworkFactory(Protocol):
    """Config of a user's network: a frozen dataclass of JSON values with a method `make`."""

    def make(self, event_shape: tuple[int, ...], conditions: CondSpec) -> VelocityNet:
        """Build the network as pure functions.

        Args:
            event_shape: Shape of one sample, without the batch axis.
            conditions: Description of the condition, or None. Where a condition was dropped, a
                label is `num_values`, one more than the highest label, and a float array is zeros.

        Raises:
            ValueError: If the network does not support this event shape or these conditions.
        """
        ...


def make_network(
    config: NetworkConfig | NetworkFactory,
    event_shape: tuple[int, ...],
    conditions: CondSpec | FlowMapConditions | int = None,
    *,
    text_encoder: TextEncoderConfig | None = None,
) -> VelocityNet:
    """Build the network described by `config` as pure functions.

    Args:
        config: Config of the network; its class selects the architecture. A user's config builds
            the network in its method `make`.
        event_shape: Shape of one sample, without the batch axis.
        conditions: Description of the condition, or None for an unconditional network. A number of
            classes stands for labels.
        text_encoder: Config of the text encoder for captions, which is trained together with the
            network.

    Raises:
        ValueError: If the network does not support this event shape or these conditions.
    """
    if not isinstance(conditions, FlowMapConditions):
        conditions = as_cond_spec(conditions)
    if isinstance(conditions, Spec) and is_captions(conditions):
        if text_encoder is None:
            raise ValueError(
                "text_encoder must be a TextEncoderConfig for data with captions, got None"
            )
        net = make_network(config, event_shape, text_encoder.shape(conditions))
        return with_encoder(make_text_encoder(text_encoder, conditions), net)
    if not isinstance(config, NetworkConfig):
        return _make_user_network(config, event_shape, conditions)
    if isinstance(config, FluxConfig | MMDiTConfig):
        if isinstance(conditions, FlowMapConditions):
            raise ValueError(
                f"network must be {_FLOW_MAPS} for a flow map, got {type(config).__name__}"
            )
        if isinstance(config, FluxConfig):
            return make_flux(config, event_shape, conditions)
        return make_mmdit(config, event_shape, conditions)
    if isinstance(conditions, TextShape):
        raise ValueError(
            "network must be a FluxConfig or MMDiTConfig for text conditions, "
            f"got {type(config).__name__}"
        )
    match config:
        case MLPConfig():
            return make_mlp(config, event_shape, conditions)
        case UNetConfig():
            return make_unet(config, event_shape, conditions)
        case DiTConfig():
            return make_dit(config, event_shape, conditions)
        case SequenceTransformerConfig():
            return make_sequence_transformer(config, event_shape, conditions)


def _make_user_network(
    config: NetworkFactory,
    event_shape: tuple[int, ...],
    conditions: CondSpec | FlowMapConditions,
) -> VelocityNet:
    """Build a user's network, and check the shape of its output without computing it."""
    name = type(config).__name__
    rule = f"be {_FLOW_MAPS} for a flow map"
    require(not isinstance(conditions, FlowMapConditions), "network", rule, name)
    assert not isinstance(conditions, FlowMapConditions)
    net = config.make(event_shape, conditions)
    require(isinstance(net, VelocityNet), f"{name}.make", "return a VelocityNet", describe(net))
    x = jax.ShapeDtypeStruct((2, *event_shape), jnp.float32)
    t = jax.ShapeDtypeStruct((2,), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0))
    cond = abstract_cond(conditions, 2)
    outputs = [jax.eval_shape(net.apply, params, t, x, cond)]
    if net.takes_keys:
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
        outputs.append(jax.eval_shape(net.apply, params, t, x, cond, keys=keys))
    rule = f"return float32 of shape {x.shape}, like x"
    for output in outputs:
        fits = getattr(output, "shape", None) == x.shape and output.dtype == jnp.float32
        require(fits, f"network {name}", rule, describe(output))
    return net._replace(apply=_with_zeros_for_null(net.apply))


def _with_zeros_for_null(apply: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Replace float conditions that are not given by zeros, for a network of a user."""

    def replace(leaf: jax.Array) -> jax.Array:
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.where(is_given(leaf), leaf, 0.0) if is_float else leaf

    def apply_with_zeros(
        params: Params, t: Times, x: Points, cond: Cond = None, **settings: jax.Array
    ) -> jax.Array:
        return apply(params, t, x, jax.tree.map(replace, cond), **settings)

    return apply_with_zeros


def make_flow_map(
    config: NetworkConfig | NetworkFactory,
    event_shape: tuple[int, ...],
    conditions: CondSpec | int = None,
    *,
    guided: bool = False,
) -> FlowMapNet:
    """Build the network described by `config` as a flow map, which also takes the end time r.

    It has the parameters of `make_network` and a few more, which are initialized to zero.

    Args:
        config: Config of the network: `MLPConfig`, `UNetConfig`, `DiTConfig` or
            `SequenceTransformerConfig`.
        event_shape: Shape of one sample, without the batch axis.
        conditions: Description of the condition, or None for an unconditional network.
        guided: Whether the network takes guidance as an input.

    Raises:
        ValueError: If the network does not support this event shape, or if the network or the
            conditions are for text.
    """
    conditions = as_cond_spec(conditions)
    if isinstance(conditions, TextShape) or is_captions(conditions):
        raise ValueError(
            "conditions must not be text or captions for a flow map, "
            f"got {type(conditions).__name__}"
        )
    net = make_network(config, event_shape, FlowMapConditions(conditions, guided))

    def apply(
        params: Params,
        r: Times,
        t: Times,
        x: Points,
        cond: Cond = None,
        guidance: Float[Array, "batch 3"] | None = None,
        **keys: jax.Array,
    ) -> jax.Array:
        return net.apply(params, t, x, FlowMapCond(cond, r, guidance), **keys)

    return FlowMapNet(net.init, apply, net.tensor_axes, guided, net.takes_keys)
