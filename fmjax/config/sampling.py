"""How noise becomes samples."""

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
    AnySchedule,
    Linear,
    LogitNormal,
    Shifted,
    Tabulated,
    times,
    times_of_linear,
)
from fmjax.solvers import AdaptiveSteps, AnyRate, ErrorControl, FixedSteps, SigmaRate

DensityConfig = AnyDensity | Shifted
Grid = Literal["uniform", "shifted", "edm", "quantiles", "calibrated"]


@dataclass(frozen=True)
class SamplingConfig:
    """How noise becomes samples.

    Attributes:
        num_samples: How many.
        solver: Name of a solver, lower case. Of the ODE: tsit5, dopri5, euler, heun, ...; of the
            SDE: euler_maruyama, stochastic_heun, shark, ...; of diffusion models: ddim,
            ancestral, dpm_solver_pp_2m, unipc; flow_map: the jumps of a network that is one.
        num_steps: Fixed steps; None adapts them to the tolerances.
        grid: Where fixed steps lie: uniform, shifted (by `shift`), edm, at the quantiles of
            `grid_density`, or calibrated: as the run's own paths want them.
        shift: Of the shifted grid; above 1 takes shorter steps near the noise.
        grid_density: Of the quantiles grid.
        rtol: Relative tolerance of adaptive steps.
        atol: Absolute tolerance of adaptive steps, in data units.
        control: Whose error decides: the worst sample's, each sample's own, or the batch's rms.
            Adaptive steps of an SDE, and those of samples that stream, are each sample's own.
        slots: Adaptive steps of an ODE only: so many samples are in flight on each device, and
            whenever one arrives the next of the batch takes its slot. None solves a batch at once.
        rate: Noise of an SDE along the way: sigma, that of the path; constant; increasing,
            decreasing or increasing_decreasing (`fmjax.solvers.diffusion_rates`).
        rate_scale: Its factor.
        rate_power: Of sigma only: 1/2 is SiT's.
        last_step: Least length of the step without noise that ends an SDE.
        clip: Diffusion samplers only: bound on what they take for the data; None is none.
        guidance: Classifier-free guidance scale; 1 is none.
        guidance_interval: The times that are guided.
        batch_size: Samples solved together.
        seed: Of the noise.
        prompts: Of models of captions: what is asked for, each prompt as often as the others; none
            takes some of the captions that were trained on.
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
        rule = f"be at least {len(self.prompts)}, one of each prompt"
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
            rule = "be left out for what is not an ODE solver"
            require(self.solver in ODE_SOLVERS, "slots", rule, self.slots)
        require_one_of("rate", self.rate, RATES)
        require_at_least("rate_scale", self.rate_scale, 0.0)
        require_positive("rate_power", self.rate_power)
        require_between("last_step", self.last_step, 0.0, 0.999)
        if self.clip is not None:
            require_positive("clip", self.clip)
            clips = self.solver in DIFFUSION_SAMPLERS
            require(clips, "clip", f"be left out for {self.solver}, which has none", self.clip)
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
        """The solver object that the name means."""
        return SOLVERS[self.solver]()

    def make_rate(self, schedule: AnySchedule = Linear()) -> AnyRate:
        """The noise of an SDE along the way, on a path of this schedule."""
        if self.rate == "sigma":
            return SigmaRate(self.rate_scale, schedule, self.rate_power)
        return RATES[self.rate](self.rate_scale)

    def make_steps(
        self, schedule: AnySchedule = Linear(), calibrated: Tabulated | None = None
    ) -> FixedSteps | AdaptiveSteps:
        """Fixed steps on the chosen grid, or adaptive ones.

        Args:
            schedule: Of the path, for the times at which it has EDM's noise-to-data ratios.
            calibrated: The density of the calibrated grid.

        Raises:
            ValueError: If the grid is calibrated and there is no such density, or slots are
                given for fixed steps.
        """
        if self.num_steps is not None:
            rule = "be left out with a number of steps: only adaptive ones stream"
            require(self.slots is None, "slots", rule, self.slots)
            return FixedSteps(self._times(self.num_steps, schedule, calibrated))
        own = self.slots is not None or self.solver in SDE_SOLVERS
        control = ErrorControl.PER_SAMPLE if own else self.control
        return AdaptiveSteps(self.rtol, self.atol, control, slots=self.slots)

    def _times(
        self, num_steps: int, schedule: AnySchedule, calibrated: Tabulated | None
    ) -> jax.Array:
        if self.grid == "edm":
            return times_of_linear(schedule, times.edm_grid(num_steps))
        if self.grid == "shifted":
            return times.shifted_grid(num_steps, self.shift)
        if self.grid == "quantiles":
            return times.quantile_grid(num_steps, self.grid_density)
        if self.grid == "calibrated":
            require(calibrated is not None, "grid", "be of a trained run to be calibrated", None)
            assert calibrated is not None
            return times.quantile_grid(num_steps, calibrated)
        return times.uniform_grid(num_steps)
