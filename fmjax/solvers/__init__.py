"""Solvers: from noise to data along a velocity field. The only importer of Diffrax."""

from fmjax.solvers.calibration import calibrate
from fmjax.solvers.catalog import DIFFRAX_SOLVERS, has_error_estimate
from fmjax.solvers.fixed import RK4, AdamsBashforth2, Euler, FixedStepSolver, Heun, Midpoint
from fmjax.solvers.inversion import Encoded, edit, encode, interpolate
from fmjax.solvers.ode import sample
from fmjax.solvers.sde import SDE_SOLVERS, sample_sde
from fmjax.solvers.steps import AdaptiveSteps, ErrorControl, FixedSteps, Samples
from fmjax.solvers.stochastic import EulerMaruyama, StochasticHeun, StochasticSolver

__all__ = [
    "DIFFRAX_SOLVERS",
    "RK4",
    "SDE_SOLVERS",
    "AdamsBashforth2",
    "AdaptiveSteps",
    "Encoded",
    "ErrorControl",
    "Euler",
    "EulerMaruyama",
    "FixedStepSolver",
    "FixedSteps",
    "Heun",
    "Midpoint",
    "Samples",
    "StochasticHeun",
    "StochasticSolver",
    "calibrate",
    "edit",
    "encode",
    "has_error_estimate",
    "interpolate",
    "sample",
    "sample_sde",
]
