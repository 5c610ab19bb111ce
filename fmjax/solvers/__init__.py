"""Solvers: from noise to data along a velocity field. The only importer of Diffrax."""

from fmjax.solvers.calibration import calibrate
from fmjax.solvers.catalog import DIFFRAX_SOLVERS, has_error_estimate
from fmjax.solvers.fixed import RK4, AdamsBashforth2, Euler, FixedStepSolver, Heun, Midpoint
from fmjax.solvers.ode import sample
from fmjax.solvers.steps import AdaptiveSteps, ErrorControl, FixedSteps, Samples

__all__ = [
    "DIFFRAX_SOLVERS",
    "RK4",
    "AdamsBashforth2",
    "AdaptiveSteps",
    "ErrorControl",
    "Euler",
    "FixedStepSolver",
    "FixedSteps",
    "Heun",
    "Midpoint",
    "Samples",
    "calibrate",
    "has_error_estimate",
    "sample",
]
