"""Samplers: how samples are drawn from a model, as settings and as functions."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import diffrax
import jax
from jaxtyping import PyTree

from fmjax._arrays import Cond, Params, Points
from fmjax._checks import require, require_between, require_numbers, require_positive
from fmjax._inputs import describe
from fmjax.paths import Tabulated, require_velocity_process
from fmjax.solvers.diffusion import sample_diffusion
from fmjax.solvers.diffusion_rates import AnyRate, DiffusionRate, SigmaRate
from fmjax.solvers.engine.diffrax_solvers import Solver, check_solver, has_error_estimate
from fmjax.solvers.flow_map import sample_flow_map
from fmjax.solvers.grids import CalibratedGrid, EdmGrid, GridSteps, UniformGrid
from fmjax.solvers.model import GuidedMap, Model
from fmjax.solvers.ode import sample
from fmjax.solvers.sde import sample_sde
from fmjax.solvers.steppers.ddim import DDIM, DiffusionSolver
from fmjax.solvers.steppers.sde import EulerMaruyama, StochasticSolver
from fmjax.solvers.steps import AdaptiveSteps, ErrorControl, FixedSteps, Samples

SdeSolver: TypeAlias = StochasticSolver | diffrax.AbstractSRK
"""A solver of an SDE: one of fmjax or a stochastic Runge-Kutta method of Diffrax."""
Stepping: TypeAlias = GridSteps | AdaptiveSteps
"""Settings of the steps: a number of steps on a time grid, or tolerances."""


@runtime_checkable
class Sampler(Protocol):
    """A way to sample from a model.

    A sampler in a config is a frozen dataclass whose fields are JSON values or other dataclasses. A
    sampler may also have a method `check(model)`, which raises a `ValueError` for a model that it
    cannot sample; it is called before long work.

    Laws: pure. A sample depends on its own source point, key and condition, not on the others of
    its batch (up to the tolerance, if they share adaptive steps). A field `stepping` that is a
    `GridSteps` with a `CalibratedGrid` makes `fmjax` measure the calibrated grid.
    """

    def steps(self, model: Model, calibrated: Tabulated | None = None) -> PyTree:
        """Return the steps for a model, such as a time grid or tolerances.

        They are an argument of the sampler, so that one compiled program serves all steps of the
        same structure.

        Args:
            model: The model, with its guidance.
            calibrated: Density of the calibrated time grid, or None.
        """
        ...

    def __call__(
        self,
        model: Model,
        params: Params,
        x0: Points,
        keys: jax.Array | None,
        cond: Cond,
        steps: PyTree,
    ) -> Samples:
        """Sample a batch.

        Args:
            model: The model, with its guidance.
            params: Parameters of the network.
            x0: Samples of the source distribution, `[batch, *event]`.
            keys: Typed keys `[batch]`, one per sample; None for deterministic samplers.
            cond: Condition; every leaf has a leading batch axis. None without condition.
            steps: Steps from `steps`.
        """
        ...


def _steps(
    stepping: Stepping, model: Model, calibrated: Tabulated | None
) -> FixedSteps | AdaptiveSteps:
    if isinstance(stepping, AdaptiveSteps):
        return stepping
    return stepping.make(model.schedule, calibrated)


def _require_stepping(stepping: object, solver: object) -> None:
    """Raise unless the steps are settings that the solver supports."""
    known = isinstance(stepping, (GridSteps, AdaptiveSteps))
    require(known, "stepping", "be GridSteps or AdaptiveSteps", repr(stepping))
    rule = f"be GridSteps for {type(solver).__name__}, which estimates no error"
    supported = isinstance(stepping, GridSteps) or has_error_estimate(solver)
    require(supported, "stepping", rule, "AdaptiveSteps")


def _check_velocity(stepping: Stepping, model: Model) -> None:
    """Raise unless the model has a velocity with its guidance, and the schedule of the grid."""
    require_velocity_process(model.process)
    if model.flow_map is not None:
        model.flow_map.check(jumps=False)
    _check_grid(stepping, model)


def _check_grid(stepping: Stepping, model: Model) -> None:
    if isinstance(stepping, GridSteps) and isinstance(stepping.grid, EdmGrid):
        rule = "not be edm without an AffinePath"
        require(model.schedule is not None, "grid", rule, describe(model.process))


def _require_schedule(solver: object, model: Model) -> None:
    """Raise unless the process is an `AffinePath`, whose schedule SDEs and diffusion models use."""
    rule = f"be an ODE solver for {describe(model.process)}, which is not an AffinePath"
    require(model.schedule is not None, "solver", rule, type(solver).__name__)


@dataclass(frozen=True)
class OdeSampler:
    """Solve the ODE of the velocity field with `fmjax.sample`.

    Attributes:
        solver: An ODE solver of Diffrax, or a fixed-step solver such as `Heun()`.
        stepping: Number of steps on a time grid, or tolerances of adaptive steps.
    """

    solver: Solver = diffrax.Tsit5()  # noqa: RUF009 (frozen)
    stepping: Stepping = AdaptiveSteps()

    def __post_init__(self) -> None:
        check_solver(self.solver)
        _require_stepping(self.stepping, self.solver)

    def check(self, model: Model) -> None:
        """Raise a `ValueError` for a process without velocity, or a flow map of other guidance."""
        _check_velocity(self.stepping, model)

    def steps(
        self, model: Model, calibrated: Tabulated | None = None
    ) -> FixedSteps | AdaptiveSteps:
        """Return the time grid or the tolerances."""
        return _steps(self.stepping, model, calibrated)

    def __call__(
        self,
        model: Model,
        params: Params,
        x0: Points,
        keys: jax.Array | None,
        cond: Cond,
        steps: FixedSteps | AdaptiveSteps,
    ) -> Samples:
        """Sample a batch; the keys are not used."""
        return sample(model.velocity_fn(params), x0, cond, solver=self.solver, steps=steps)


@dataclass(frozen=True)
class SdeSampler:
    """Solve an SDE with the distributions of the flow with `fmjax.sample_sde`.

    Attributes:
        solver: A solver of SDEs, such as `EulerMaruyama()` or Diffrax's ShARK.
        stepping: Number of steps on a time grid, or tolerances, with which each sample has separate
            adaptive steps.
        rate: Diffusion rate; a `SigmaRate` without a schedule takes that of the path.
        last_step: Minimum length of the last step, which adds no noise.
    """

    solver: SdeSolver = EulerMaruyama()
    stepping: Stepping = GridSteps(128)
    rate: AnyRate | DiffusionRate = SigmaRate()
    last_step: float = 0.04

    def __post_init__(self) -> None:
        require_numbers(self)
        known = isinstance(self.solver, (StochasticSolver, diffrax.AbstractSRK))
        known = known and not isinstance(self.solver, type)
        require(known, "solver", "be one of fmjax.solvers.SDE_SOLVERS", repr(self.solver))
        _require_stepping(self.stepping, self.solver)
        has_slots = isinstance(self.stepping, AdaptiveSteps) and self.stepping.slots is not None
        require(not has_slots, "stepping", "have no slots for an SDE", repr(self.stepping))
        if isinstance(self.stepping, AdaptiveSteps):  # Each sample has separate steps.
            stepping = dataclasses.replace(self.stepping, control=ErrorControl.PER_SAMPLE)
            object.__setattr__(self, "stepping", stepping)
        require_between("last_step", self.last_step, 0.0, 0.999)

    def check(self, model: Model) -> None:
        """Raise a `ValueError` for a path without schedule, or a flow map of other guidance."""
        _require_schedule(self.solver, model)
        _check_velocity(self.stepping, model)

    def steps(
        self, model: Model, calibrated: Tabulated | None = None
    ) -> FixedSteps | AdaptiveSteps:
        """Return the time grid or the tolerances."""
        return _steps(self.stepping, model, calibrated)

    def __call__(
        self,
        model: Model,
        params: Params,
        x0: Points,
        keys: jax.Array | None,
        cond: Cond,
        steps: FixedSteps | AdaptiveSteps,
    ) -> Samples:
        """Sample a batch, with the noise of the keys."""
        assert keys is not None
        return sample_sde(
            model.predict_fn(params),
            model.affine_path,
            x0,
            keys,
            cond,
            prediction=model.prediction,
            rate=self.rate,
            solver=self.solver,
            steps=steps,
            last_step=self.last_step,
        )


@dataclass(frozen=True)
class DiffusionSampler:
    """Sample with a diffusion sampler, with `fmjax.sample_diffusion`.

    Attributes:
        solver: `DDIM`, `Ancestral`, `DPMSolverPP2M` or `UniPC`.
        stepping: Number of steps on a time grid.
        clip: Bound on the predicted data; None does not clip.
    """

    solver: DiffusionSolver = DDIM()
    stepping: GridSteps = GridSteps(50)
    clip: float | None = None

    def __post_init__(self) -> None:
        require_numbers(self)
        known = isinstance(self.solver, DiffusionSolver) and not isinstance(self.solver, type)
        require(known, "solver", "be one of fmjax.solvers.DIFFUSION_SAMPLERS", repr(self.solver))
        known = isinstance(self.stepping, GridSteps)
        require(known, "stepping", "be GridSteps for a diffusion sampler", repr(self.stepping))
        if self.clip is not None:
            require_positive("clip", self.clip)

    def check(self, model: Model) -> None:
        """Raise a `ValueError` for a path without schedule, or a flow map of other guidance."""
        _require_schedule(self.solver, model)
        _check_velocity(self.stepping, model)

    def steps(self, model: Model, calibrated: Tabulated | None = None) -> FixedSteps:
        """Return the time grid."""
        return self.stepping.make(model.schedule, calibrated)

    def __call__(
        self,
        model: Model,
        params: Params,
        x0: Points,
        keys: jax.Array | None,
        cond: Cond,
        steps: FixedSteps,
    ) -> Samples:
        """Sample a batch; stochastic samplers take the noise of the keys."""
        return sample_diffusion(
            model.predict_fn(params),
            model.affine_path,
            x0,
            keys,
            cond,
            prediction=model.prediction,
            sampler=self.solver,
            steps=steps,
            clip=self.clip,
        )


@dataclass(frozen=True)
class FlowMapSampler:
    """Sample by the jumps of a flow map, with `fmjax.sample_flow_map`.

    Attributes:
        stepping: Number of jumps on a time grid.
    """

    stepping: GridSteps = GridSteps(1)

    def __post_init__(self) -> None:
        known = isinstance(self.stepping, GridSteps)
        require(known, "stepping", "be GridSteps for a flow map", repr(self.stepping))

    def check(self, model: Model) -> None:
        """Raise a `ValueError` unless the model is a flow map that was trained for these jumps."""
        self._flow_map(model).check(jumps=True)
        _check_grid(self.stepping, model)

    def _flow_map(self, model: Model) -> GuidedMap:
        flow_map, num_steps, grid = model.flow_map, self.stepping.num_steps, self.stepping.grid
        if flow_map is None:
            raise ValueError(
                "solver 'flow_map' needs a flow-map model (loss=MeanFlowConfig or "
                "ShortcutConfig); choose another solver for a velocity model"
            )
        rule = "be ClassifierFree or None for the jumps of a flow map"
        require(model.guided is None, "guidance", rule, "a guidance of the velocity")
        if flow_map.num_steps is not None:
            rule = f"be a divisor of {flow_map.num_steps}, the number of steps used in training"
            require(flow_map.num_steps % num_steps == 0, "num_steps", rule, num_steps)
            is_uniform = isinstance(grid, UniformGrid)
            require(is_uniform, "grid", "be uniform for a shortcut model", repr(grid))
        return flow_map

    def steps(self, model: Model, calibrated: Tabulated | None = None) -> FixedSteps:
        """Return the time grid."""
        return self.stepping.make(model.schedule, calibrated)

    def __call__(
        self,
        model: Model,
        params: Params,
        x0: Points,
        keys: jax.Array | None,
        cond: Cond,
        steps: FixedSteps,
    ) -> Samples:
        """Sample a batch; the keys are not used."""
        return sample_flow_map(self._flow_map(model).map_fn(params), x0, cond, steps=steps)


AnySampler: TypeAlias = OdeSampler | SdeSampler | DiffusionSampler | FlowMapSampler | Sampler


def check_sampler(sampler: Sampler, model: Model) -> None:
    """Raise a `ValueError` if the sampler has a method `check` that refuses the model."""
    check = getattr(sampler, "check", None)
    if check is not None:
        check(model)


def needs_calibration(sampler: object) -> bool:
    """Whether a field of the sampler, or of a dataclass in it, is a `CalibratedGrid`."""
    return any(isinstance(part, CalibratedGrid) for part in _parts(sampler))


def _parts(value: object) -> Iterator[object]:
    yield value
    if dataclasses.is_dataclass(value) and type(value).__module__.split(".")[0] != "diffrax":
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name))
