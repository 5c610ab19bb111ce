"""Diffrax's ODE solvers: which there are, what each needs, and which cannot serve here."""

from typing import Any

import diffrax

from fmjax._checks import require
from fmjax.solvers.engine.implicit import IMEX
from fmjax.solvers.steppers.ode import FixedStepSolver

# Euler, midpoint, Heun and RK4 are in `fixed.py`, no slower there and quicker to compile.
DIFFRAX_SOLVERS: dict[str, type] = {
    "ralston": diffrax.Ralston,
    "bosh3": diffrax.Bosh3,
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
    "dopri8": diffrax.Dopri8,
    "reversible_heun": diffrax.ReversibleHeun,
    "leapfrog_midpoint": diffrax.LeapfrogMidpoint,
    "implicit_euler": diffrax.ImplicitEuler,
    "kvaerno3": diffrax.Kvaerno3,
    "kvaerno4": diffrax.Kvaerno4,
    "kvaerno5": diffrax.Kvaerno5,
    "kencarp3": diffrax.KenCarp3,
    "kencarp4": diffrax.KenCarp4,
    "kencarp5": diffrax.KenCarp5,
    "sil3": diffrax.Sil3,
}

_ODE = (
    diffrax.Euler,
    diffrax.LeapfrogMidpoint,
    diffrax.ReversibleHeun,
    diffrax.ImplicitEuler,
    diffrax.AbstractERK,
    diffrax.AbstractDIRK,
    *IMEX,
)


def check_solver(solver: Any) -> None:
    """Refuse what cannot carry points along one velocity field.

    Raises:
        ValueError: If it is no solver, an SDE solver, or one for split fields.
    """
    if isinstance(solver, diffrax.SemiImplicitEuler):
        raise ValueError(
            "solver must take one field, got SemiImplicitEuler: "
            "it is for positions and momenta, and a velocity field is not split"
        )
    # A wrapped solver passes for what it wraps, but evaluates the field at other times.
    wrapped = isinstance(solver, diffrax.AbstractWrappedSolver)
    require(not wrapped, "solver", "not be wrapped in another", type(solver).__name__)
    known = isinstance(solver, (FixedStepSolver, *_ODE)) and not isinstance(solver, type)
    require(known, "solver", "be an ODE solver of Diffrax or of fmjax.solvers", repr(solver))


def has_error_estimate(solver: Any) -> bool:
    """Whether adaptive steps are possible with this solver (an object or its class)."""
    kind = solver if isinstance(solver, type) else type(solver)
    if issubclass(kind, diffrax.AbstractSRK):  # Some have weights for it, others none.
        return kind.tableau.b_error is not None
    return issubclass(kind, diffrax.AbstractAdaptiveSolver)


def is_implicit(solver: Any) -> bool:
    """Whether a step has an equation to solve."""
    return isinstance(solver, diffrax.AbstractImplicitSolver)
