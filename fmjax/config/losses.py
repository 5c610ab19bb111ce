"""Configs of the training objectives: flow matching, MeanFlow and shortcut models."""

from dataclasses import dataclass

from fmjax._checks import (
    require,
    require_at_least,
    require_between,
    require_numbers,
    require_positive,
)
from fmjax.config.sampling import DensityConfig
from fmjax.losses import BuiltInGuidance, TimeWeight
from fmjax.paths import LogitNormal, Prediction, Uniform


@dataclass(frozen=True)
class LossConfig:
    """Flow matching: predicted quantity, loss and distribution of training times.

    Attributes:
        prediction: Quantity that the network predicts. With x1 and a loss in velocity space,
            `path.min_divisor` limits the weight of times near 1 (JiT uses 0.05).
        space: Quantity whose squared error is the loss.
        weight: Weight of the loss as a function of time.
        huber: Constant c of the pseudo-Huber loss `sqrt(|error|^2 + c^2) - c`, which reduces the
            influence of outliers; None takes the squared error.
        density: Density of the training times.
        stratified: Stratify the times of a batch over their density.
        label_drop: Probability that an example is trained without its class label or text, for
            classifier-free guidance.
        encoder_drop: Probability that an example is trained without the output of a text encoder,
            sampled separately for each of several encoders (SD3 uses 0.464).
    """

    prediction: Prediction = Prediction.VELOCITY
    space: Prediction = Prediction.VELOCITY
    weight: TimeWeight = TimeWeight()
    huber: float | None = None
    density: DensityConfig = Uniform()
    stratified: bool = False
    label_drop: float = 0.1
    encoder_drop: float = 0.0

    def __post_init__(self) -> None:
        require_numbers(self, "loss.")
        require_between("loss.label_drop", self.label_drop, 0.0, 1.0)
        require_between("loss.encoder_drop", self.encoder_drop, 0.0, 1.0)
        if self.huber is not None:
            require_positive("loss.huber", self.huber)


@dataclass(frozen=True)
class MeanFlowConfig:
    """MeanFlow: a flow map trained with its own derivative along the path.

    Attributes:
        improved: Differentiate along the velocity of the network (improved MeanFlow).
        density: Density of both training times. The earlier one is the time t of the point, the
            later one the time r that the flow map carries it to.
        ratio_r_neq_t: Fraction of examples with r > t; the other examples train the velocity.
        power: Exponent of the adaptive weight of an example: with 1 all examples have about equal
            influence, with 0 the loss is the squared error.
        floor: Constant added to the squared error in the adaptive weight, in squared data units
            summed over an example.
        guidance: Guidance that is built into the network.
        label_drop: Probability that an example is trained without its class label.
    """

    improved: bool = False
    density: DensityConfig = LogitNormal(0.4, 1.0)
    ratio_r_neq_t: float = 0.25
    power: float = 1.0
    floor: float = 1e-2
    guidance: BuiltInGuidance = BuiltInGuidance()
    label_drop: float = 0.1

    def __post_init__(self) -> None:
        require_numbers(self, "loss.")
        for name in ("ratio_r_neq_t", "label_drop"):
            require_between(f"loss.{name}", getattr(self, name), 0.0, 1.0)
        require_at_least("loss.power", self.power, 0.0)
        require_positive("loss.floor", self.floor)


@dataclass(frozen=True)
class ShortcutConfig:
    """Shortcut model: a flow map trained so that one step agrees with two steps of half the size.

    Attributes:
        num_steps: Number of steps of the finest grid, a power of two. Sampling can use 1, 2, 4, ...
            steps, up to this number.
        bootstrap_ratio: Fraction of examples that train steps; the others train the velocity.
        density: Density of the times of the examples that train the velocity.
        stratified: Stratify the times of these examples over their density.
        guidance: Classifier-free guidance scale built into the steps; 1 is no guidance. The finest
            steps and the velocity remain unguided.
        label_drop: Probability that an example is trained without its class label.
    """

    num_steps: int = 128
    bootstrap_ratio: float = 0.25
    density: DensityConfig = Uniform()
    stratified: bool = False
    guidance: float = 1.0
    label_drop: float = 0.1

    def __post_init__(self) -> None:
        require_numbers(self, "loss.")
        require_positive("loss.guidance", self.guidance)
        for name in ("bootstrap_ratio", "label_drop"):
            require_between(f"loss.{name}", getattr(self, name), 0.0, 1.0)
        power_of_two = self.num_steps >= 2 and self.num_steps & (self.num_steps - 1) == 0
        require(power_of_two, "loss.num_steps", "be a power of two, at least 2", self.num_steps)


AnyLoss = LossConfig | MeanFlowConfig | ShortcutConfig
