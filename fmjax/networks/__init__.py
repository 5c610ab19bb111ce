"""Networks: each a config, a module, and a `make_*` that gives pure functions."""

from fmjax.networks.classifier import Classifier, ClassifierConfig, make_classifier
from fmjax.networks.dit import DIT_B, DIT_L, DIT_S, DIT_XL, DiT, DiTConfig, make_dit
from fmjax.networks.mlp import MLP, MLPConfig, make_mlp
from fmjax.networks.unet import UNet, UNetConfig, make_unet
from fmjax.velocity import VelocityNet

NetworkConfig = MLPConfig | UNetConfig | DiTConfig

__all__ = [
    "DIT_B",
    "DIT_L",
    "DIT_S",
    "DIT_XL",
    "MLP",
    "Classifier",
    "ClassifierConfig",
    "DiT",
    "DiTConfig",
    "MLPConfig",
    "NetworkConfig",
    "UNet",
    "UNetConfig",
    "make_classifier",
    "make_dit",
    "make_mlp",
    "make_network",
    "make_unet",
]


def make_network(
    config: NetworkConfig, event_shape: tuple[int, ...], num_classes: int | None = None
) -> VelocityNet:
    """The network that `config` describes, for points of `event_shape`, as pure functions.

    Raises:
        ValueError: If the network cannot take points of that shape.
    """
    match config:
        case MLPConfig():
            return make_mlp(config, event_shape, num_classes)
        case UNetConfig():
            return make_unet(config, event_shape, num_classes)
        case DiTConfig():
            return make_dit(config, event_shape, num_classes)
