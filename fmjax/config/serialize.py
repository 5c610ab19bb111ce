"""A config as JSON, and back."""

import dataclasses
import enum
import json
import types
import typing
from typing import Any

import cattrs
from cattrs.strategies import configure_tagged_union

from fmjax._json import Mismatch, make_converter, parse_json, structure
from fmjax.config.experiment import AnyCoupling, Config
from fmjax.config.losses import AnyLoss
from fmjax.config.sampling import DensityConfig
from fmjax.data import DataConfig
from fmjax.networks import NetworkConfig
from fmjax.paths import AnyDensity, AnySchedule

_UNIONS = (DataConfig, NetworkConfig, AnySchedule, AnyDensity, DensityConfig, AnyCoupling, AnyLoss)


# Fields of run folders written before they were renamed: (type, old name) to new name.
_RENAMED_FIELDS = {
    ("MeanFlowConfig", "share_apart"): "ratio_r_neq_t",
    ("ShortcutConfig", "share_apart"): "bootstrap_ratio",
}


def _make_converter() -> cattrs.Converter:
    converter = make_converter()
    # What a config file calls 1e4 steps is a float there, and so in the JSON of its run.
    whole = converter.get_structure_hook(int)
    converter.register_structure_hook(int, lambda value, kind: whole(_as_integer(value), kind))
    for union in _UNIONS:
        configure_tagged_union(union, converter, tag_name="type")
        _read_tags(union, converter)
    data: Any = DataConfig
    optional: Any = data | None  # To cattrs another union, with a class "NoneType" in it.
    converter.register_unstructure_hook_func(
        lambda kind: kind == optional,
        lambda value: None if value is None else converter.unstructure(value, data),
    )
    return converter


def _as_integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _read_tags(union: Any, converter: cattrs.Converter) -> None:
    """Read the members of a union by their type's name, as `configure_tagged_union` writes it."""
    kinds = {kind.__name__: kind for kind in typing.get_args(union)}

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise Mismatch("an object", value)
        name = value.get("type")
        if not isinstance(name, str) or name not in kinds:
            raise Mismatch(f"an object of type {', '.join(kinds)}", name)
        fields = {
            _RENAMED_FIELDS.get((name, key), key): item
            for key, item in value.items()
            if key != "type"
        }
        return converter.structure(fields, kinds[name])

    converter.register_structure_hook_func(lambda kind: kind == union, hook)


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


def from_json(text: str | bytes, name: str = "config") -> Config:
    """Read what `to_json` wrote.

    Args:
        text: The document.
        name: What a message calls it.

    Raises:
        ValueError: If it is no JSON, or a field is unknown, missing or of the wrong kind.
    """
    return structure(_CONVERTER, parse_json(text, name, nonfinite=True), Config, name)
