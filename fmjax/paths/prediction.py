"""Quantities that networks predict."""

import enum


class Prediction(enum.StrEnum):
    """Quantity that a network predicts or that a loss compares."""

    VELOCITY = "velocity"
    X1 = "x1"
    X0 = "x0"
    SCORE = "score"
