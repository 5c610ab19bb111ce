"""Solvers and diffusion rates by name, and properties of the named solvers."""

from collections.abc import Callable, Mapping
from typing import Any

from fmjax import solvers
from fmjax.solvers import (
    AnyRate,
    ConstantRate,
    DecreasingRate,
    IncreasingDecreasingRate,
    IncreasingRate,
    SigmaRate,
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
    return titles.get(solver, solver.replace("_", " ").capitalize())


def can_adapt(solver: str) -> bool:
    """Whether the solver estimates its error, and so supports adaptive steps."""
    if solver in DIFFUSION_SAMPLERS or solver == FLOW_MAP:
        return False
    return solvers.has_error_estimate(SOLVERS[solver])


def is_stochastic(solver: str) -> bool:
    """Whether the solver adds noise, so that its samples depend on random keys."""
    return solver in SDE_SOLVERS or solver == "ancestral"
