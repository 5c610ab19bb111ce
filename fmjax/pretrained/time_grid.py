"""Default time grid of released models: diffusers' flow-matching scheduler.

Released models use sigma = 1 - t, the fraction of noise. Their sigma grid is shifted towards the
noise by a fixed factor (SD3) or by one that grows with the number of tokens (FLUX.1-dev).

Reference: Esser et al. 2024, arXiv:2403.03206, equation 23 (shift); Black Forest Labs, FLUX.1
(2024) (dependence on the number of tokens).
"""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from fmjax._checks import require, require_at_least
from fmjax.pretrained.config_files import SchedulerConfigJson, check_config_json

_FILE = "scheduler_config.json"
_CLASS = "FlowMatchEulerDiscreteScheduler"
_FloatOrArray = TypeVar("_FloatOrArray", float, np.ndarray)
_OTHER_GRIDS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)
# Defaults of diffusers for missing keys.
_DEFAULTS = {
    "num_train_timesteps": 1000,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "base_shift": 0.5,
    "max_shift": 1.15,
}


def released_sigmas(
    config_json: Mapping[str, Any], num_steps: int, num_tokens: int, *, to_one_step: bool
) -> np.ndarray:
    """Compute the sigma grid of a released model, from 1 to 0, `[num_steps + 1]`, float64.

    Args:
        config_json: Contents of the scheduler_config.json.
        num_steps: Number of steps.
        num_tokens: Number of image tokens, on which the shift may depend.
        to_one_step: Last positive sigma before the shift: `1 / num_steps` if True (FLUX), the
            smallest sigma of the training if False (SD3).

    Raises:
        ValueError: If the file describes another scheduler or an unsupported grid.
    """
    require_at_least("num_steps", num_steps, 1)
    _require_supported(config_json)
    config_json = {
        **_DEFAULTS,
        **dict[str, Any](check_config_json(config_json, SchedulerConfigJson, _FILE)),
    }
    sigmas = np.linspace(1.0, 1.0 / num_steps, num_steps)
    if config_json.get("use_dynamic_shifting", False):
        if not to_one_step:
            sigmas = np.linspace(1.0, 1.0 / config_json["num_train_timesteps"], num_steps)
        mu = _mu(config_json, num_tokens)
        linear = config_json.get("time_shift_type", "exponential") == "linear"
        factor = mu if linear else math.exp(mu)
    else:
        factor = float(config_json.get("shift", 1.0))
        if not to_one_step:
            # As in diffusers, the smallest sigma is shifted here and again below.
            smallest = shifted(1.0 / config_json["num_train_timesteps"], factor)
            sigmas = np.linspace(1.0, smallest, num_steps)
    sigmas = shifted(sigmas, factor)
    if config_json.get("shift_terminal"):
        sigmas = 1.0 - (1.0 - sigmas) * (1.0 - config_json["shift_terminal"]) / (1.0 - sigmas[-1])
    return np.append(sigmas, 0.0)


def shifted(sigma: _FloatOrArray, factor: float) -> _FloatOrArray:
    """Apply the shift `k sigma / (1 + (k - 1) sigma)`, which moves times to the noise for k > 1."""
    return factor * sigma / (1.0 + (factor - 1.0) * sigma)


def _mu(config_json: Mapping[str, Any], num_tokens: int) -> float:
    """Return the logarithm of the shift factor, a linear function of the number of tokens."""
    low, high = config_json["base_image_seq_len"], config_json["max_image_seq_len"]
    require(low < high, "max_image_seq_len", f"be greater than base_image_seq_len = {low}", high)
    slope = (config_json["max_shift"] - config_json["base_shift"]) / (high - low)
    return config_json["base_shift"] + slope * (num_tokens - low)


def _require_supported(config_json: Mapping[str, Any]) -> None:
    class_name = config_json.get("_class_name")
    require(class_name == _CLASS, _FILE, f"name the class {_CLASS}", class_name)
    for name in _OTHER_GRIDS:
        require(not config_json.get(name), _FILE, f"have {name} false", config_json.get(name))
