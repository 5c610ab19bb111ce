"""Training losses for velocity networks and flow maps."""

from fmjax.losses.flow_map import (
    FlowMapExamples as FlowMapExamples,
    mean_flow_objective as mean_flow_objective,
    mean_flow_target as mean_flow_target,
    shortcut_objective as shortcut_objective,
    shortcut_target as shortcut_target,
)
from fmjax.losses.flow_matching import (
    FlowExamples as FlowExamples,
    TimeWeight as TimeWeight,
    drop_condition as drop_condition,
    drop_parts as drop_parts,
    flow_matching_loss as flow_matching_loss,
    flow_matching_objective as flow_matching_objective,
)
from fmjax.losses.guidance import BuiltInGuidance as BuiltInGuidance
from fmjax.losses.objective import Objective as Objective
