"""The whole experiment: what `configs/*.py` return and a run folder keeps.

Below this package nothing is chosen by name; here names become objects.
"""

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
from fmjax.config.compare import CompareConfig
from fmjax.config.experiment import Config, EvaluationConfig, TrainingConfig
from fmjax.config.flow_maps import require_jumps
from fmjax.config.losses import LossConfig, MeanFlowConfig, ShortcutConfig
from fmjax.config.plan import PlanConfig
from fmjax.config.pretrained import PretrainedConfig
from fmjax.config.reflow import ReflowConfig
from fmjax.config.sampling import SamplingConfig
from fmjax.config.serialize import from_json, require_types, to_json
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
from fmjax.config.study import StudyConfig

__all__ = [
    "DIFFUSION_SAMPLERS",
    "FLOW_MAP",
    "ODE_SOLVERS",
    "SDE_SOLVERS",
    "SOLVERS",
    "CompareConfig",
    "Config",
    "EvaluationConfig",
    "Experiment",
    "LossConfig",
    "MeanFlowConfig",
    "ReflowConfig",
    "SamplingConfig",
    "SolveFn",
    "Steps",
    "PlanConfig",
    "PretrainedConfig",
    "ShortcutConfig",
    "StudyConfig",
    "TrainingConfig",
    "build",
    "differentiable_forwards",
    "can_adapt",
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
