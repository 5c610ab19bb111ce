"""Networks: each a config, a module, and a `make_*` that gives pure functions."""

from typing import Any

import jax

from fmjax._arrays import (
    Cond,
    Conditions,
    FlowMapCond,
    FlowMapConditions,
    Params,
    Points,
    TextShape,
    Times,
    TokenShape,
)
from fmjax.networks.autoencoder.autoencoder import Autoencoder, AutoencoderConfig, make_autoencoder
from fmjax.networks.autoencoder.tiling import decode_tiled
from fmjax.networks.classifier import Classifier, ClassifierConfig, make_classifier
from fmjax.networks.layers.lora import Adapters, LoRAConfig
from fmjax.networks.mlp import MLP, MLPConfig, make_mlp
from fmjax.networks.text_encoders.clip import (
    CLIP_G,
    CLIP_L,
    CLIPOutput,
    CLIPText,
    CLIPTextConfig,
    make_clip_text,
)
from fmjax.networks.text_encoders.layers import TextEncoder
from fmjax.networks.text_encoders.t5 import T5_XXL, T5Config, T5Encoder, make_t5_encoder
from fmjax.networks.text_encoders.word_encoder import (
    TextEncoderConfig,
    make_text_encoder,
    with_encoder,
)
from fmjax.networks.transformers.dit import DIT_B, DIT_L, DIT_S, DIT_XL, DiT, DiTConfig, make_dit
from fmjax.networks.transformers.flux import FLUX_DEV, FLUX_SCHNELL, Flux, FluxConfig, make_flux
from fmjax.networks.transformers.mmdit import (
    SD3_MEDIUM,
    SD35_LARGE,
    SD35_MEDIUM,
    MMDiT,
    MMDiTConfig,
    make_mmdit,
)
from fmjax.networks.unet import UNet, UNetConfig, make_unet
from fmjax.paths import FlowMapNet, VelocityNet

NetworkConfig = MLPConfig | UNetConfig | DiTConfig | FluxConfig | MMDiTConfig

__all__ = [
    "CLIP_G",
    "CLIP_L",
    "DIT_B",
    "DIT_L",
    "DIT_S",
    "DIT_XL",
    "FLUX_DEV",
    "FLUX_SCHNELL",
    "MLP",
    "MMDiT",
    "MMDiTConfig",
    "SD35_LARGE",
    "SD35_MEDIUM",
    "SD3_MEDIUM",
    "Adapters",
    "T5_XXL",
    "CLIPOutput",
    "CLIPText",
    "CLIPTextConfig",
    "Autoencoder",
    "AutoencoderConfig",
    "Classifier",
    "ClassifierConfig",
    "DiT",
    "DiTConfig",
    "Flux",
    "FluxConfig",
    "LoRAConfig",
    "MLPConfig",
    "NetworkConfig",
    "T5Config",
    "T5Encoder",
    "TextEncoder",
    "TextEncoderConfig",
    "UNet",
    "UNetConfig",
    "decode_tiled",
    "make_autoencoder",
    "make_classifier",
    "make_clip_text",
    "make_dit",
    "make_flow_map",
    "make_flux",
    "make_mlp",
    "make_mmdit",
    "make_network",
    "make_t5_encoder",
    "make_text_encoder",
    "make_unet",
    "with_encoder",
]


def make_network(
    config: NetworkConfig,
    event_shape: tuple[int, ...],
    conditions: Conditions | FlowMapConditions = None,
    *,
    text_encoder: TextEncoderConfig | None = None,
) -> VelocityNet:
    """The network that `config` describes, for points of `event_shape`, as pure functions.

    Args:
        config: Which network.
        event_shape: Of one point.
        conditions: The number of classes, the sizes of a text or of captions, or None.
        text_encoder: What reads captions; it is trained along.

    Raises:
        ValueError: If the network cannot take points of that shape or such conditions.
    """
    if isinstance(conditions, TokenShape):
        if text_encoder is None:
            raise ValueError("text_encoder must be given for data with captions, got None")
        net = make_network(config, event_shape, text_encoder.shape(conditions))
        return with_encoder(make_text_encoder(text_encoder, conditions), net)
    if isinstance(config, FluxConfig | MMDiTConfig):
        if isinstance(conditions, FlowMapConditions):
            raise ValueError(
                "network must be an MLP, a UNet or a DiT for a flow map, got one of text"
            )
        make = make_flux if isinstance(config, FluxConfig) else make_mmdit
        return make(config, event_shape, conditions)  # type: ignore[arg-type]
    if isinstance(conditions, TextShape):
        raise ValueError("conditions must be classes, or the network one that takes text, got text")
    match config:
        case MLPConfig():
            return make_mlp(config, event_shape, conditions)
        case UNetConfig():
            return make_unet(config, event_shape, conditions)
        case DiTConfig():
            return make_dit(config, event_shape, conditions)


def make_flow_map(
    config: NetworkConfig,
    event_shape: tuple[int, ...],
    conditions: Conditions = None,
    *,
    guided: bool = False,
) -> FlowMapNet:
    """The network that `config` describes as a flow map: it also sees how far to go.

    Its parameters are those of `make_network` and a few more, which start at zero.

    Args:
        config: Which network.
        event_shape: Of one point.
        conditions: The number of classes, or None.
        guided: Whether guidance is one of its inputs.

    Raises:
        ValueError: If the network cannot take points of that shape, or is one of text.
    """
    if isinstance(conditions, TextShape | TokenShape):
        raise ValueError("conditions must be classes or none for a flow map, got text")
    net = make_network(config, event_shape, FlowMapConditions(conditions, guided))

    def apply(
        params: Params, r: Times, t: Times, x: Points, cond: Cond = None, guidance: Any = None
    ) -> jax.Array:
        return net.apply(params, t, x, FlowMapCond(cond, r, guidance))

    return FlowMapNet(net.init, apply, net.tensor_axes, guided)
