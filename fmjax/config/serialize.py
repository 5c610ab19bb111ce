"""Read and write configs as JSON."""

import dataclasses
import enum
import json
import types
import typing
from typing import Any

import cattrs
from cattrs.strategies import configure_tagged_union

from fmjax._checks import DataclassInstance
from fmjax._json import Mismatch, make_converter, parse_json, structure
from fmjax.config.experiment import AnyCoupling, Config
from fmjax.config.losses import AnyLoss
from fmjax.config.sampling import DensityConfig
from fmjax.data import DataConfig
from fmjax.networks import NetworkConfig
from fmjax.paths import AnyDensity, AnySchedule

_UNIONS = (DataConfig, NetworkConfig, AnySchedule, AnyDensity, DensityConfig, AnyCoupling, AnyLoss)

# Maps the old name of a field to the new one, for run folders written by older versions. The field
# belongs to the type of a union member, or else to the field that holds its object.
_RENAMED_FIELDS = {
    ("training", "draw_samples"): "preview_samples",
    ("evaluation", "num_paths"): "num_trajectories",
    ("MeanFlowConfig", "share_apart"): "ratio_r_neq_t",
    ("ShortcutConfig", "share_apart"): "bootstrap_ratio",
}


def _make_converter() -> cattrs.Converter:
    converter = make_converter()
    # A config file may set `num_steps=1e4`, which is a float in JSON too.
    read_int = converter.get_structure_hook(int)
    converter.register_structure_hook(int, lambda value, to: read_int(_as_integer(value), to))
    for union in _UNIONS:
        configure_tagged_union(union, converter, tag_name="type")
        _read_tags(union, converter)
    data: Any = DataConfig
    optional: Any = data | None  # For cattrs, this is another union, with a member NoneType.
    converter.register_unstructure_hook_func(
        lambda annotation: annotation == optional,
        lambda value: None if value is None else converter.unstructure(value, data),
    )
    return converter


def _as_integer(value: object) -> object:
    """Convert a float with an integer value to int; return other values unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _read_tags(union: object, converter: cattrs.Converter) -> None:
    """Read members of a union by the type name that `configure_tagged_union` writes."""
    members = {member.__name__: member for member in typing.get_args(union)}

    def hook(value: object, _: object) -> object:
        if not isinstance(value, dict):
            raise Mismatch("an object", value)
        name = value.get("type")
        if not isinstance(name, str) or name not in members:
            raise Mismatch(f"an object of type {', '.join(members)}", name)
        fields = {key: item for key, item in value.items() if key != "type"}
        return converter.structure(fields, members[name])

    converter.register_structure_hook_func(lambda annotation: annotation == union, hook)


_CONVERTER = _make_converter()


def to_json(config: Config) -> str:
    """Write a config as JSON, with the type name of each member of a union."""
    return json.dumps(_CONVERTER.unstructure(config, Config), indent=2) + "\n"


def require_types(config: DataclassInstance, name: str = "config") -> None:
    """Raise unless every part of a config has one of the types of its field.

    Python does not check the types of fields, so a wrong one would fail far from the mistake.

    Args:
        config: A config dataclass.
        name: Name of the config in messages.

    Raises:
        ValueError: If a part has another type, for example a class instead of an object.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if all(dataclasses.is_dataclass(member) or _is_enum(member) for member in members):
            names = " or ".join(member.__name__ for member in members)
            if not isinstance(value, members):
                raise ValueError(f"{name}.{field.name} must be a {names}, got {value!r}")
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                require_types(value, f"{name}.{field.name}")


def _is_enum(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, enum.Enum)


def from_json(text: str | bytes, name: str = "config") -> Config:
    """Read a config that `to_json` wrote.

    Args:
        text: The JSON document.
        name: Name of the document in messages.

    Raises:
        ValueError: If the document is not JSON, or a field is unknown, missing or of a wrong type.
    """
    document = _with_current_names(parse_json(text, name, nonfinite=True))
    return structure(_CONVERTER, document, Config, name)


def _with_current_names(value: object, parent: str = "") -> object:
    """Rename the fields of older versions in a JSON value that is the field `parent`."""
    if not isinstance(value, dict):
        return value
    type_name = value.get("type")
    owner = type_name if isinstance(type_name, str) else parent
    current = {key: _RENAMED_FIELDS.get((owner, key), key) for key in value}
    return {current[key]: _with_current_names(item, key) for key, item in value.items()}
