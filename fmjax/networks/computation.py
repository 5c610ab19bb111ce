"""Choices of how a network is computed, which are no part of what it is."""

from typing import Any

from fmjax._checks import require_one_of
from fmjax.networks.attention import ATTENTIONS
from fmjax.networks.layers import DTYPES
from fmjax.networks.pure import REMAT

_CHOICES = {"dtype": DTYPES, "remat": tuple(REMAT), "attention": ATTENTIONS}


def require_computable(config: Any) -> None:
    """Raise unless those choices that a network's config has are known ones."""
    for name, choices in _CHOICES.items():
        if hasattr(config, name):
            require_one_of(name, getattr(config, name), choices)
