"""The times at which a released model is asked by default: diffusers' flow-matching grid.

Released models count noise, sigma = 1 - t. Their grid of sigmas is shifted towards the noise, by a
fixed factor (SD3) or one that grows with the number of tokens (FLUX.1-dev).

Source: Esser et al. 2024, arXiv:2403.03206, equation 23 (the shift); Black Forest Labs, FLUX.1
(2024) (its growth).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fmjax._checks import require, require_at_least
from fmjax.pretrained.config_files import SchedulerAbout, checked

_FILE = "scheduler_config.json"
_CLASS = "FlowMatchEulerDiscreteScheduler"
_OTHER_GRIDS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)
# What diffusers takes where a file says nothing.
_USUAL = {
    "num_train_timesteps": 1000,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "base_shift": 0.5,
    "max_shift": 1.15,
}


def released_sigmas(
    about: Mapping[str, Any], num_steps: int, num_tokens: int, *, to_one_step: bool
) -> np.ndarray:
    """Sigmas from 1 to 0, one more than there are steps, float64.

    Args:
        about: The parsed scheduler_config.json.
        num_steps: Of the grid.
        num_tokens: Of the image, for a shift that depends on it.
        to_one_step: Before the shift, whether the last sigma above 0 is one of equal steps
            (FLUX), or the least that the model was trained at (SD3).

    Raises:
        ValueError: If the file is of another grid.
    """
    require_at_least("steps", num_steps, 1)
    _require_known(about)
    about = {**_USUAL, **dict[str, Any](checked(about, SchedulerAbout, _FILE))}
    sigmas = np.linspace(1.0, 1.0 / num_steps, num_steps)
    if about.get("use_dynamic_shifting", False):
        if not to_one_step:
            sigmas = np.linspace(1.0, 1.0 / about["num_train_timesteps"], num_steps)
        mu = _mu(about, num_tokens)
        linear = about.get("time_shift_type", "exponential") == "linear"
        factor = mu if linear else math.exp(mu)
    else:
        factor = float(about.get("shift", 1.0))
        if not to_one_step:
            # diffusers takes the least sigma from a grid that is shifted already.
            least = shifted(1.0 / about["num_train_timesteps"], factor)
            sigmas = np.linspace(1.0, least, num_steps)
    sigmas = shifted(sigmas, factor)
    if about.get("shift_terminal"):
        sigmas = 1.0 - (1.0 - sigmas) * (1.0 - about["shift_terminal"]) / (1.0 - sigmas[-1])
    return np.append(sigmas, 0.0)


def shifted(sigma: Any, factor: float) -> Any:
    """`k sigma / (1 + (k - 1) sigma)`: more of the way near the noise for k above 1."""
    return factor * sigma / (1.0 + (factor - 1.0) * sigma)


def _mu(about: Mapping[str, Any], num_tokens: int) -> float:
    """The logarithm of the shift: linear in the number of tokens between two that are given."""
    least, most = about["base_image_seq_len"], about["max_image_seq_len"]
    require(least < most, "max_image_seq_len", f"be above base_image_seq_len {least}", most)
    slope = (about["max_shift"] - about["base_shift"]) / (most - least)
    return about["base_shift"] + slope * (num_tokens - least)


def _require_known(about: Mapping[str, Any]) -> None:
    found = about.get("_class_name")
    require(found == _CLASS, _FILE, f"be of a {_CLASS}", found)
    for name in _OTHER_GRIDS:
        require(not about.get(name), _FILE, f"have {name} false", about.get(name))
