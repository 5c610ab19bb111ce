"""Checks of user input. Each raises `ValueError("<name> must <rule>, got <value>")`."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np


def require(ok: bool, name: str, rule: str, value: object) -> None:
    """Raise `ValueError("<name> must <rule>, got <value>")` unless `ok`."""
    if not ok:
        raise ValueError(f"{name} must {rule}, got {value}")


def _is_true(compare: Callable[[], bool]) -> bool:
    """Return the result of a comparison, or False if the operands are not numbers."""
    try:
        return bool(compare())
    except TypeError:
        return False


def require_positive(name: str, value: float | int) -> None:
    """Raise unless `value` is greater than zero and finite (NaN is neither)."""
    require(_is_true(lambda: 0 < value < math.inf), name, "be positive", value)


def require_at_least(name: str, value: float | int, low: float | int) -> None:
    """Raise unless `value` is at least `low` and finite (NaN is neither)."""
    require(_is_true(lambda: low <= value < math.inf), name, f"be at least {low}", value)


def require_count(name: str, value: float | int, low: int) -> None:
    """Raise unless `value` is an integer of at least `low`; fractions are not rounded."""
    is_fraction = isinstance(value, float | np.floating) and not float(value).is_integer()
    require(not is_fraction and not isinstance(value, bool), name, "be an integer", value)
    require_at_least(name, value, low)


def require_between(name: str, value: float | int, low: float | int, high: float | int) -> None:
    """Raise unless `low <= value <= high`."""
    require(_is_true(lambda: low <= value <= high), name, f"lie in [{low}, {high}]", value)


def require_unicode(name: str, *values: object) -> None:
    """Raise unless all strings or file paths can be encoded as UTF-8."""
    for value in map(str, values):
        try:
            value.encode()
        except UnicodeEncodeError:
            require(False, name, "be text in UTF-8", ascii(value))


def require_one_of(name: str, value: str, options: Iterable[str]) -> None:
    """Raise unless `value` is one of `options`; the message suggests the closest option."""
    options = tuple(options)
    if value not in options:
        matches = difflib.get_close_matches(str(value), options, n=1)
        hint = f" (did you mean {matches[0]!r}?)" if matches else ""
        require(False, name, f"be one of {', '.join(options)}", f"{value!r}{hint}")


MAX_STEPS = 2**24
"""Maximum number of steps on [0, 1]: float32 cannot resolve a finer time grid."""
MAX_SIDE = 2**14
"""Maximum side of an image in pixels."""
MAX_VALUES = 10_000
"""Maximum number of entries of a list in a config."""


@runtime_checkable
class DataclassInstance(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


def require_numbers(config: DataclassInstance, prefix: str = "") -> None:
    """Raise unless every number of a config dataclass is in the range that fmjax supports.

    Integers lie in (-2**31, 2**31), because counters and indices on devices have 32 bits. Seeds lie
    in [0, 2**63); without JAX's 64-bit types, only their low 32 bits affect random numbers.
    Floats are finite. Lists have at most `MAX_VALUES` entries.

    Args:
        config: A dataclass instance; call this first in its `__post_init__`.
        prefix: Prefix of field names in messages.
    """
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        values = value if isinstance(value, tuple | list) else (value,)
        fits = len(values) <= MAX_VALUES
        require(fits, name, f"have at most {MAX_VALUES:,} entries", f"{len(values):,}")
        for item in values:
            _require_number(item, name, is_seed=field.name == "seed")


def _require_number(value: object, name: str, *, is_seed: bool) -> None:
    if isinstance(value, int):
        low, high = (-1, 63) if is_seed else (-(2**31), 31)
        rule = "lie in [0, 2**63)" if is_seed else "lie in (-2**31, 2**31)"
        # Python refuses to format integers of more than 4,300 digits.
        shown = value if value.bit_length() < 256 else f"an integer of {value.bit_length()} bits"
        require(low < value < 2**high, name, rule, shown)
    if isinstance(value, float):
        require(math.isfinite(value), name, "be finite", value)
