"""Solvers, rates and grids by name, and the sampler that each solver name selects."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from fmjax import solvers
from fmjax._checks import require, require_one_of, require_positive
from fmjax.solvers import (
    AdaptiveSteps,
    AnyRate,
    AnySampler,
    CalibratedGrid,
    ConstantRate,
    DecreasingRate,
    DiffusionSampler,
    EdmGrid,
    ErrorControl,
    FlowMapSampler,
    GridSteps,
    IncreasingDecreasingRate,
    IncreasingRate,
    OdeSampler,
    QuantileGrid,
    Sampler,
    SdeSampler,
    ShiftedGrid,
    SigmaRate,
    Stepping,
    TimeGrid,
    UniformGrid,
)

ODE_SOLVERS: Mapping[str, Callable[[], Any]] = {
    "euler": solvers.Euler,
    "midpoint": solvers.Midpoint,
    "heun": solvers.Heun,
    "rk4": solvers.RK4,
    "adams_bashforth_2": solvers.AdamsBashforth2,
    **solvers.DIFFRAX_SOLVERS,
}
SDE_SOLVERS: Mapping[str, Callable[[], Any]] = solvers.SDE_SOLVERS
DIFFUSION_SAMPLERS: Mapping[str, Callable[[], Any]] = solvers.DIFFUSION_SAMPLERS
FLOW_MAP = "flow_map"  # Jumps of a flow map, which need no solver object.
SOLVERS: Mapping[str, Callable[[], Any]] = {
    **ODE_SOLVERS,
    **SDE_SOLVERS,
    **DIFFUSION_SAMPLERS,
    FLOW_MAP: lambda: None,
}

RATES: Mapping[str, Callable[..., AnyRate]] = {
    "sigma": SigmaRate,
    "constant": ConstantRate,
    "increasing": IncreasingRate,
    "decreasing": DecreasingRate,
    "increasing_decreasing": IncreasingDecreasingRate,
}
GRIDS: Mapping[str, Callable[..., TimeGrid]] = {
    "uniform": UniformGrid,
    "shifted": ShiftedGrid,
    "edm": EdmGrid,
    "quantiles": QuantileGrid,
    "calibrated": CalibratedGrid,
}
_GRID_OPTIONS = ("num_steps", "grid", "shift", "grid_density")
_ADAPTIVE_OPTIONS = ("atol", "control", "rtol", "slots")
_SDE_OPTIONS = ("last_step", "rate", "rate_power", "rate_scale")


def solver_title(solver: str) -> str:
    """Return the name of a solver for reports: "Tsit5", "RK4", "Implicit euler"."""
    titles = {
        "rk4": "RK4",
        "adams_bashforth_2": "Adams-Bashforth 2",
        "euler_maruyama": "Euler-Maruyama",
        "sea": "SEA",
        "sra1": "SRA1",
        "shark": "ShARK",
        "spark": "SPaRK",
        "ddim": "DDIM",
        "dpm_solver_pp_2m": "DPM-Solver++(2M)",
        "unipc": "UniPC",
    }
    if solver not in SOLVERS:  # A class of a user.
        return solver
    return titles.get(solver, solver.replace("_", " ").capitalize())


def can_adapt(solver: str) -> bool:
    """Whether the solver estimates its error, and so supports adaptive steps."""
    if solver in DIFFUSION_SAMPLERS or solver == FLOW_MAP:
        return False
    return solvers.has_error_estimate(SOLVERS[solver])


def is_stochastic(solver: str) -> bool:
    """Whether the solver adds noise, so that its samples depend on random keys."""
    return solver in SDE_SOLVERS or solver == "ancestral"


def _name_of(value: object, table: Mapping[str, object]) -> str:
    """Return the name of a value's class in a table; the name of the class if it is not there."""
    return next((key for key, cls in table.items() if cls is type(value)), type(value).__qualname__)


