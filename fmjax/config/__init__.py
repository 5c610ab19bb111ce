"""Experiments as frozen dataclasses: all names that a config file needs.

    from fmjax.config import Config, DigitsData, DiTConfig, OptimizerConfig, Sampling

`build` turns a config into functions. Lower packages take objects; only this one resolves names.
"""

from fmjax._arrays import TextPart as TextPart, TextShape as TextShape
from fmjax._specs import Spec as Spec
from fmjax.config.build import (
    Experiment as Experiment,
    SolveFn as SolveFn,
    Steps as Steps,
    build as build,
    differentiable_forwards as differentiable_forwards,
    make_solve as make_solve,
    make_step as make_step,
    num_parameters as num_parameters,
)
from fmjax.config.compare import (
    CompareConfig as CompareConfig,
    ComparePromptConfig as ComparePromptConfig,
)
from fmjax.config.encode import EncodeConfig as EncodeConfig
from fmjax.config.experiment import (
    Config as Config,
    EvaluationConfig as EvaluationConfig,
    TrainingConfig as TrainingConfig,
)
from fmjax.config.generate import GenerateConfig as GenerateConfig
from fmjax.config.invert import InvertConfig as InvertConfig
from fmjax.config.likelihood import LikelihoodConfig as LikelihoodConfig
from fmjax.config.losses import (
    LossConfig as LossConfig,
    MeanFlowConfig as MeanFlowConfig,
    ShortcutConfig as ShortcutConfig,
)
from fmjax.config.plan import PlanConfig as PlanConfig
from fmjax.config.pretrained import PretrainedConfig as PretrainedConfig
from fmjax.config.reflow import ReflowConfig as ReflowConfig
from fmjax.config.sampling import (
    AnyGuidance as AnyGuidance,
    Sampling as Sampling,
    SamplingConfig as SamplingConfig,
    SamplingOptions as SamplingOptions,
    with_options as with_options,
)
from fmjax.config.serialize import (
    from_json as from_json,
    register_classes as register_classes,
    require_types as require_types,
    to_json as to_json,
    user_classes as user_classes,
)
from fmjax.config.solvers import (
    DIFFUSION_SAMPLERS as DIFFUSION_SAMPLERS,
    FLOW_MAP as FLOW_MAP,
    ODE_SOLVERS as ODE_SOLVERS,
    SDE_SOLVERS as SDE_SOLVERS,
    SOLVERS as SOLVERS,
    can_adapt as can_adapt,
    is_stochastic as is_stochastic,
    solver_title as solver_title,
)
from fmjax.config.study import StudyConfig as StudyConfig
from fmjax.data import (
    ArrayData as ArrayData,
    CaptionedClasses as CaptionedClasses,
    CaptionedImages as CaptionedImages,
    Cifar10Data as Cifar10Data,
    DataConfig as DataConfig,
    DataSource as DataSource,
    DigitsData as DigitsData,
    EmojiData as EmojiData,
    EncodedData as EncodedData,
    IdxData as IdxData,
    ImageFolder as ImageFolder,
    TokenizerConfig as TokenizerConfig,
    ToyData as ToyData,
)
from fmjax.losses import BuiltInGuidance as BuiltInGuidance, TimeWeight as TimeWeight
from fmjax.networks import (
    DIT_B as DIT_B,
    DIT_L as DIT_L,
    DIT_S as DIT_S,
    DIT_XL as DIT_XL,
    FLUX_DEV as FLUX_DEV,
    FLUX_SCHNELL as FLUX_SCHNELL,
    SD3_MEDIUM as SD3_MEDIUM,
    SD35_LARGE as SD35_LARGE,
    SD35_MEDIUM as SD35_MEDIUM,
    DiTConfig as DiTConfig,
    FluxConfig as FluxConfig,
    LoRAConfig as LoRAConfig,
    MLPConfig as MLPConfig,
    MMDiTConfig as MMDiTConfig,
    NetworkConfig as NetworkConfig,
    NetworkFactory as NetworkFactory,
    SequenceTransformerConfig as SequenceTransformerConfig,
    TextEncoderConfig as TextEncoderConfig,
    UNetConfig as UNetConfig,
    from_nnx as from_nnx,
)
from fmjax.paths import (
    AffinePath as AffinePath,
    Cosine as Cosine,
    CosineBetas as CosineBetas,
    CosMap as CosMap,
    Coupling as Coupling,
    Density as Density,
    Independent as Independent,
    Linear as Linear,
    LinearBetas as LinearBetas,
    LogitNormal as LogitNormal,
    MinibatchOT as MinibatchOT,
    Mode as Mode,
    PathSample as PathSample,
    Polynomial as Polynomial,
    Prediction as Prediction,
    Process as Process,
    Schedule as Schedule,
    Shifted as Shifted,
    Tabulated as Tabulated,
    Uniform as Uniform,
    UniformSteps as UniformSteps,
    UShaped as UShaped,
    VarianceExploding as VarianceExploding,
    VariancePreserving as VariancePreserving,
    VelocityProcess as VelocityProcess,
)
from fmjax.sharding import MeshConfig as MeshConfig
from fmjax.solvers import (
    DDIM as DDIM,
    RK4 as RK4,
    AdamsBashforth2 as AdamsBashforth2,
    AdaptiveSteps as AdaptiveSteps,
    Ancestral as Ancestral,
    CalibratedGrid as CalibratedGrid,
    ClassifierFree as ClassifierFree,
    ConstantRate as ConstantRate,
    DecreasingRate as DecreasingRate,
    DiffusionRate as DiffusionRate,
    DiffusionSampler as DiffusionSampler,
    DPMSolverPP2M as DPMSolverPP2M,
    EdmGrid as EdmGrid,
    ErrorControl as ErrorControl,
    Euler as Euler,
    EulerMaruyama as EulerMaruyama,
    FlowMapSampler as FlowMapSampler,
    GridSteps as GridSteps,
    Guidance as Guidance,
    Heun as Heun,
    IncreasingDecreasingRate as IncreasingDecreasingRate,
    IncreasingRate as IncreasingRate,
    Midpoint as Midpoint,
    OdeSampler as OdeSampler,
    QuantileGrid as QuantileGrid,
    Sampler as Sampler,
    SdeSampler as SdeSampler,
    ShiftedGrid as ShiftedGrid,
    SigmaRate as SigmaRate,
    StochasticHeun as StochasticHeun,
    TimeGrid as TimeGrid,
    UniformGrid as UniformGrid,
    UniPC as UniPC,
)
from fmjax.training import (
    OptimizerConfig as OptimizerConfig,
    OptimizerFactory as OptimizerFactory,
)
