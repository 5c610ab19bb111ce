"""Experiments as frozen dataclasses: all names that a config file needs.

    from fmjax.config import Config, DigitsData, DiTConfig, OptimizerConfig, SamplingConfig

`build` turns a config into functions. Lower packages take objects; only this one resolves names.
"""

from fmjax._arrays import (
    TextPart,
    TextShape,
)
from fmjax.config.build import (
    Experiment,
    SolveFn,
    Steps,
    build,
    differentiable_forwards,
    guided,
    make_solve,
    make_step,
    num_parameters,
)
from fmjax.config.compare import (
    CompareConfig,
)
from fmjax.config.experiment import (
    Config,
    EvaluationConfig,
    TrainingConfig,
)
from fmjax.config.flow_maps import (
    require_jumps,
)
from fmjax.config.generate import (
    GenerateConfig,
)
from fmjax.config.invert import (
    InvertConfig,
)
from fmjax.config.likelihood import (
    LikelihoodConfig,
)
from fmjax.config.losses import (
    LossConfig,
    MeanFlowConfig,
    ShortcutConfig,
)
from fmjax.config.plan import (
    PlanConfig,
)
from fmjax.config.pretrained import (
    PretrainedConfig,
)
from fmjax.config.reflow import (
    ReflowConfig,
)
from fmjax.config.sampling import (
    SamplingConfig,
)
from fmjax.config.serialize import (
    from_json,
    require_types,
    to_json,
)
from fmjax.config.solvers import (
    DIFFUSION_SAMPLERS,
    FLOW_MAP,
    ODE_SOLVERS,
    SDE_SOLVERS,
    SOLVERS,
    can_adapt,
    is_stochastic,
    solver_title,
)
from fmjax.config.study import (
    StudyConfig,
)
from fmjax.data import (
    ArrayData,
    CaptionedClasses,
    CaptionedImages,
    Cifar10Data,
    DataConfig,
    DigitsData,
    EmojiData,
    EncodedData,
    IdxData,
    TokenizerConfig,
    ToyData,
)
from fmjax.losses import (
    BuiltInGuidance,
    TimeWeight,
)
from fmjax.networks import (
    DIT_B,
    DIT_L,
    DIT_S,
    DIT_XL,
    FLUX_DEV,
    FLUX_SCHNELL,
    SD3_MEDIUM,
    SD35_LARGE,
    SD35_MEDIUM,
    DiTConfig,
    FluxConfig,
    LoRAConfig,
    MLPConfig,
    MMDiTConfig,
    NetworkConfig,
    TextEncoderConfig,
    UNetConfig,
)
from fmjax.paths import (
    AffinePath,
    Cosine,
    CosineBetas,
    CosMap,
    Independent,
    Linear,
    LinearBetas,
    LogitNormal,
    MinibatchOT,
    Mode,
    Polynomial,
    Prediction,
    Shifted,
    Tabulated,
    Uniform,
    UniformSteps,
    UShaped,
    VarianceExploding,
    VariancePreserving,
)
from fmjax.sharding import (
    MeshConfig,
)
from fmjax.training import (
    OptimizerConfig,
)

__all__ = [
    "AffinePath",
    "ArrayData",
    "BuiltInGuidance",
    "CaptionedClasses",
    "CaptionedImages",
    "Cifar10Data",
    "CompareConfig",
    "Config",
    "CosMap",
    "Cosine",
    "CosineBetas",
    "DIFFUSION_SAMPLERS",
    "DIT_B",
    "DIT_L",
    "DIT_S",
    "DIT_XL",
    "DataConfig",
    "DiTConfig",
    "DigitsData",
    "EmojiData",
    "EncodedData",
    "EvaluationConfig",
    "Experiment",
    "FLOW_MAP",
    "FLUX_DEV",
    "FLUX_SCHNELL",
    "FluxConfig",
    "GenerateConfig",
    "IdxData",
    "Independent",
    "InvertConfig",
    "LikelihoodConfig",
    "Linear",
    "LinearBetas",
    "LoRAConfig",
    "LogitNormal",
    "LossConfig",
    "MLPConfig",
    "MMDiTConfig",
    "MeanFlowConfig",
    "MeshConfig",
    "MinibatchOT",
    "Mode",
    "NetworkConfig",
    "ODE_SOLVERS",
    "OptimizerConfig",
    "PlanConfig",
    "Polynomial",
    "Prediction",
    "PretrainedConfig",
    "ReflowConfig",
    "SD35_LARGE",
    "SD35_MEDIUM",
    "SD3_MEDIUM",
    "SDE_SOLVERS",
    "SOLVERS",
    "SamplingConfig",
    "Shifted",
    "ShortcutConfig",
    "SolveFn",
    "Steps",
    "StudyConfig",
    "Tabulated",
    "TextEncoderConfig",
    "TextPart",
    "TextShape",
    "TimeWeight",
    "TokenizerConfig",
    "ToyData",
    "TrainingConfig",
    "UNetConfig",
    "UShaped",
    "Uniform",
    "UniformSteps",
    "VarianceExploding",
    "VariancePreserving",
    "build",
    "can_adapt",
    "differentiable_forwards",
    "from_json",
    "guided",
    "is_stochastic",
    "make_solve",
    "make_step",
    "num_parameters",
    "require_jumps",
    "require_types",
    "solver_title",
    "to_json",
]
