"""Solvers: from noise to data along a velocity field. The only package that imports Diffrax."""

from fmjax.solvers.calibration import (
    calibrate,
)
from fmjax.solvers.diffusion import (
    DIFFUSION_SAMPLERS,
    sample_diffusion,
)
from fmjax.solvers.diffusion_rates import (
    AnyRate,
    ConstantRate,
    DecreasingRate,
    DiffusionRate,
    IncreasingDecreasingRate,
    IncreasingRate,
    SigmaRate,
)
from fmjax.solvers.engine.adjoint import (
    Adjoint,
)
from fmjax.solvers.engine.diffrax_solvers import (
    DIFFRAX_SOLVERS,
    has_error_estimate,
)
from fmjax.solvers.flow_map import (
    sample_flow_map,
)
from fmjax.solvers.guidance import (
    ClassifierFree,
    classifier_free,
)
from fmjax.solvers.inversion import (
    Inverted,
    edit,
    interpolate,
    invert,
)
from fmjax.solvers.likelihood import (
    ExactDivergence,
    Hutchinson,
    Likelihood,
    Probe,
    bits_per_dim,
    dequantize,
    log_density,
)
from fmjax.solvers.ode import (
    sample,
)
from fmjax.solvers.sde import (
    SDE_SOLVERS,
    sample_sde,
)
from fmjax.solvers.steppers.ddim import (
    DDIM,
    Ancestral,
    DiffusionSampler,
    StepVariance,
)
from fmjax.solvers.steppers.multistep import (
    DPMSolverPP2M,
    UniPC,
)
from fmjax.solvers.steppers.ode import (
    RK4,
    AdamsBashforth2,
    Euler,
    FixedStepSolver,
    Heun,
    Midpoint,
)
from fmjax.solvers.steppers.sde import (
    EulerMaruyama,
    StochasticHeun,
    StochasticSolver,
)
from fmjax.solvers.steps import (
    AdaptiveSteps,
    ErrorControl,
    FixedSteps,
    Samples,
)

__all__ = [
    "AdamsBashforth2",
    "AdaptiveSteps",
    "Adjoint",
    "Ancestral",
    "AnyRate",
    "ClassifierFree",
    "ConstantRate",
    "DDIM",
    "DIFFRAX_SOLVERS",
    "DIFFUSION_SAMPLERS",
    "DPMSolverPP2M",
    "DecreasingRate",
    "DiffusionRate",
    "DiffusionSampler",
    "Inverted",
    "ErrorControl",
    "Euler",
    "EulerMaruyama",
    "ExactDivergence",
    "FixedStepSolver",
    "FixedSteps",
    "Heun",
    "Hutchinson",
    "IncreasingDecreasingRate",
    "IncreasingRate",
    "Likelihood",
    "Midpoint",
    "Probe",
    "RK4",
    "SDE_SOLVERS",
    "Samples",
    "SigmaRate",
    "StepVariance",
    "StochasticHeun",
    "StochasticSolver",
    "UniPC",
    "bits_per_dim",
    "calibrate",
    "classifier_free",
    "dequantize",
    "edit",
    "has_error_estimate",
    "interpolate",
    "invert",
    "log_density",
    "sample",
    "sample_diffusion",
    "sample_flow_map",
    "sample_sde",
]
