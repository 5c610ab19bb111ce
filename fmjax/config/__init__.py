"""The whole experiment: what `configs/*.py` return and a run folder keeps.

Below this package nothing is chosen by name; here names become objects.
"""

from fmjax.config.build import Experiment, build, guided, num_parameters
from fmjax.config.fields import (
    SOLVERS,
    CompareConfig,
    Config,
    EvaluationConfig,
    LossConfig,
    SamplingConfig,
    TrainingConfig,
    can_adapt,
)
from fmjax.config.serialize import from_json, to_json

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
    "to_json",
]
