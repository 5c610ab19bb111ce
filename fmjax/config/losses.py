"""What a network is trained for: a velocity, or the mean velocities of a flow map."""

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
    """What the network predicts, how its error counts, and at which times it is asked.

    Attributes:
        prediction: What the network's output is. With x1 and the loss in velocity,
            `path.min_divisor` (JiT takes 0.05) bounds the weight of times near 1.
        space: The quantity whose squared error is the loss.
        weight: Weight of each time.
        huber: None for the squared error; a number c for the pseudo-Huber distance
            `sqrt(|error|^2 + c^2) - c`, which outliers pull less.
        density: Density of the training times.
        stratified: Spread a batch's times evenly over the density.
        label_drop: Share of examples that train without their label or text, for guidance.
        encoder_drop: Of text that several encoders made: share of examples that train without
            what one of them gave, each encoder by a coin of its own (SD3: 0.464).
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
    """MeanFlow: the network is a flow map, taught by its own derivative along the path.

    Attributes:
        improved: Differentiate along the network's own velocity (improved MeanFlow).
        density: Of both times; the earlier is where the point is, the later where it is to go.
        ratio_r_neq_t: Share of examples whose times differ; the others learn the velocity.
        power: Of the adaptive loss: 1 lets every example pull alike, 0 is the squared error.
        floor: Of the adaptive loss, in squared data units of a whole example.
        guidance: What of it the network learns.
        label_drop: Share of examples that train without their label.
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
    """A shortcut model: the network is a flow map, one step of which agrees with two halves.

    Attributes:
        num_steps: Of the finest grid, a power of two. Samples take 1, 2, 4, .. of them.
        bootstrap_ratio: Share of examples that learn steps; the others learn the velocity.
        density: Of the times of those others.
        stratified: Spread these evenly over the density.
        guidance: Scale of classifier-free guidance that steps learn; 1 is none. The finest steps
            and the velocity stay unguided.
        label_drop: Share of examples that train without their label.
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
