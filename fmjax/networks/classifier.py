"""Small convolutional classifier, whose features are used to compare two sets of images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from flax import nnx
from jaxtyping import Array, Float

from fmjax._arrays import Params, PRNGKey
from fmjax._checks import require, require_at_least, require_numbers
from fmjax.networks.layers.convolution import conv_init
from fmjax.networks.layers.functional import functionalize


@dataclass(frozen=True)
class ClassifierConfig:
    """Sizes of the convolutional classifier.

    Attributes:
        width: Channels of the first stage; each later stage doubles them.
        num_features: Units of the feature layer, the layer before the logits.
    """

    width: int = 32
    num_features: int = 128

    def __post_init__(self):
        require_numbers(self)
        require_at_least("width", self.width, 1)
        require_at_least("num_features", self.num_features, 1)


class Classifier(NamedTuple):
    """Classifier as pure functions; its parameters are a nested dict of float32 arrays.

    Attributes:
        init: Function `init(key) -> params`.
        apply: Function `apply(params, images) -> (logits, features)` of shapes `[batch, classes]`
            and `[batch, num_features]`.
    """

    init: Callable[[PRNGKey], Params]
    apply: Callable[[Params, Array], tuple[Array, Array]]


class ConvNet(nnx.Module):
    """Convolutional stages that halve the resolution down to 4 pixels, then two linear layers.

    The stride of the first stage keeps the cost low: for 28x28 pixels most of the computation is
    done at 14x14 pixels and below.
    """

    def __init__(
        self,
        config: ClassifierConfig,
        event_shape: tuple[int, ...],
        num_classes: int,
        *,
        rngs: nnx.Rngs,
    ):
        height, width, channels_in = event_shape
        stages, channels_out = {}, config.width
        while min(height, width) > 4 or not stages:
            kernel = 3 if stages else 5
            stages[f"conv{len(stages)}"] = ConvStage(channels_in, channels_out, kernel, rngs=rngs)
            height, width = -(-height // 2), -(-width // 2)
            channels_in, channels_out = channels_out, 2 * channels_out
        self.stages = nnx.Dict(stages)
        self.features = nnx.Linear(height * width * channels_in, config.num_features, rngs=rngs)
        self.logits = nnx.Linear(config.num_features, num_classes, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width channel"]
    ) -> tuple[Float[Array, "batch classes"], Float[Array, "batch features"]]:
        """Return logits and features."""
        for stage in self.stages.values():
            x = stage(x)
        features = nnx.relu(self.features(x.reshape(x.shape[0], -1)))
        return self.logits(features), features


class ConvStage(nnx.Module):
    """Convolution with stride 2, group norm with 8 channels per group, and ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            channels_in,
            channels_out,
            kernel_size=(kernel, kernel),
            strides=(2, 2),
            use_bias=False,
            kernel_init=conv_init,
            rngs=rngs,
        )
        self.norm = nnx.GroupNorm(channels_out, max(1, channels_out // 8), rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width channels_in"]
    ) -> Float[Array, "batch _height _width channels_out"]:
        """Return the output feature map, at half the resolution."""
        return nnx.relu(self.norm(self.conv(x)))


def make_classifier(
    config: ClassifierConfig, event_shape: tuple[int, ...], num_classes: int
) -> Classifier:
    """Build a classifier of images as pure functions.

    Args:
        config: Sizes of the classifier.
        event_shape: (height, width, channel) of an image, at least 2x2 pixels.
        num_classes: Number of classes, at least 2.

    Raises:
        ValueError: If `event_shape` is not an image of at least 2x2 pixels, or if there are fewer
            than two classes.
    """
    is_valid = len(event_shape) == 3 and min(event_shape[:2]) >= 2
    require(
        is_valid, "event_shape", "be (height, width, channel) of 2x2 pixels or more", event_shape
    )
    require_at_least("num_classes", num_classes, 2)

    def build(rngs: nnx.Rngs) -> ConvNet:
        return ConvNet(config, event_shape, num_classes, rngs=rngs)

    pure = functionalize(build)
    return Classifier(pure.init, pure.apply)
