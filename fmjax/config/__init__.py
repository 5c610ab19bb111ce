"""The whole experiment: what `configs/*.py` return and a run folder keeps.

Below this package nothing is chosen by name; here names become objects.
"""

from fmjax.config.build import Experiment, build, guided, num_parameters
from fmjax.config.fields import Config, EvaluationConfig, LossConfig, TrainingConfig
from fmjax.config.serialize import from_json, require_types, to_json
from fmjax.config.solving import SOLVERS, CompareConfig, SamplingConfig, can_adapt, solver_title

__all__ = [
    "SOLVERS",
    "CompareConfig",
    "Config",
    "EvaluationConfig",
    "Experiment",
    "LossConfig",
    "SamplingConfig",
    "TrainingConfig",
    "build",
    "can_adapt",
    "from_json",
    "guided",
    "num_parameters",
    "require_types",
    "solver_title",
    "to_json",
]
