"""Checks of network configs: computation options, and sizes that can be traced."""

from fmjax._checks import (
    DataclassInstance,
    require,
    require_between,
    require_numbers,
    require_one_of,
)
from fmjax.networks.layers.attention import ATTENTIONS
from fmjax.networks.layers.functional import REMAT
from fmjax.networks.layers.linear import DTYPES

MAX_LAYERS = 1_024
MAX_PARAMETERS = 2**40
# Fields with numbers of layers, which are traced in a Python loop.
_LAYER_FIELDS = ("num_layers", "num_blocks", "num_double", "num_single")
_OPTIONS = {"dtype": DTYPES, "remat": tuple(REMAT), "attention": ATTENTIONS}


def require_computable(config: DataclassInstance) -> None:
    """Raise unless a network config has valid computation options and sizes that can be traced.

    Args:
        config: Config dataclass of a network.

    Raises:
        ValueError: If an option is unknown, or if the config has more than 1,024 layers or, judged
            by its layers and widths, more than 2**40 parameters: tracing would take too long.
    """
    require_numbers(config)
    layers = 1
    for name in _LAYER_FIELDS:
        if (number := getattr(config, name, None)) is not None:
            require_between(name, number, 0, MAX_LAYERS)
            layers = max(layers, number)
    width = max(getattr(config, "width", 1), *getattr(config, "widths", (1,)))
    width *= max(getattr(config, "multipliers", (1,)))
    rows = max(width, getattr(config, "vocab_size", 1), getattr(config, "mlp_width", 1))
    is_traceable = layers * width * rows <= MAX_PARAMETERS
    rule = "have at most 2**40 parameters (about layers x width**2)"
    require(is_traceable, "network", rule, f"{layers} layers of width {width:,}")
    for name, options in _OPTIONS.items():
        if hasattr(config, name):
            require_one_of(name, getattr(config, name), options)
