"""Config of `fmjax likelihood`: the log-density of test data."""

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
    """Compute the log-density of test examples under the model of a run.

    Attributes:
        num_examples: Number of test examples; None takes the entire test split.
        divergence: How the divergence of the velocity field is computed: exact, with one derivative
            per dimension, or hutchinson, a random estimate.
        probes: Number of random directions of Hutchinson's estimate.
        distribution: Distribution of the random directions of Hutchinson's estimate.
        solver: Name of an ODE solver.
        num_steps: Number of fixed steps; None adapts the steps to the tolerances.
        rtol: Relative tolerance of adaptive steps.
        atol: Absolute tolerance of adaptive steps, in data units and nats per dimension.
        dequantize: Add uniform noise to data with discrete levels, such as bytes, and report bits
            per dimension. Without it, the density of discrete data is not meaningful.
        batch_size: Number of examples solved at a time.
        seed: Seed of the dequantization noise and of the random directions.
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
            # A standard error needs two examples.
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
            rule = "have an error estimate if num_steps is left out"
            require(can_adapt(self.solver), "solver", rule, self.solver)
        else:
            require_between("num_steps", self.num_steps, 1, MAX_STEPS)

    def make_divergence(self) -> ExactDivergence | Hutchinson:
        """Return the method that computes the divergence."""
        if self.divergence == "exact":
            return ExactDivergence()
        return Hutchinson(self.probes, Probe(self.distribution))

    def make_solver(self) -> Any:
        """Return the solver object."""
        return ODE_SOLVERS[self.solver]()

    def make_steps(self) -> FixedSteps | AdaptiveSteps:
        """Return adaptive steps, or fixed steps on a uniform grid if `num_steps` is set."""
        if self.num_steps is None:
            return AdaptiveSteps(self.rtol, self.atol)
        return FixedSteps(uniform_grid(self.num_steps))
