"""The whole experiment as frozen dataclasses: only numbers, names and choices."""

from dataclasses import dataclass, field

from fmjax._checks import require, require_at_least, require_numbers
from fmjax.config.compare import CompareConfig
from fmjax.config.losses import AnyLoss, LossConfig
from fmjax.config.pretrained import PretrainedConfig
from fmjax.config.reflow import ReflowConfig
from fmjax.config.sampling import SamplingConfig
from fmjax.data import DataConfig, DigitsData
from fmjax.networks import DiTConfig, NetworkConfig, TextEncoderConfig
from fmjax.paths import AffinePath, Independent, Linear, MinibatchOT, Prediction
from fmjax.sharding import MeshConfig
from fmjax.training import OptimizerConfig

AnyCoupling = Independent | MinibatchOT


@dataclass(frozen=True)
class TrainingConfig:
    """How long and in what portions to train.

    Attributes:
        num_steps: Optimiser steps.
        batch_size: Examples of one step, over all devices and processes.
        accumulation_steps: Parts in which a step takes its batch; the numbers are the same.
        ema_decay: Decay of the averaged weights, which sampling uses.
        flip: Mirror each image left to right with probability one half.
        seed: Of everything that is drawn: weights, order of the data, noise.
        log_every: Steps between two lines of metrics.
        checkpoint_every: Steps between two checkpoints.
        checkpoints_kept: How many of the newest checkpoints stay on disk.
        draw_samples: Draw samples after each checkpoint but the last and write their picture,
            `samples/stepNUMBER.png`, of images and of points in the plane.
    """

    num_steps: int = 10_000
    batch_size: int = 128
    accumulation_steps: int = 1
    ema_decay: float = 0.999
    flip: bool = False
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 1_000
    checkpoints_kept: int = 2
    draw_samples: bool = True

    def __post_init__(self) -> None:
        require_numbers(self, "training.")
        for name in ("num_steps", "batch_size", "accumulation_steps", "log_every"):
            require_at_least(f"training.{name}", getattr(self, name), 1)
        for name in ("checkpoint_every", "checkpoints_kept"):
            require_at_least(f"training.{name}", getattr(self, name), 1)
        require_at_least("training.seed", self.seed, 0)
        in_range = 0.0 <= self.ema_decay < 1.0
        require(in_range, "training.ema_decay", "lie in [0, 1)", self.ema_decay)


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured of the samples after training.

    Attributes:
        num_samples: Drawn for the Frechet distance; None for as many as the training set has.
        num_projections: Of the sliced Wasserstein distance.
        num_paths: Paths of the field that are followed, for how straight they are.
        classifier: Whether a classifier of the data's classes is trained, once for a set of
            images. Without it there are no Frechet distance, precision, recall and recognised
            samples.
    """

    num_samples: int | None = None
    num_projections: int = 256
    num_paths: int = 64
    classifier: bool = True

    def __post_init__(self) -> None:
        require_numbers(self, "evaluation.")
        if self.num_samples is not None:
            require_at_least("evaluation.num_samples", self.num_samples, 2)
        require_at_least("evaluation.num_projections", self.num_projections, 1)
        require_at_least("evaluation.num_paths", self.num_paths, 1)


@dataclass(frozen=True)
class Config:
    """One experiment, whole. `fmjax train` reads it from a file and keeps it in the run folder.

    Attributes:
        name: Of the run and its folder.
        data: What is learned.
        source: What the flow starts from: None is normal noise, else examples of other data of
            the same shape.
        source_noise: Standard deviation of normal noise that is added to those examples, anew each
            time. Images are so few in so many dimensions that without it a flow from them has
            hardly anything but their means to go to.
        reflow: Train on the pairs that another flow makes, not on the data.
        conditional: Whether the data's classes, where it has any, condition the network.
        network: What predicts.
        pretrained: Released weights that the training starts from.
        text_encoder: What reads captions, of data that have them; it is trained along.
        path: From noise to data.
        coupling: How noise and data are paired.
        loss: What the network is trained for.
        optimizer: How its weights move.
        training: How long, and in what portions.
        mesh: The layout of the devices.
        sampling: How samples are drawn.
        compare: The solver comparison.
        evaluation: What is measured of the samples.
    """

    name: str
    data: DataConfig = field(default_factory=DigitsData)
    source: DataConfig | None = None
    source_noise: float = 0.0
    reflow: ReflowConfig | None = None
    conditional: bool = True
    network: NetworkConfig = field(default_factory=DiTConfig)
    pretrained: PretrainedConfig | None = None
    text_encoder: TextEncoderConfig | None = None
    path: AffinePath = AffinePath()
    coupling: AnyCoupling = Independent()
    loss: AnyLoss = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    mesh: MeshConfig = MeshConfig()
    sampling: SamplingConfig = SamplingConfig()
    compare: CompareConfig = CompareConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self) -> None:
        require_numbers(self)
        # The name becomes a folder under runs/.
        plain = self.name.replace("_", "").replace("-", "").replace(".", "").isalnum()
        require(
            plain and not self.name.startswith("."),
            "name",
            "be letters, digits, '-', '_' and '.'",
            repr(self.name),
        )
        require_at_least("source_noise", self.source_noise, 0.0)
        noisy = self.source is not None or self.source_noise == 0.0
        require(noisy, "source_noise", "be 0 without a source", self.source_noise)
        paired = self.reflow is None or isinstance(self.coupling, Independent)
        rule = "be Independent on pairs, which are coupled already"
        require(paired, "coupling", rule, self.coupling)
        if self.pretrained is not None:
            self._require_as_released()

    def _require_as_released(self) -> None:
        """Released weights predict the velocity of straight paths from noise."""
        plain = isinstance(self.loss, LossConfig)
        plain = plain and self.loss.prediction == Prediction.VELOCITY  # type: ignore[union-attr]
        require(plain, "loss", "be of a velocity for released weights", self.loss)
        rule = "be the linear one for released weights"
        require(self.path.schedule == Linear(), "path", rule, self.path)
        rule = "be left out with released weights, whose text is encoded already"
        require(self.text_encoder is None, "text_encoder", rule, self.text_encoder)
        require(self.reflow is None, "reflow", "be left out with released weights", self.reflow)

    @property
    def paired(self) -> bool:
        """Whether batches have source points of their own."""
        return self.source is not None or self.reflow is not None
