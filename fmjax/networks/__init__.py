"""Networks: configs, Flax NNX modules, and `make_*` functions that return pure functions."""

from fmjax.networks.autoencoder.autoencoder import (
    Autoencoder as Autoencoder,
    AutoencoderConfig as AutoencoderConfig,
    make_autoencoder as make_autoencoder,
)
from fmjax.networks.autoencoder.tiling import decode_tiled as decode_tiled
from fmjax.networks.classifier import (
    Classifier as Classifier,
    ClassifierConfig as ClassifierConfig,
    make_classifier as make_classifier,
)
from fmjax.networks.layers.lora import Adapters as Adapters, LoRAConfig as LoRAConfig
from fmjax.networks.make import (
    NetworkConfig as NetworkConfig,
    NetworkFactory as NetworkFactory,
    make_flow_map as make_flow_map,
    make_network as make_network,
)
from fmjax.networks.mlp import MLP as MLP, MLPConfig as MLPConfig, make_mlp as make_mlp
from fmjax.networks.nnx_modules import from_nnx as from_nnx
from fmjax.networks.text_encoders.clip import (
    CLIP_G as CLIP_G,
    CLIP_L as CLIP_L,
    CLIPOutput as CLIPOutput,
    CLIPText as CLIPText,
    CLIPTextConfig as CLIPTextConfig,
    make_clip_text as make_clip_text,
)
from fmjax.networks.text_encoders.layers import TextEncoder as TextEncoder
from fmjax.networks.text_encoders.t5 import (
    T5_XXL as T5_XXL,
    T5Config as T5Config,
    T5Encoder as T5Encoder,
    make_t5_encoder as make_t5_encoder,
)
from fmjax.networks.text_encoders.word_encoder import (
    TextEncoderConfig as TextEncoderConfig,
    make_text_encoder as make_text_encoder,
    with_encoder as with_encoder,
)
from fmjax.networks.transformers.dit import (
    DIT_B as DIT_B,
    DIT_L as DIT_L,
    DIT_S as DIT_S,
    DIT_XL as DIT_XL,
    DiT as DiT,
    DiTConfig as DiTConfig,
    make_dit as make_dit,
)
from fmjax.networks.transformers.flux import (
    FLUX_DEV as FLUX_DEV,
    FLUX_SCHNELL as FLUX_SCHNELL,
    Flux as Flux,
    FluxConfig as FluxConfig,
    make_flux as make_flux,
)
from fmjax.networks.transformers.mmdit import (
    SD3_MEDIUM as SD3_MEDIUM,
    SD35_LARGE as SD35_LARGE,
    SD35_MEDIUM as SD35_MEDIUM,
    MMDiT as MMDiT,
    MMDiTConfig as MMDiTConfig,
    make_mmdit as make_mmdit,
)
from fmjax.networks.transformers.sequence import (
    SequenceTransformer as SequenceTransformer,
    SequenceTransformerConfig as SequenceTransformerConfig,
    make_sequence_transformer as make_sequence_transformer,
)
from fmjax.networks.unet import UNet as UNet, UNetConfig as UNetConfig, make_unet as make_unet
