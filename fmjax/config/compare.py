"""Configs of the solver comparison, on a run or on a prompt with a released model."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Unpack

from fmjax._checks import (
    MAX_STEPS,
    require,
    require_at_least,
    require_between,
    require_numbers,
    require_one_of,
    require_positive,
)
from fmjax.config.sampling import Sampling, SamplingNames
from fmjax.config.solvers import (
    FLOW_MAP,
    GRIDS,
    ODE_SOLVERS,
    RATES,
    SDE_SOLVERS,
    SOLVERS,
    can_adapt,
)

Grid = Literal["uniform", "shifted", "edm", "quantiles", "calibrated"]
_ALL_FIXED = ("euler", "midpoint", "heun", "rk4", "adams_bashforth_2")
_ALL_ADAPTIVE = ("bosh3", "tsit5", "dopri5", "dopri8")


@dataclass(frozen=True)
class CompareConfig:
    """Which solvers are compared, and with which steps and tolerances.

    Attributes:
        num_samples: Number of source points, from which every solver starts.
        fixed_solvers: Names of fixed-step solvers, of the ODE, of the SDE or of diffusion models;
            each is run with each number of steps and each grid.
        num_steps: Numbers of steps of the fixed-step solvers.
        grids: Time grids of the fixed-step solvers.
        adaptive_solvers: Names of adaptive solvers; each is run with each of the tolerances.
        tolerances: Tolerances of the adaptive solvers, each used as both rtol and atol.
        all: Also compare the other common ODE solvers. Together these are nine: euler, midpoint,
            heun, rk4 and adams_bashforth_2 with fixed steps, bosh3, tsit5, dopri5 and dopri8 with
            adaptive steps.
        slots: Number of slots through which each adaptive ODE solver also streams its samples;
            None does not stream.
        bfloat16: Also run the adaptive solvers with the network computed in bfloat16.
        rate: Diffusion rate of SDE solvers, one of the names of `SamplingOptions.rate`.
        rate_scale: Factor of the diffusion rate of SDE solvers.
        guidance: Classifier-free guidance scale of the velocity field; 1 is no guidance, and
            compares the solvers on the field as it was trained.
        seed: Seed of the source points and of the noise of SDE solvers.
    """

    num_samples: int = 64
    fixed_solvers: tuple[str, ...] = ("euler", "heun", "rk4")
    num_steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    grids: tuple[Grid, ...] = ("uniform",)
    adaptive_solvers: tuple[str, ...] = ("tsit5",)
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    all: bool = False
    slots: int | None = None
    bfloat16: bool = False
    rate: str = "sigma"
    rate_scale: float = 1.0
    guidance: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_numbers(self, "compare.")
        require_at_least("compare.guidance", self.guidance, 0.0)
        require_at_least("compare.num_samples", self.num_samples, 2)
        for solver in self.fixed_solvers:
            require_one_of("compare.fixed_solvers", solver, SOLVERS)
        for solver in self.adaptive_solvers:
            require_one_of("compare.adaptive_solvers", solver, filter(can_adapt, SOLVERS))
        both = set(self.fixed_solvers) & set(self.adaptive_solvers)
        rule = "not be among compare.fixed_solvers"
        require(not both, "compare.adaptive_solvers", rule, sorted(both))
        for grid in self.grids:
            require_one_of("compare.grids", grid, GRIDS)
        require_one_of("compare.rate", self.rate, RATES)
        require_at_least("compare.rate_scale", self.rate_scale, 0.0)
        if self.slots is not None:
            require_at_least("compare.slots", self.slots, 1)
        for steps in self.num_steps:
            require_between("compare.num_steps", steps, 1, MAX_STEPS)
        for tolerance in self.tolerances:
            require_positive("compare.tolerances", tolerance)

    @property
    def all_fixed_solvers(self) -> tuple[str, ...]:
        """Names of the compared fixed-step solvers, including those added by `all`."""
        return self.fixed_solvers + self._missing(_ALL_FIXED)

    @property
    def all_adaptive_solvers(self) -> tuple[str, ...]:
        """Names of the compared adaptive solvers, including those added by `all`."""
        return self.adaptive_solvers + self._missing(_ALL_ADAPTIVE)

    def sampling(self, solver: str, /, **names: Unpack[SamplingNames]) -> Sampling:
        """Return how one solver samples, with the guidance and the diffusion rate of the config.

        Args:
            solver: Name of the solver.
            names: More settings by short name.
        """
        if solver in SDE_SOLVERS:
            names = {"rate": self.rate, "rate_scale": self.rate_scale, **names}
        return Sampling.of(**{**names, "solver": solver, "guidance": self.guidance})

    def checked_samplings(self) -> Iterator[Sampling]:
        """Iterate over the samplings that a model must support."""
        yield self.sampling("tsit5")
        for name in self.all_adaptive_solvers:
            yield self.sampling(name)
        for name in self.all_fixed_solvers:
            # Only jumps of a flow map may be limited to some numbers of steps.
            numbers = self.num_steps if name == FLOW_MAP else self.num_steps[:1]
            for num, grid in itertools.product(numbers, self.grids):
                yield self.sampling(name, num_steps=num, grid=grid)

    def _missing(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names that `all` adds to the solvers of the config; none if it is not set."""
        listed = {*self.fixed_solvers, *self.adaptive_solvers}
        return tuple(name for name in names if self.all and name not in listed)


@dataclass(frozen=True)
class ComparePromptConfig:
    """Solvers and settings to compare on a prompt.

    Attributes:
        fixed_solvers: Names of solvers with fixed steps on the time grid of the model.
        num_steps: Numbers of steps of each solver in `fixed_solvers`.
        adaptive_solvers: Names of solvers with adaptive steps.
        tolerances: Tolerances, rtol = atol, of each solver in `adaptive_solvers`.
    """

    fixed_solvers: tuple[str, ...] = ("euler", "heun", "adams_bashforth_2")
    num_steps: tuple[int, ...] = (4, 8, 16, 28)
    adaptive_solvers: tuple[str, ...] = ("bosh3", "tsit5")
    tolerances: tuple[float, ...] = (1e-1, 1e-2, 1e-3)

    def __post_init__(self) -> None:
        require_numbers(self)
        for solver in self.fixed_solvers:
            require_one_of("fixed_solvers", solver, ODE_SOLVERS)
        for solver in self.adaptive_solvers:
            require_one_of("adaptive_solvers", solver, filter(can_adapt, ODE_SOLVERS))
        for number in self.num_steps:
            require_between("num_steps", number, 1, MAX_STEPS)
        for tolerance in self.tolerances:
            require_positive("tolerances", tolerance)
        has_fixed = bool(self.fixed_solvers and self.num_steps)
        has_adaptive = bool(self.adaptive_solvers and self.tolerances)
        rule = "have at least one solver with steps or tolerances"
        require(has_fixed or has_adaptive, "comparison", rule, "none")
