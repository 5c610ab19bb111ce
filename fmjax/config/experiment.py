"""Config of an experiment: frozen dataclasses of numbers, names and choices."""

from dataclasses import dataclass, field

from fmjax._checks import require, require_at_least, require_numbers
from fmjax.config.compare import CompareConfig
from fmjax.config.losses import AnyLoss, LossConfig
from fmjax.config.pretrained import PretrainedConfig
from fmjax.config.reflow import ReflowConfig
from fmjax.config.sampling import SamplingConfig
from fmjax.data import DataConfig, DataSource, DigitsData
from fmjax.networks import DiTConfig, NetworkConfig, NetworkFactory, TextEncoderConfig
from fmjax.paths import (
    AffinePath,
    Coupling,
    Independent,
    Linear,
    MinibatchOT,
    Prediction,
    Process,
)
from fmjax.sharding import MeshConfig
from fmjax.training import AnyOptimizer, OptimizerConfig

AnyCoupling = Independent | MinibatchOT | Coupling
AnyData = DataConfig | DataSource
AnyNetwork = NetworkConfig | NetworkFactory
AnyProcess = AffinePath | Process


@dataclass(frozen=True)
class TrainingConfig:
    """Number of training steps, batch size, averaging, logs and checkpoints.

    Attributes:
        num_steps: Number of training steps.
        batch_size: Number of examples per training step, over all devices and processes.
        accumulation_steps: Number of microbatches that a batch is split into to save memory; the
            result is the same.
        ema_decay: Decay of the moving average of the weights, which sampling uses.
        flip: Mirror each image horizontally with probability 1/2.
        seed: Seed of the initial weights, the order of the data, and the noise.
        log_every: Number of steps between two lines of metrics.
        checkpoint_every: Number of steps between two checkpoints.
        checkpoints_kept: Number of newest checkpoints that are kept on disk.
        preview_samples: Generate samples after each checkpoint except the last, and write a picture
            `samples/stepNUMBER.png` if they are images or points in the plane.
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
    preview_samples: bool = True

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
    """Which metrics of samples are computed after training.

    Attributes:
        num_samples: Number of samples for the Frechet distance; None takes the size of the
            training set.
        num_projections: Number of projections of the sliced Wasserstein distance.
        num_trajectories: Number of trajectories whose straightness is measured.
        num_simulations: Number of test examples whose posteriors are checked for calibration, for a
            model of at most 8 numbers conditioned on a vector.
        classifier: Train a classifier of the classes of the data, once per dataset of images.
            Without it, the Frechet distance, precision, recall and recognized samples are left
            out.
    """

    num_samples: int | None = None
    num_projections: int = 256
    num_trajectories: int = 64
    num_simulations: int = 256
    classifier: bool = True

    def __post_init__(self) -> None:
        require_numbers(self, "evaluation.")
        if self.num_samples is not None:
            require_at_least("evaluation.num_samples", self.num_samples, 2)
        require_at_least("evaluation.num_projections", self.num_projections, 1)
        require_at_least("evaluation.num_trajectories", self.num_trajectories, 1)
        # A standard error needs two simulations.
        require_at_least("evaluation.num_simulations", self.num_simulations, 2)


@dataclass(frozen=True)
class Config:
    """All settings of an experiment. `fmjax train` stores it in the run folder.

    Attributes:
        name: Name of the run, and of its folder under runs/.
        data: Dataset that the model is trained on.
        source: Dataset whose examples are the source points, of the same shape as the data; None
            takes normal noise.
        source_noise: Standard deviation of the normal noise that is added to examples of `source`
            each time they are used. Without it, a flow between two sets of images learns little
            more than their means, because the images are few for their number of dimensions.
        reflow: Train on pairs generated by another flow instead of the data; None does not.
        standardize: Train on data and floating-point conditions from which their mean is subtracted
            and which are divided by their standard deviation: per element of vectors `[d]`, per
            channel of images and sequences. Both are measured on the training split, stored in the
            run folder, and undone in samples, log-densities and distances to data, which are in
            data units. Errors of solvers, tolerances and straightness are in standard deviations.
        conditional: Condition the network on the class labels, if the data have any.
        network: Architecture and size of the network.
        pretrained: Released model that the training starts from; None trains a new network.
        start_from: Run folder whose averaged weights the training starts from; None starts from
            initial weights, or from `pretrained`.
        text_encoder: Encoder of captions, which is trained together with the network; None for
            data without captions.
        path: Probability path from the source distribution to the data: an `AffinePath`, or a
            process of the user's own (`fmjax.paths.Process`).
        coupling: How source points and data points are paired.
        loss: Training objective.
        optimizer: Optimizer and learning rate, or a user's class that makes an optimizer of optax.
        training: Number of training steps, batch size, logs and checkpoints.
        mesh: Layout of the devices.
        sampling: Solver, guidance and number of samples.
        compare: Settings of the solver comparison.
        evaluation: Metrics of samples that are computed after training.
    """

    name: str
    data: AnyData = field(default_factory=DigitsData)
    source: AnyData | None = None
    source_noise: float = 0.0
    reflow: ReflowConfig | None = None
    standardize: bool = False
    conditional: bool = True
    network: AnyNetwork = field(default_factory=DiTConfig)
    pretrained: PretrainedConfig | None = None
    start_from: str | None = None
    text_encoder: TextEncoderConfig | None = None
    path: AnyProcess = AffinePath()
    coupling: AnyCoupling = Independent()
    loss: AnyLoss = LossConfig()
    optimizer: AnyOptimizer = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    mesh: MeshConfig = MeshConfig()
    sampling: SamplingConfig = SamplingConfig()
    compare: CompareConfig = CompareConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self) -> None:
        require_numbers(self)
        # The name becomes a folder under runs/.
        valid = self.name.replace("_", "").replace("-", "").replace(".", "").isalnum()
        require(
            valid and not self.name.startswith("."),
            "name",
            "be letters, digits, '-', '_' and '.'",
            repr(self.name),
        )
        require_at_least("source_noise", self.source_noise, 0.0)
        has_source = self.source is not None or self.source_noise == 0.0
        require(has_source, "source_noise", "be 0 without a source", self.source_noise)
        coupled_once = self.reflow is None or isinstance(self.coupling, Independent)
        rule = "be Independent for reflow, whose pairs are coupled already"
        require(coupled_once, "coupling", rule, self.coupling)
        starts_once = self.start_from is None or self.reflow is None or not self.reflow.warm_start
        rule = "be left out unless reflow.warm_start is off"
        require(starts_once, "start_from", rule, self.start_from)
        if self.pretrained is not None:
            self._require_released_settings()

    def _require_released_settings(self) -> None:
        """Raise unless the settings suit a released model: velocity prediction on a linear path."""
        loss = self.loss
        predicts_velocity = isinstance(loss, LossConfig) and loss.prediction == Prediction.VELOCITY
        rule = "be a LossConfig with prediction VELOCITY for released weights"
        require(predicts_velocity, "loss", rule, loss)
        rule = "be an AffinePath with the Linear schedule for released weights"
        is_linear = isinstance(self.path, AffinePath) and self.path.schedule == Linear()
        require(is_linear, "path", rule, self.path)
        rule = "be left out with released weights, whose data hold encoded text"
        require(self.text_encoder is None, "text_encoder", rule, self.text_encoder)
        require(self.reflow is None, "reflow", "be left out with released weights", self.reflow)
        rule = "be off with released weights, whose data are latents of their autoencoder"
        require(not self.standardize, "standardize", rule, self.standardize)

    @property
    def paired(self) -> bool:
        """Whether the data come as pairs of a source point and a data point."""
        return self.source is not None or self.reflow is not None
