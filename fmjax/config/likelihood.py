"""How the likelihood of test data is found."""

from dataclasses import dataclass
from typing import Any, Literal

from fmjax._checks import (
    MAX_STEPS,
    require,
    require_at_least,
    require_between,
    require_numbers,
    require_one_of,
    require_positive,
)
from fmjax.config.solvers import ODE_SOLVERS, can_adapt
from fmjax.paths import uniform_grid
from fmjax.solvers import AdaptiveSteps, ExactDivergence, FixedSteps, Hutchinson, Probe


@dataclass(frozen=True)
class LikelihoodConfig:
    """The log-density of test examples under a run.

    Attributes:
        num_examples: How many; None for all of the test split.
        divergence: exact, a derivative for each number of an example, or hutchinson's estimate.
        probes: Random directions of Hutchinson's estimate.
        distribution: Their law.
        solver: Name of an ODE solver.
        num_steps: Fixed steps; None adapts them to the tolerances.
        rtol: Relative tolerance of adaptive steps.
        atol: Absolute tolerance of adaptive steps, in data units and nats per dimension.
        dequantize: Spread data that come in levels, such as bytes, evenly over their bins, and
            say bits per dimension. The density of levels alone means nothing.
        batch_size: Examples solved together.
        seed: Of the noise within the bins and of the probes.
    """

    num_examples: int | None = 1_000
    divergence: Literal["exact", "hutchinson"] = "hutchinson"
    probes: int = 1
    distribution: Literal["rademacher", "normal"] = "rademacher"
    solver: str = "tsit5"
    num_steps: int | None = None
    rtol: float = 1e-5
    atol: float = 1e-5
    dequantize: bool = True
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        require_numbers(self)
        if self.num_examples is not None:
            # A standard error takes two.
            require_at_least("num_examples", self.num_examples, 2)
        require_one_of("divergence", self.divergence, ("exact", "hutchinson"))
        require_one_of("distribution", self.distribution, [probe.value for probe in Probe])
        require_one_of("solver", self.solver, ODE_SOLVERS)
        for name in ("probes", "batch_size"):
            require_at_least(name, getattr(self, name), 1)
        require_at_least("seed", self.seed, 0)
        for name in ("rtol", "atol"):
            require_positive(name, getattr(self, name))
        if self.num_steps is None:
            rule = "estimate its error, or num_steps be given"
            require(can_adapt(self.solver), "solver", rule, self.solver)
        else:
            require_between("num_steps", self.num_steps, 1, MAX_STEPS)

    def make_divergence(self) -> ExactDivergence | Hutchinson:
        """What adds the divergence up."""
        if self.divergence == "exact":
            return ExactDivergence()
        return Hutchinson(self.probes, Probe(self.distribution))

    def make_solver(self) -> Any:
        """The solver."""
        return ODE_SOLVERS[self.solver]()

    def make_steps(self) -> FixedSteps | AdaptiveSteps:
        """Its steps."""
        if self.num_steps is None:
            return AdaptiveSteps(self.rtol, self.atol)
        return FixedSteps(uniform_grid(self.num_steps))
