"""Which solvers are compared, and at what settings."""

import typing
from dataclasses import dataclass

from fmjax._checks import (
    MAX_STEPS,
    require,
    require_at_least,
    require_between,
    require_numbers,
    require_one_of,
    require_positive,
)
from fmjax.config.sampling import Grid
from fmjax.config.solvers import RATES, SOLVERS, can_adapt

_ALL_FIXED = ("euler", "midpoint", "heun", "rk4", "adams_bashforth_2")
_ALL_ADAPTIVE = ("bosh3", "tsit5", "dopri5", "dopri8")


@dataclass(frozen=True)
class CompareConfig:
    """The solver comparison.

    Attributes:
        num_samples: Shared noises that every solver starts from.
        fixed_solvers: Names of those that take each of `num_steps` steps: of the ODE, of the SDE
            or of diffusion models.
        num_steps: Their steps.
        grids: Where fixed steps lie; every fixed solver is run on each.
        adaptive_solvers: Names of those that adapt their steps to each of `tolerances`.
        tolerances: Their rtol = atol.
        all: Also compare the other common ODE solvers, nine in all: euler, midpoint, heun, rk4 and
            adams_bashforth_2 with fixed steps, bosh3, tsit5, dopri5 and dopri8 with adaptive ones.
        slots: Also stream each adaptive ODE solver through so many slots; None does not.
        bfloat16: Also solve the same weights computed in bfloat16 by the adaptive solvers.
        rate: Noise of SDE solvers along the way, as of `SamplingConfig`.
        rate_scale: Its factor.
        guidance: Classifier-free guidance scale of the field that is solved; 1 is none, which
            shows the solvers on the field that was trained.
        seed: Of the noise.
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
        require(not both, "compare.adaptive_solvers", "not be among the fixed ones", sorted(both))
        for grid in self.grids:
            require_one_of("compare.grids", grid, typing.get_args(Grid))
        require_one_of("compare.rate", self.rate, RATES)
        require_at_least("compare.rate_scale", self.rate_scale, 0.0)
        if self.slots is not None:
            require_at_least("compare.slots", self.slots, 1)
        for steps in self.num_steps:
            require_between("compare.num_steps", steps, 1, MAX_STEPS)
        for tolerance in self.tolerances:
            require_positive("compare.tolerances", tolerance)

    @property
    def compared_fixed(self) -> tuple[str, ...]:
        """Names of the solvers with fixed steps that are compared, those of `all` included."""
        return self.fixed_solvers + self._missing(_ALL_FIXED)

    @property
    def compared_adaptive(self) -> tuple[str, ...]:
        """Names of the solvers with adaptive steps that are compared, those of `all` included."""
        return self.adaptive_solvers + self._missing(_ALL_ADAPTIVE)

    def _missing(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The names that `all` adds to those in the config; none unless `all` is set."""
        named = {*self.fixed_solvers, *self.adaptive_solvers}
        return tuple(name for name in names if self.all and name not in named)