def sampler_options(sampler: Sampler) -> dict[str, Any]:
    """Return the settings of a sampler by short names: `solver` and those that the sampler has."""
    if isinstance(sampler, FlowMapSampler):
        options: dict[str, Any] = {"solver": FLOW_MAP}
    elif isinstance(sampler, (OdeSampler, SdeSampler, DiffusionSampler)):
        options = {"solver": _name_of(sampler.solver, SOLVERS)}
    else:
        return {"solver": type(sampler).__qualname__}
    stepping = sampler.stepping
    if isinstance(stepping, GridSteps):
        options |= {"num_steps": stepping.num_steps, "grid": _name_of(stepping.grid, GRIDS)}
        if isinstance(stepping.grid, ShiftedGrid):
            options["shift"] = stepping.grid.shift
        elif isinstance(stepping.grid, QuantileGrid):
            options["grid_density"] = stepping.grid.density
    else:
        options |= {name: getattr(stepping, name) for name in _ADAPTIVE_OPTIONS}
    if isinstance(sampler, SdeSampler):
        rate = sampler.rate
        options |= {"rate": _name_of(rate, RATES), "last_step": sampler.last_step}
        options["rate_scale"] = getattr(rate, "scale", None)
        options["rate_power"] = rate.power if isinstance(rate, SigmaRate) else None
    elif isinstance(sampler, DiffusionSampler):
        options["clip"] = sampler.clip
    return options


def make_sampler(sampler: Sampler, given: Mapping[str, Any]) -> AnySampler:
    """Return the sampler with other settings, or the sampler of another solver.

    Args:
        sampler: The sampler that is changed.
        given: New values by short name.

    Raises:
        ValueError: If a value is wrong or the sampler does not have the setting.
    """
    for name in ("rtol", "atol"):
        if given.get(name) is not None:
            require_positive(name, given[name])
    solver = given.get("solver")
    if solver is None:
        if not isinstance(sampler, (OdeSampler, SdeSampler, DiffusionSampler, FlowMapSampler)):
            return _with_fields(sampler, given)
        solver = sampler_options(sampler)["solver"]
    else:
        require_one_of("solver", solver, SOLVERS)
    family = _family(solver, sampler)
    if family is not SdeSampler:
        rule = f"be used with an SDE solver ({', '.join(SDE_SOLVERS)})"
        _refuse(given, _SDE_OPTIONS, rule, solver)
    if family is not OdeSampler and given.get("slots") is not None:
        rule = f"be left out for {solver}, which is not an ODE solver"
        require(False, "slots", rule, given["slots"])
    if family is not DiffusionSampler and given.get("clip") is not None:
        rule = f"be left out for {solver}, which does not clip"
        require(False, "clip", rule, given["clip"])
    fields: dict[str, Any] = {"stepping": _make_stepping(sampler, solver, family, given)}
    same_family = type(sampler) is family
    if family is not FlowMapSampler:
        kept = getattr(sampler, "solver", None) if same_family else None
        is_kept = kept is not None and _name_of(kept, SOLVERS) == solver
        fields["solver"] = kept if is_kept else SOLVERS[solver]()
    if family is SdeSampler:
        default = cast(SdeSampler, sampler) if same_family else SdeSampler()
        fields["rate"] = _make_rate(default.rate, given)
        fields["last_step"] = given.get("last_step", default.last_step)
    if family is DiffusionSampler:
        default_clip = cast(DiffusionSampler, sampler).clip if same_family else None
        fields["clip"] = given.get("clip", default_clip)
    return family(**fields)


def _family(solver: str, sampler: Sampler) -> Callable[..., AnySampler]:
    """Return the class of samplers to which a solver belongs; a user's solver stays in its own."""
    if solver in ODE_SOLVERS:
        return OdeSampler
    if solver in SDE_SOLVERS:
        return SdeSampler
    if solver in DIFFUSION_SAMPLERS:
        return DiffusionSampler
    return FlowMapSampler if solver == FLOW_MAP else type(sampler)


def _refuse(given: Mapping[str, object], names: Iterable[str], rule: str, value: object) -> None:
    for name in names:
        require(name not in given, name, rule, value)


def _with_fields(sampler: Sampler, given: Mapping[str, Any]) -> Sampler:
    """Replace the fields of a user's sampler; raise for names that are none of its fields."""
    names = getattr(sampler, "__dataclass_fields__", {})
    for name in given:
        rule = f"be left out for {type(sampler).__qualname__}, which has no such field"
        require(name in names, name, rule, given[name])
    return dataclasses.replace(cast(Any, sampler), **given)


