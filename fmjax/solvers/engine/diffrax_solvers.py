"""Table and checks of the ODE solvers, Diffrax's and those of `fmjax.solvers.steppers.ode`."""

from typing import TypeAlias, TypeGuard

import diffrax

from fmjax._checks import require
from fmjax.solvers.engine.implicit import IMEX
from fmjax.solvers.steppers.ode import FixedStepSolver

Solver: TypeAlias = diffrax.AbstractSolver | FixedStepSolver
"""An ODE solver: one of Diffrax or a fixed-step solver of fmjax."""

# Euler, midpoint, Heun and RK4 are in `fmjax.solvers.steppers.ode`, where they are as fast and
# compile faster.
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


def check_solver(solver: object) -> None:
    """Raise unless `solver` can solve an ODE with a single velocity field.

    Raises:
        ValueError: If it is not a solver, an SDE solver, or a solver for split fields.
    """
    if isinstance(solver, diffrax.SemiImplicitEuler):
        raise ValueError(
            "solver must take a single velocity field, got SemiImplicitEuler, "
            "which needs separate fields for positions and momenta"
        )
    # `isinstance` treats a wrapped solver as the solver it wraps, but it evaluates the field at
    # other times, so that the count of evaluations would be wrong.
    is_wrapped = isinstance(solver, diffrax.AbstractWrappedSolver)
    require(not is_wrapped, "solver", "not wrap another solver", type(solver).__name__)
    known = isinstance(solver, (FixedStepSolver, *_ODE)) and not isinstance(solver, type)
    require(known, "solver", "be an ODE solver of Diffrax or of fmjax.solvers", repr(solver))


def has_error_estimate(solver: object) -> bool:
    """Whether a solver, given as an object or a class, estimates its error for adaptive steps."""
    solver_class = solver if isinstance(solver, type) else type(solver)
    if issubclass(solver_class, diffrax.AbstractSRK):  # Only some tableaus have error weights.
        return solver_class.tableau.b_error is not None
    return issubclass(solver_class, diffrax.AbstractAdaptiveSolver)


def is_implicit(solver: object) -> TypeGuard[diffrax.AbstractImplicitSolver]:
    """Whether each step of the solver solves an equation for its result."""
    return isinstance(solver, diffrax.AbstractImplicitSolver)


def takes_derivatives(solver: object) -> bool:
    """Whether the solver may compute derivatives of the field, as implicit solvers do."""
    library = type(solver).__module__.split(".")[0]
    return is_implicit(solver) or library not in ("diffrax", "fmjax")
