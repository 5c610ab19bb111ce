"""Config of sampling: solver, steps, guidance and seed."""

import typing
from dataclasses import dataclass
from typing import Any, Literal

import jax

from fmjax._checks import (
    MAX_STEPS,
    require,
    require_at_least,
    require_between,
    require_numbers,
    require_one_of,
    require_positive,
)
from fmjax.config.solvers import (
    DIFFUSION_SAMPLERS,
    ODE_SOLVERS,
    RATES,
    SDE_SOLVERS,
    SOLVERS,
    can_adapt,
)
from fmjax.paths import (
    AnyDensity,
    Density,
    Linear,
    LogitNormal,
    Schedule,
    Shifted,
    Tabulated,
    times,
    times_of_linear,
)
from fmjax.solvers import AdaptiveSteps, AnyRate, ErrorControl, FixedSteps, SigmaRate

DensityConfig = AnyDensity | Shifted | Density
Grid = Literal["uniform", "shifted", "edm", "quantiles", "calibrated"]


@dataclass(frozen=True)
class SamplingConfig:
    """Solver, steps, noise, guidance and number of samples.

    Attributes:
        num_samples: Number of samples.
        solver: Name of a solver in lower case. For the ODE: tsit5, dopri5, euler, heun, ...; for
            the SDE: euler_maruyama, stochastic_heun, shark, ...; for diffusion models: ddim,
            ancestral, dpm_solver_pp_2m, unipc; for flow maps: flow_map.
        num_steps: Number of fixed steps; None adapts the steps to the tolerances.
        grid: Time grid of fixed steps: uniform; shifted (see `shift`); edm; quantiles (of
            `grid_density`); or calibrated, which is measured on trajectories of the run.
        shift: Shift of the shifted grid; values above 1 make the steps near the noise shorter.
        grid_density: Density whose quantiles are the times of the quantiles grid.
        rtol: Relative tolerance of adaptive steps.
        atol: Absolute tolerance of adaptive steps, in data units.
        control: Error that sets the step size: that of the worst sample of the batch, of each
            sample separately, or the rms over the batch. With an SDE or with slots, each sample
            always has separate steps.
        slots: Number of samples solved at a time on each device, for adaptive steps of an ODE: a
            finished sample is replaced by the next one of the batch. None solves the entire batch
            at once.
        rate: Diffusion rate of SDE solvers: sigma (a power of the path's sigma(t)), constant,
            increasing, decreasing or increasing_decreasing (`fmjax.solvers.diffusion_rates`).
        rate_scale: Factor of the diffusion rate.
        rate_power: Exponent of the sigma(t) for the rate sigma; SiT uses 1/2.
        last_step: Minimum length of the last step of an SDE, which adds no noise.
        clip: Bound on the predicted data of diffusion samplers; None does not clip.
        guidance: Classifier-free guidance scale; 1 is no guidance.
        guidance_interval: First and last time with guidance.
        batch_size: Number of samples solved at a time.
        seed: Seed of the noise.
        prompts: Prompts to sample, equally many of each, for models of captions. Without
            any, captions of the training data are used.
    """

    num_samples: int = 64
    solver: str = "tsit5"
    num_steps: int | None = None
    grid: Grid = "uniform"
    shift: float = 3.0
    grid_density: DensityConfig = LogitNormal()
    rtol: float = 1e-4
    atol: float = 1e-4
    control: ErrorControl = ErrorControl.LARGEST_SAMPLE
    slots: int | None = None
    rate: str = "sigma"
    rate_scale: float = 1.0
    rate_power: float = 1.0
    last_step: float = 0.04
    clip: float | None = None
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    batch_size: int = 256
    seed: int = 0
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_numbers(self)
        require_at_least("num_samples", self.num_samples, 1)
        rule = f"be at least {len(self.prompts)}, the number of prompts"
        require(self.num_samples >= len(self.prompts), "num_samples", rule, self.num_samples)
        require_at_least("batch_size", self.batch_size, 1)
        require_one_of("solver", self.solver, SOLVERS)
        if self.num_steps is not None:
            require_between("num_steps", self.num_steps, 1, MAX_STEPS)
        else:
            rule = f"be given for {self.solver}, which estimates no error"
            require(can_adapt(self.solver), "num_steps", rule, None)
        require_one_of("grid", self.grid, typing.get_args(Grid))
        if self.slots is not None:
            require_at_least("slots", self.slots, 1)
            rule = f"be left out for {self.solver}, which is not an ODE solver"
            require(self.solver in ODE_SOLVERS, "slots", rule, self.slots)
        require_one_of("rate", self.rate, RATES)
        require_at_least("rate_scale", self.rate_scale, 0.0)
        require_positive("rate_power", self.rate_power)
        require_between("last_step", self.last_step, 0.0, 0.999)
        if self.clip is not None:
            require_positive("clip", self.clip)
            clips = self.solver in DIFFUSION_SAMPLERS
            rule = f"be left out for {self.solver}, which does not clip"
            require(clips, "clip", rule, self.clip)
        require_positive("shift", self.shift)
        require_positive("rtol", self.rtol)
        require_positive("atol", self.atol)
        require_at_least("guidance", self.guidance, 0.0)
        low, high = self.guidance_interval
        require(
            0.0 <= low <= high <= 1.0,
            "guidance_interval",
            "be low <= high in [0, 1]",
            self.guidance_interval,
        )

    def make_solver(self) -> Any:
        """Return the solver object; None for flow_map, which needs none."""
        return SOLVERS[self.solver]()

    def make_rate(self, schedule: Schedule = Linear()) -> AnyRate:
        """Return the diffusion rate of an SDE, on a path with this schedule."""
        if self.rate == "sigma":
            return SigmaRate(self.rate_scale, schedule, self.rate_power)
        return RATES[self.rate](self.rate_scale)

    def make_steps(
        self, schedule: Schedule | None = Linear(), calibrated: Tabulated | None = None
    ) -> FixedSteps | AdaptiveSteps:
        """Return fixed steps on the time grid, or adaptive steps.

        Args:
            schedule: Schedule of the path, on which the edm grid depends; None for a process
                that is not an `AffinePath`.
            calibrated: Density whose quantiles are the times of the calibrated grid.

        Raises:
            ValueError: If the grid is calibrated and `calibrated` is None, the grid is edm and
                `schedule` is None, or slots are set with fixed steps.
        """
        if self.num_steps is not None:
            rule = "be left out with num_steps: only adaptive steps stream samples"
            require(self.slots is None, "slots", rule, self.slots)
            return FixedSteps(self._times(self.num_steps, schedule, calibrated))
        per_sample = self.slots is not None or self.solver in SDE_SOLVERS
        control = ErrorControl.PER_SAMPLE if per_sample else self.control
        return AdaptiveSteps(self.rtol, self.atol, control, slots=self.slots)

    def _times(
        self, num_steps: int, schedule: Schedule | None, calibrated: Tabulated | None
    ) -> jax.Array:
        """Return the times of the grid, from 0 to 1."""
        if self.grid == "edm":
            require(schedule is not None, "grid", "not be edm without an AffinePath", self.grid)
            assert schedule is not None
            return times_of_linear(schedule, times.edm_grid(num_steps))
        if self.grid == "shifted":
            return times.shifted_grid(num_steps, self.shift)
        if self.grid == "quantiles":
            return times.quantile_grid(num_steps, self.grid_density)
        if self.grid == "calibrated":
            rule = "not be calibrated without a trained run"
            require(calibrated is not None, "grid", rule, self.grid)
            assert calibrated is not None
            return times.quantile_grid(num_steps, calibrated)
        return times.uniform_grid(num_steps)
