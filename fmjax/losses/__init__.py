"""Losses: what a network is trained to do."""

from fmjax.losses.flow import (
    FlowExamples,
    TimeWeight,
    drop_condition,
    flow_matching_loss,
    flow_matching_objective,
)
from fmjax.losses.objective import Objective

__all__ = [
    "FlowExamples",
    "Objective",
    "TimeWeight",
    "drop_condition",
    "flow_matching_loss",
    "flow_matching_objective",
]
