"""A config as JSON, and back."""

import dataclasses
import enum
import json
import types
import typing
from typing import Any

import cattrs
import cattrs.preconf.json
import cattrs.v
from cattrs.strategies import configure_tagged_union

from fmjax.config.fields import AnyCoupling, Config
from fmjax.config.losses import AnyLoss
from fmjax.config.sampling import DensityConfig
from fmjax.data import DataConfig
from fmjax.networks import NetworkConfig
from fmjax.schedules import AnySchedule
from fmjax.times import AnyDensity

_UNIONS = (DataConfig, NetworkConfig, AnySchedule, AnyDensity, DensityConfig, AnyCoupling, AnyLoss)


def _make_converter() -> cattrs.Converter:
    converter = cattrs.preconf.json.make_converter(forbid_extra_keys=True)
    for union in _UNIONS:
        configure_tagged_union(union, converter, tag_name="type")
    data: Any = DataConfig
    optional: Any = data | None  # To cattrs another union, with a class "NoneType" in it.
    converter.register_structure_hook(
        optional, lambda value, _: None if value is None else converter.structure(value, data)
    )
    converter.register_unstructure_hook_func(
        lambda kind: kind == optional,
        lambda value: None if value is None else converter.unstructure(value, data),
    )
    return converter


_CONVERTER = _make_converter()


def to_json(config: Config) -> str:
    """Every field of the config, unions with their type; `from_json` reads it back equal."""
    return json.dumps(_CONVERTER.unstructure(config, Config), indent=2) + "\n"


def require_types(config: Any, name: str = "config") -> None:
    """See that every part of a config is one of those that its field can hold.

    Python takes anything for a field; what follows would fail far from the mistake.

    Raises:
        ValueError: If one is something else: a class, a name, a part of the user's own.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if all(dataclasses.is_dataclass(k) or _is_enum(k) for k in kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            if not isinstance(value, kinds):
                raise ValueError(f"{name}.{field.name} must be a {wanted}, got {value!r}")
            if dataclasses.is_dataclass(value):
                require_types(value, f"{name}.{field.name}")


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def from_json(text: str) -> Config:
    """Read what `to_json` wrote.

    Raises:
        ValueError: If a field is unknown, missing or of the wrong kind; all are named.
    """
    try:
        return _CONVERTER.structure(json.loads(text), Config)
    except cattrs.BaseValidationError as error:
        lines = cattrs.transform_error(error, path="config", format_exception=_in_words)
        raise ValueError("; ".join(lines)) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"config must be JSON, got {error}") from error


def _in_words(error: BaseException, kind: Any) -> str:
    """A field's own refusal says what it wants; cattrs would only say that it is invalid."""
    if type(error) is ValueError:
        return str(error)
    return cattrs.v.format_exception(error, kind)
