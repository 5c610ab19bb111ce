"""Training losses for velocity networks and flow maps."""

from fmjax.losses.flow_map import (
    FlowMapExamples,
    mean_flow_objective,
    mean_flow_target,
    shortcut_objective,
    shortcut_target,
)
from fmjax.losses.flow_matching import (
    FlowExamples,
    TimeWeight,
    drop_condition,
    drop_parts,
    flow_matching_loss,
    flow_matching_objective,
)
from fmjax.losses.guidance import BuiltInGuidance
from fmjax.losses.objective import Objective

__all__ = [
    "BuiltInGuidance",
    "FlowExamples",
    "FlowMapExamples",
    "Objective",
    "TimeWeight",
    "drop_condition",
    "drop_parts",
    "flow_matching_loss",
    "flow_matching_objective",
    "mean_flow_objective",
    "mean_flow_target",
    "shortcut_objective",
    "shortcut_target",
]
