"""The whole experiment as frozen dataclasses: only numbers, names and choices."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from fmjax import solvers, times
from fmjax._checks import (
    require,
    require_at_least,
    require_between,
    require_one_of,
    require_positive,
)
from fmjax.couplings import Independent, MinibatchOT
from fmjax.data import DataConfig, DigitsData
from fmjax.losses import TimeWeight
from fmjax.networks import DiTConfig, NetworkConfig
from fmjax.paths import AffinePath, Prediction
from fmjax.solvers import AdaptiveSteps, ErrorControl, FixedSteps
from fmjax.times import AnyDensity, LogitNormal, Shifted, Uniform
from fmjax.training import MeshConfig, OptimizerConfig

DensityConfig = AnyDensity | Shifted
AnyCoupling = Independent | MinibatchOT


@dataclass(frozen=True)
class LossConfig:
    """What the network predicts, how its error counts, and at which times it is asked.

    Attributes:
        prediction: What the network's output is. With x1 and the loss in velocity, set
            `path.min_divisor` (JiT takes 0.05): it bounds the weight of times near 1.
        space: The quantity whose squared error is the loss.
        weight: Weight of each time.
        density: Density of the training times.
        stratified: Spread a batch's times evenly over the density.
        label_drop: Share of examples that train without their label, for guidance.
    """

    prediction: Prediction = Prediction.VELOCITY
    space: Prediction = Prediction.VELOCITY
    weight: TimeWeight = TimeWeight()
    density: DensityConfig = Uniform()
    stratified: bool = False
    label_drop: float = 0.1

    def __post_init__(self) -> None:
        require_between("loss.label_drop", self.label_drop, 0.0, 1.0)


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

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "accumulation_steps", "log_every"):
            require_at_least(f"training.{name}", getattr(self, name), 1)
        for name in ("checkpoint_every", "checkpoints_kept"):
            require_at_least(f"training.{name}", getattr(self, name), 1)
        require_at_least("training.seed", self.seed, 0)
        in_range = 0.0 <= self.ema_decay < 1.0
        require(in_range, "training.ema_decay", "lie in [0, 1)", self.ema_decay)


SOLVERS: dict[str, Callable[[], Any]] = {
    "euler": solvers.Euler,
    "midpoint": solvers.Midpoint,
    "heun": solvers.Heun,
    "rk4": solvers.RK4,
    "adams_bashforth_2": solvers.AdamsBashforth2,
    **solvers.DIFFRAX_SOLVERS,
}


def can_adapt(solver: str) -> bool:
    """Whether the solver of this name estimates its error, and so can adapt its steps."""
    return solvers.has_error_estimate(SOLVERS[solver])


@dataclass(frozen=True)
class SamplingConfig:
    """How noise becomes samples.

    Attributes:
        num_samples: How many.
        solver: Name of an ODE solver, lower case: tsit5, dopri5, euler, heun, ...
        num_steps: Fixed steps; None adapts them to the tolerances.
        grid: Where fixed steps lie: uniform, shifted (by `shift`), edm, or at the quantiles of
            `grid_density`.
        shift: Of the shifted grid; above 1 takes shorter steps near the noise.
        grid_density: Of the quantiles grid.
        rtol: Relative tolerance of adaptive steps.
        atol: Absolute tolerance of adaptive steps, in data units.
        control: Whose error decides: the worst sample's, each sample's own, or the batch's rms.
        guidance: Classifier-free guidance scale; 1 is none.
        guidance_interval: The times that are guided.
        batch_size: Samples solved together.
        seed: Of the noise.
    """

    num_samples: int = 64
    solver: str = "tsit5"
    num_steps: int | None = None
    grid: Literal["uniform", "shifted", "edm", "quantiles"] = "uniform"
    shift: float = 3.0
    grid_density: DensityConfig = LogitNormal()
    rtol: float = 1e-4
    atol: float = 1e-4
    control: ErrorControl = ErrorControl.LARGEST_SAMPLE
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least("num_samples", self.num_samples, 1)
        require_at_least("batch_size", self.batch_size, 1)
        require_one_of("solver", self.solver, SOLVERS)
        if self.num_steps is not None:
            require_at_least("num_steps", self.num_steps, 1)
        else:
            rule = f"be given for {self.solver}, which estimates no error"
            require(can_adapt(self.solver), "num_steps", rule, None)
        require_positive("shift", self.shift)
        require_positive("rtol", self.rtol)
        require_positive("atol", self.atol)
        require_at_least("guidance", self.guidance, 0.0)
        low, high = self.guidance_interval
        require(0.0 <= low <= high <= 1.0, "guidance_interval", "be low <= high in [0, 1]",
                self.guidance_interval)  # fmt: skip

    def make_solver(self) -> Any:
        """The solver object that the name means."""
        return SOLVERS[self.solver]()

    def make_steps(self) -> FixedSteps | AdaptiveSteps:
        """Fixed steps on the chosen grid, or adaptive ones."""
        if self.num_steps is None:
            return AdaptiveSteps(self.rtol, self.atol, self.control)
        if self.grid == "edm":
            return FixedSteps(times.edm_grid(self.num_steps))
        if self.grid == "shifted":
            return FixedSteps(times.shifted_grid(self.num_steps, self.shift))
        if self.grid == "quantiles":
            return FixedSteps(times.quantile_grid(self.num_steps, self.grid_density))
        return FixedSteps(times.uniform_grid(self.num_steps))


@dataclass(frozen=True)
class CompareConfig:
    """The solver comparison.

    Attributes:
        num_samples: Shared noises that every solver starts from.
        num_steps: Steps of the fixed solvers.
        tolerances: rtol = atol of the adaptive solvers.
        guidance: Classifier-free guidance scale of the field that is solved; 1 is none, which
            shows the solvers on the field that was trained.
        seed: Of the noise.
    """

    num_samples: int = 64
    num_steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    guidance: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least("compare.guidance", self.guidance, 0.0)
        require_at_least("compare.num_samples", self.num_samples, 2)
        for steps in self.num_steps:
            require_at_least("compare.num_steps", steps, 1)
        for tolerance in self.tolerances:
            require_positive("compare.tolerances", tolerance)


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured of the samples after training.

    Attributes:
        num_samples: Drawn for the Frechet distance; None for as many as the training set has.
        num_projections: Of the sliced Wasserstein distance.
    """

    num_samples: int | None = None
    num_projections: int = 256

    def __post_init__(self) -> None:
        if self.num_samples is not None:
            require_at_least("evaluation.num_samples", self.num_samples, 2)
        require_at_least("evaluation.num_projections", self.num_projections, 1)


@dataclass(frozen=True)
class Config:
    """One experiment, whole. `fmjax train` reads it from a file and keeps it in the run folder.

    Attributes:
        name: Of the run and its folder.
        data: What is learned.
        conditional: Whether the data's classes, where it has any, condition the network.
        network: What predicts.
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
    conditional: bool = True
    network: NetworkConfig = field(default_factory=DiTConfig)
    path: AffinePath = AffinePath()
    coupling: AnyCoupling = Independent()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    mesh: MeshConfig = MeshConfig()
    sampling: SamplingConfig = SamplingConfig()
    compare: CompareConfig = CompareConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self) -> None:
        # The name becomes a folder under runs/.
        plain = self.name.replace("_", "").replace("-", "").replace(".", "").isalnum()
        require(plain and not self.name.startswith("."), "name",
                "be letters, digits, '-', '_' and '.'", repr(self.name))  # fmt: skip
