"""Probability paths, schedules, couplings, training times, and velocity-field protocols.

An affine path is `x_t = alpha(t) x1 + sigma(t) x0`; a schedule is the pair (alpha, sigma).
t = 0 is the source distribution (noise), t = 1 the target distribution (data).
"""

from fmjax.paths.affine import (
    AffinePath as AffinePath,
    AnySchedule as AnySchedule,
    change_schedule as change_schedule,
    require_conversion as require_conversion,
)
from fmjax.paths.couplings import (
    Coupling as Coupling,
    Independent as Independent,
    MinibatchOT as MinibatchOT,
    squared_distances as squared_distances,
)
from fmjax.paths.ddpm_schedules import CosineBetas as CosineBetas, LinearBetas as LinearBetas
from fmjax.paths.prediction import Prediction as Prediction
from fmjax.paths.process import (
    PathSample as PathSample,
    Process as Process,
    VelocityProcess as VelocityProcess,
    interpolate as interpolate,
    require_velocity_process as require_velocity_process,
    sample_source as sample_source,
    source_keys as source_keys,
)
from fmjax.paths.schedules import (
    Cosine as Cosine,
    Linear as Linear,
    Polynomial as Polynomial,
    Schedule as Schedule,
    VarianceExploding as VarianceExploding,
    VariancePreserving as VariancePreserving,
    angle as angle,
    time_at_angle as time_at_angle,
    times_of_linear as times_of_linear,
    with_rate as with_rate,
)
from fmjax.paths.times import (
    AnyDensity as AnyDensity,
    CosMap as CosMap,
    Density as Density,
    Grid as Grid,
    LogitNormal as LogitNormal,
    Mode as Mode,
    Shifted as Shifted,
    Tabulated as Tabulated,
    Uniform as Uniform,
    UniformSteps as UniformSteps,
    UShaped as UShaped,
    edm_grid as edm_grid,
    quantile_grid as quantile_grid,
    sample_times as sample_times,
    shift_times as shift_times,
    shifted_grid as shifted_grid,
    uniform_grid as uniform_grid,
)
from fmjax.paths.velocity import (
    CountedField as CountedField,
    FlowMapFn as FlowMapFn,
    FlowMapNet as FlowMapNet,
    VelocityFn as VelocityFn,
    VelocityNet as VelocityNet,
    evaluations as evaluations,
    over_interval as over_interval,
    reversed_time as reversed_time,
    velocity_of as velocity_of,
)
