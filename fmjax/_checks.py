"""The few checks of user input. Each raises `ValueError("<name> must <rule>, got <value>")`."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


def require(ok: bool, name: str, rule: str, value: Any) -> None:
    """Raise unless `ok`: `<name> must <rule>, got <value>`."""
    if not ok:
        raise ValueError(f"{name} must {rule}, got {value}")


def _holds(compare: Callable[[], bool]) -> bool:
    """The result of a comparison; False for what is no number, such as None or a text."""
    try:
        return bool(compare())
    except TypeError:
        return False


def require_positive(name: str, value: float | int) -> None:
    """Raise unless `value` is greater than zero and finite (NaN is neither)."""
    require(_holds(lambda: 0 < value < math.inf), name, "be positive", value)


def require_at_least(name: str, value: float | int, low: float | int) -> None:
    """Raise unless `value` is at least `low` and finite (NaN is neither)."""
    require(_holds(lambda: low <= value < math.inf), name, f"be at least {low}", value)


def require_count(name: str, value: float | int, low: int) -> None:
    """Raise unless `value` is a whole number of at least `low`: nothing rounds a fraction."""
    fraction = isinstance(value, float | np.floating) and not float(value).is_integer()
    require(not fraction and not isinstance(value, bool), name, "be a whole number", value)
    require_at_least(name, value, low)


def require_between(name: str, value: float | int, low: float | int, high: float | int) -> None:
    """Raise unless `low <= value <= high`."""
    require(_holds(lambda: low <= value <= high), name, f"lie in [{low}, {high}]", value)


def require_unicode(name: str, *values: object) -> None:
    """Raise unless the texts or paths can be written as UTF-8: no bytes of another encoding."""
    for value in map(str, values):
        try:
            value.encode()
        except UnicodeEncodeError:
            require(False, name, "be text in UTF-8", ascii(value))


def require_one_of(name: str, value: str, options: Iterable[str]) -> None:
    """Raise unless `value` is one of `options`; a near miss is suggested."""
    options = tuple(options)
    if value not in options:
        near = difflib.get_close_matches(str(value), options, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        require(False, name, f"be one of {', '.join(options)}", f"{value!r}{hint}")


MAX_STEPS = 2**24
"""Steps of a fixed grid on [0, 1]: float32 tells no more times apart."""
MAX_SIDE = 2**14
"""Pixels of an image's side."""
MAX_VALUES = 10_000
"""Entries in a list of numbers of a config."""


def require_numbers(config: Any, prefix: str = "") -> None:
    """Raise unless every number of a config dataclass fits what computes with it.

    Integers lie in (-2**31, 2**31), since counters and indices on devices have 32 bits. Seeds lie
    in [0, 2**63); where JAX's 64-bit types are off, its noise depends on their low 32 bits alone.
    Floats are finite. Lists have at most `MAX_VALUES` entries.

    Args:
        config: The dataclass; call this first in its `__post_init__`.
        prefix: Put before the names of fields in messages.
    """
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        values = value if isinstance(value, tuple | list) else (value,)
        few = len(values) <= MAX_VALUES
        require(few, name, f"have at most {MAX_VALUES:,} entries", f"{len(values):,}")
        for each in values:
            _require_number(each, name, is_seed=field.name == "seed")


def _require_number(value: Any, name: str, *, is_seed: bool) -> None:
    if isinstance(value, int):
        low, high = (-1, 63) if is_seed else (-(2**31), 31)
        rule = "lie in [0, 2**63)" if is_seed else "lie in (-2**31, 2**31)"
        # Python writes out no integer of more than 4,300 digits.
        got = value if value.bit_length() < 256 else f"one of {value.bit_length()} bits"
        require(low < value < 2**high, name, rule, got)
    if isinstance(value, float):
        require(math.isfinite(value), name, "be finite", value)
