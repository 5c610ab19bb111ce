"""Choices of how a network is computed, which are no part of what it is."""

from typing import Any

from fmjax._checks import require, require_between, require_numbers, require_one_of
from fmjax.networks.layers.attention import ATTENTIONS
from fmjax.networks.layers.functional import REMAT
from fmjax.networks.layers.linear import DTYPES

MAX_LAYERS = 1_024
MAX_PARAMETERS = 2**40
# What is counted in a loop while a network is traced.
_LAYERS = ("num_layers", "num_blocks", "num_double", "num_single")
_CHOICES = {"dtype": DTYPES, "remat": tuple(REMAT), "attention": ATTENTIONS}


def require_computable(config: Any) -> None:
    """Raise unless a network's config has known choices, and sizes that can be traced.

    Raises:
        ValueError: If it has an unknown choice, more than 1,024 layers, or more than 2**40
            parameters by its width alone: tracing would take minutes to years.
    """
    require_numbers(config)
    layers = 1
    for name in _LAYERS:
        if (number := getattr(config, name, None)) is not None:
            require_between(name, number, 0, MAX_LAYERS)
            layers = max(layers, number)
    width = max(getattr(config, "width", 1), *getattr(config, "widths", (1,)))
    width *= max(getattr(config, "multipliers", (1,)))
    rows = max(width, getattr(config, "vocab_size", 1), getattr(config, "mlp_width", 1))
    few = layers * width * rows <= MAX_PARAMETERS
    rule = "have at most 2**40 parameters (about layers x width**2)"
    require(few, "network", rule, f"{layers} layers of width {width:,}")
    for name, choices in _CHOICES.items():
        if hasattr(config, name):
            require_one_of(name, getattr(config, name), choices)