def _make_stepping(sampler: Sampler, solver: str, family: object, given: Mapping[str, Any]) -> Any:
    """Use adaptive steps if a solver or a tolerance is given, but no number of steps."""
    previous: Stepping | None = getattr(sampler, "stepping", None)
    fixed = previous if isinstance(previous, GridSteps) else None
    if solver in SOLVERS:
        adapts = can_adapt(solver)
    else:
        adapts = solvers.has_error_estimate(getattr(sampler, "solver", None))
    adaptive = [name for name in _ADAPTIVE_OPTIONS if name in given]
    removes_steps = "num_steps" in given and given["num_steps"] is None
    if not removes_steps and any(name in given for name in _GRID_OPTIONS):
        num_steps = given.get("num_steps", None if fixed is None else fixed.num_steps)
        rule = "be given if grid or shift is given"
        require(num_steps is not None, "num_steps", rule, "none")
        _refuse(given, adaptive, "not be combined with num_steps", f"{num_steps} steps")
        return GridSteps(num_steps, _make_grid(None if fixed is None else fixed.grid, given))
    if not adaptive and "solver" not in given and not removes_steps:
        return previous
    if adapts:
        return _make_tolerances(previous, given, is_sde=family is SdeSampler)
    names = sorted(filter(can_adapt, SOLVERS), key=lambda name: name != "tsit5")  # tsit5 first.
    rule = f"be used with a solver that estimates its error ({', '.join(names)})"
    _refuse(given, adaptive, rule, solver)
    rule = f"be given for {solver}, which estimates no error"
    require(fixed is not None and not removes_steps, "num_steps", rule, None)
    return fixed


def _make_tolerances(previous: object, given: Mapping[str, Any], *, is_sde: bool) -> AdaptiveSteps:
    """Return adaptive steps with the given settings, and else those of the previous ones."""
    steps = previous if isinstance(previous, AdaptiveSteps) else AdaptiveSteps()
    for name in ("rtol", "atol"):
        if given.get(name) is not None:
            steps = dataclasses.replace(steps, **{name: given[name]})
    control, slots = given.get("control"), given.get("slots", steps.slots)
    if is_sde or slots is not None:
        per_sample = control in (None, ErrorControl.PER_SAMPLE)
        require(per_sample, "control", "be PER_SAMPLE for an SDE or with slots", control)
        control = ErrorControl.PER_SAMPLE
    elif "slots" in given and control is None:  # Streaming is switched off.
        control = AdaptiveSteps().control
    slots = None if is_sde else slots
    return dataclasses.replace(steps, control=control or steps.control, slots=slots)


def _make_grid(previous: TimeGrid | None, given: Mapping[str, Any]) -> TimeGrid:
    """Return the time grid of the given name, else the previous one; uniform by default."""
    grid = UniformGrid() if previous is None else previous
    if given.get("grid") is not None:
        require_one_of("grid", given["grid"], GRIDS)
        if _name_of(grid, GRIDS) != given["grid"]:
            grid = GRIDS[given["grid"]]()
    if given.get("shift") is not None:
        name = _name_of(grid, GRIDS)
        require(isinstance(grid, ShiftedGrid), "shift", "be used with the grid shifted", name)
        grid = ShiftedGrid(given["shift"])
    if given.get("grid_density") is not None:
        name = _name_of(grid, GRIDS)
        rule = "be used with the grid quantiles"
        require(isinstance(grid, QuantileGrid), "grid_density", rule, name)
        grid = QuantileGrid(given["grid_density"])
    return grid


def _make_rate(previous: object, given: Mapping[str, Any]) -> Any:
    """Return the rate of the given name and settings, else with those of the previous rate."""
    rate: Any = previous
    if given.get("rate") is not None:
        require_one_of("rate", given["rate"], RATES)
        if _name_of(rate, RATES) != given["rate"]:
            rate = RATES[given["rate"]](getattr(previous, "scale", 1.0))
    if given.get("rate_scale") is not None:
        rule = "be left out for a rate without scale"
        require(hasattr(rate, "scale"), "rate_scale", rule, given["rate_scale"])
        rate = dataclasses.replace(rate, scale=given["rate_scale"])
    if given.get("rate_power") is not None:
        rule = "be used with the rate sigma"
        require(isinstance(rate, SigmaRate), "rate_power", rule, _name_of(rate, RATES))
        rate = dataclasses.replace(rate, power=given["rate_power"])
    return rate
