"""Schedules: how much data and how much noise a point holds at time t.

An affine path is `x_t = alpha(t) x1 + sigma(t) x0`; a schedule is the pair (alpha, sigma).
t = 0 is the source (noise), t = 1 the target (data).
"""

from fmjax.schedules.continuous import (
    Cosine,
    Linear,
    Polynomial,
    Schedule,
    VarianceExploding,
    VariancePreserving,
)
from fmjax.schedules.discrete import CosineBetas, LinearBetas
from fmjax.schedules.ratios import angle, time_at_angle, times_of_linear, with_rate

AnySchedule = (
    Linear
    | Cosine
    | VariancePreserving
    | VarianceExploding
    | Polynomial
    | LinearBetas
    | CosineBetas
)

__all__ = [
    "AnySchedule",
    "Cosine",
    "CosineBetas",
    "Linear",
    "LinearBetas",
    "Polynomial",
    "Schedule",
    "VarianceExploding",
    "VariancePreserving",
    "angle",
    "time_at_angle",
    "times_of_linear",
    "with_rate",
]
