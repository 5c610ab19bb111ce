"""Solvers: from noise to data along a velocity field. The only importer of Diffrax."""

from fmjax.solvers.adjoint import Adjoint
from fmjax.solvers.calibration import calibrate
from fmjax.solvers.catalog import DIFFRAX_SOLVERS, has_error_estimate
from fmjax.solvers.diffusion import DIFFUSION_SAMPLERS, sample_diffusion
from fmjax.solvers.diffusion_samplers import DDIM, Ancestral, DiffusionSampler, StepVariance
from fmjax.solvers.fixed import RK4, AdamsBashforth2, Euler, FixedStepSolver, Heun, Midpoint
from fmjax.solvers.flow_map import sample_flow_map
from fmjax.solvers.inversion import Encoded, edit, encode, interpolate
from fmjax.solvers.likelihood import (
    ExactDivergence,
    Hutchinson,
    Likelihood,
    Probe,
    bits_per_dim,
    dequantize,
    log_density,
)
from fmjax.solvers.multistep import DPMSolverPP2M, UniPC
from fmjax.solvers.ode import sample
from fmjax.solvers.sde import SDE_SOLVERS, sample_sde
from fmjax.solvers.steps import AdaptiveSteps, ErrorControl, FixedSteps, Samples
from fmjax.solvers.stochastic import EulerMaruyama, StochasticHeun, StochasticSolver

__all__ = [
    "DDIM",
    "DIFFUSION_SAMPLERS",
    "Ancestral",
    "DPMSolverPP2M",
    "DiffusionSampler",
    "StepVariance",
    "UniPC",
    "sample_diffusion",
    "DIFFRAX_SOLVERS",
    "RK4",
    "SDE_SOLVERS",
    "AdamsBashforth2",
    "AdaptiveSteps",
    "Adjoint",
    "Encoded",
    "ErrorControl",
    "Euler",
    "EulerMaruyama",
    "ExactDivergence",
    "FixedStepSolver",
    "FixedSteps",
    "Heun",
    "Hutchinson",
    "Likelihood",
    "Midpoint",
    "Probe",
    "Samples",
    "StochasticHeun",
    "StochasticSolver",
    "bits_per_dim",
    "calibrate",
    "dequantize",
    "edit",
    "encode",
    "has_error_estimate",
    "interpolate",
    "log_density",
    "sample",
    "sample_flow_map",
    "sample_sde",
]
