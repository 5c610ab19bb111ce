"""How a field is solved: one solver for samples, many for the comparison."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fmjax import solvers, times
from fmjax._checks import require, require_at_least, require_one_of, require_positive
from fmjax.schedules import AnySchedule, Linear, times_of_linear
from fmjax.solvers import AdaptiveSteps, ErrorControl, FixedSteps
from fmjax.times import AnyDensity, LogitNormal, Shifted

DensityConfig = AnyDensity | Shifted

SOLVERS: dict[str, Callable[[], Any]] = {
    "euler": solvers.Euler,
    "midpoint": solvers.Midpoint,
    "heun": solvers.Heun,
    "rk4": solvers.RK4,
    "adams_bashforth_2": solvers.AdamsBashforth2,
    **solvers.DIFFRAX_SOLVERS,
}


def solver_title(solver: str) -> str:
    """The name as reports write it: "Tsit5", "RK4", "Implicit euler"."""
    titles = {"rk4": "RK4", "adams_bashforth_2": "Adams-Bashforth 2"}
    return titles.get(solver, solver.replace("_", " ").capitalize())


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
        require_one_of("grid", self.grid, ("uniform", "shifted", "edm", "quantiles"))
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

    def make_steps(self, schedule: AnySchedule = Linear()) -> FixedSteps | AdaptiveSteps:
        """Fixed steps on the chosen grid, or adaptive ones.

        Args:
            schedule: Of the path, for the times at which it has EDM's noise-to-data ratios.
        """
        if self.num_steps is None:
            return AdaptiveSteps(self.rtol, self.atol, self.control)
        if self.grid == "edm":
            return FixedSteps(times_of_linear(schedule, times.edm_grid(self.num_steps)))
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
        fixed_solvers: Names of those that take each of `num_steps` equal steps.
        num_steps: Their steps.
        adaptive_solvers: Names of those that adapt their steps to each of `tolerances`.
        tolerances: Their rtol = atol.
        guidance: Classifier-free guidance scale of the field that is solved; 1 is none, which
            shows the solvers on the field that was trained.
        seed: Of the noise.
    """

    num_samples: int = 64
    fixed_solvers: tuple[str, ...] = ("euler", "midpoint", "heun", "rk4", "adams_bashforth_2")
    num_steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    adaptive_solvers: tuple[str, ...] = ("bosh3", "tsit5", "dopri5", "dopri8")
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    guidance: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least("compare.guidance", self.guidance, 0.0)
        require_at_least("compare.num_samples", self.num_samples, 2)
        for solver in self.fixed_solvers:
            require_one_of("compare.fixed_solvers", solver, SOLVERS)
        for solver in self.adaptive_solvers:
            require_one_of("compare.adaptive_solvers", solver, filter(can_adapt, SOLVERS))
        both = set(self.fixed_solvers) & set(self.adaptive_solvers)
        require(not both, "compare.adaptive_solvers", "not be among the fixed ones", sorted(both))
        for steps in self.num_steps:
            require_at_least("compare.num_steps", steps, 1)
        for tolerance in self.tolerances:
            require_positive("compare.tolerances", tolerance)
