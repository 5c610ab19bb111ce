"""A small convolutional classifier, whose features measure how alike two sets of images are."""

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
    """Sizes of the classifier.

    Attributes:
        width: Channels of the first stage; each later stage has twice as many.
        num_features: Units of the layer before the logits: the features.
    """

    width: int = 32
    num_features: int = 128

    def __post_init__(self):
        require_numbers(self)
        require_at_least("width", self.width, 1)
        require_at_least("num_features", self.num_features, 1)


class Classifier(NamedTuple):
    """A classifier as pure functions.

    Attributes:
        init: `key -> params`, a nested dict of float32 arrays.
        apply: `(params, images) -> (logits [batch, classes], features [batch, num_features])`.
    """

    init: Callable[[PRNGKey], Params]
    apply: Callable[[Params, Array], tuple[Array, Array]]


class ConvNet(nnx.Module):
    """Stages that halve the resolution, down to 4 pixels; then two linear layers.

    Most of the work is done at 14x14 pixels and below: the first kernel is 5x5 on few
    channels, and no stage works at the resolution of its input.
    """

    def __init__(
        self,
        config: ClassifierConfig,
        event_shape: tuple[int, ...],
        num_classes: int,
        *,
        rngs: nnx.Rngs,
    ):
        height, width, before = event_shape
        stages, after = {}, config.width
        while min(height, width) > 4 or not stages:
            kernel = 3 if stages else 5
            stages[f"conv{len(stages)}"] = ConvStage(before, after, kernel, rngs=rngs)
            height, width, before, after = -(-height // 2), -(-width // 2), after, 2 * after
        self.stages = nnx.Dict(stages)
        self.features = nnx.Linear(height * width * before, config.num_features, rngs=rngs)
        self.logits = nnx.Linear(config.num_features, num_classes, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width channel"]
    ) -> tuple[Float[Array, "batch classes"], Float[Array, "batch features"]]:
        """Give logits and features."""
        for stage in self.stages.values():
            x = stage(x)
        features = nnx.relu(self.features(x.reshape(x.shape[0], -1)))
        return self.logits(features), features


class ConvStage(nnx.Module):
    """Convolution of stride 2, group norm of 8 channels a group, ReLU."""

    def __init__(self, before: int, after: int, kernel: int, *, rngs: nnx.Rngs):
        size, strides = (kernel, kernel), (2, 2)
        self.conv = nnx.Conv(
            before, after, size, strides, use_bias=False, kernel_init=conv_init, rngs=rngs
        )
        self.norm = nnx.GroupNorm(after, max(1, after // 8), rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width before"]
    ) -> Float[Array, "batch _height _width after"]:
        """Give the next feature map, at half the resolution."""
        return nnx.relu(self.norm(self.conv(x)))


def make_classifier(
    config: ClassifierConfig, event_shape: tuple[int, ...], num_classes: int
) -> Classifier:
    """A classifier of images of `event_shape` = (height, width, channel), at least 2x2 pixels.

    Raises:
        ValueError: If the event is no image of 2x2 pixels or more, or there are fewer than
            two classes.
    """
    ok = len(event_shape) == 3 and min(event_shape[:2]) >= 2
    require(ok, "event_shape", "be (height, width, channel) of 2x2 pixels or more", event_shape)
    require_at_least("num_classes", num_classes, 2)

    def build(rngs: nnx.Rngs) -> ConvNet:
        return ConvNet(config, event_shape, num_classes, rngs=rngs)

    pure = functionalize(build)
    return Classifier(pure.init, pure.apply)
