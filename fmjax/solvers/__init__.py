"""Solvers: from noise to data along a velocity field. The only package that imports Diffrax."""

from fmjax.solvers.calibration import calibrate as calibrate
from fmjax.solvers.diffusion import (
    DIFFUSION_SAMPLERS as DIFFUSION_SAMPLERS,
    sample_diffusion as sample_diffusion,
)
from fmjax.solvers.diffusion_rates import (
    AnyRate as AnyRate,
    ConstantRate as ConstantRate,
    DecreasingRate as DecreasingRate,
    DiffusionRate as DiffusionRate,
    IncreasingDecreasingRate as IncreasingDecreasingRate,
    IncreasingRate as IncreasingRate,
    SigmaRate as SigmaRate,
)
from fmjax.solvers.engine.adjoint import Adjoint as Adjoint
from fmjax.solvers.engine.diffrax_solvers import (
    DIFFRAX_SOLVERS as DIFFRAX_SOLVERS,
    Solver as Solver,
    has_error_estimate as has_error_estimate,
)
from fmjax.solvers.flow_map import sample_flow_map as sample_flow_map
from fmjax.solvers.grids import (
    AnyGrid as AnyGrid,
    CalibratedGrid as CalibratedGrid,
    DensityConfig as DensityConfig,
    EdmGrid as EdmGrid,
    GridSteps as GridSteps,
    QuantileGrid as QuantileGrid,
    ShiftedGrid as ShiftedGrid,
    TimeGrid as TimeGrid,
    UniformGrid as UniformGrid,
)
from fmjax.solvers.guidance import (
    ClassifierFree as ClassifierFree,
    Guidance as Guidance,
    GuidedField as GuidedField,
    classifier_free as classifier_free,
)
from fmjax.solvers.inversion import (
    Inverted as Inverted,
    edit as edit,
    interpolate as interpolate,
    invert as invert,
)
from fmjax.solvers.likelihood import (
    ExactDivergence as ExactDivergence,
    Hutchinson as Hutchinson,
    Likelihood as Likelihood,
    Probe as Probe,
    bits_per_dim as bits_per_dim,
    dequantize as dequantize,
    log_density as log_density,
)
from fmjax.solvers.model import (
    GuidedMap as GuidedMap,
    Model as Model,
    PredictFn as PredictFn,
    require_guidable as require_guidable,
)
from fmjax.solvers.ode import sample as sample
from fmjax.solvers.samplers import (
    AnySampler as AnySampler,
    DiffusionSampler as DiffusionSampler,
    FlowMapSampler as FlowMapSampler,
    OdeSampler as OdeSampler,
    Sampler as Sampler,
    SdeSampler as SdeSampler,
    SdeSolver as SdeSolver,
    Stepping as Stepping,
    check_sampler as check_sampler,
    needs_calibration as needs_calibration,
)
from fmjax.solvers.sde import SDE_SOLVERS as SDE_SOLVERS, sample_sde as sample_sde
from fmjax.solvers.steppers.ddim import (
    DDIM as DDIM,
    Ancestral as Ancestral,
    DiffusionSolver as DiffusionSolver,
    StepVariance as StepVariance,
)
from fmjax.solvers.steppers.multistep import DPMSolverPP2M as DPMSolverPP2M, UniPC as UniPC
from fmjax.solvers.steppers.ode import (
    RK4 as RK4,
    AdamsBashforth2 as AdamsBashforth2,
    Euler as Euler,
    FixedStepSolver as FixedStepSolver,
    Heun as Heun,
    Midpoint as Midpoint,
)
from fmjax.solvers.steppers.sde import (
    EulerMaruyama as EulerMaruyama,
    StochasticHeun as StochasticHeun,
    StochasticSolver as StochasticSolver,
)
from fmjax.solvers.steps import (
    AdaptiveSteps as AdaptiveSteps,
    ErrorControl as ErrorControl,
    FixedSteps as FixedSteps,
    Samples as Samples,
    SolveStats as SolveStats,
)
