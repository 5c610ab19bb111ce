"""The few checks of user input. Each raises `ValueError("<name> must <rule>, got <value>")`."""

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
