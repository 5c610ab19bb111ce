"""Read and write configs as JSON."""

import dataclasses
import enum
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import cattrs

from fmjax._checks import DataclassInstance, require
from fmjax._json import Mismatch, make_converter, parse_json, structure
from fmjax.config.experiment import AnyCoupling, AnyData, AnyNetwork, AnyProcess, Config
from fmjax.config.losses import AnyLoss
from fmjax.config.sampling import AnyGuidance, Sampling, SamplingOptions, with_options
from fmjax.config.solvers import DIFFUSION_SAMPLERS, ODE_SOLVERS, SDE_SOLVERS
from fmjax.paths import AffinePath, AnyDensity, AnySchedule, Density, Schedule
from fmjax.solvers import (
    AdaptiveSteps,
    AnyGrid,
    AnyRate,
    AnySampler,
    DensityConfig,
    DiffusionRate,
    DiffusionSolver,
    SdeSolver,
    Solver,
    Stepping,
)
from fmjax.training import AnyOptimizer, OptimizerConfig

_UNIONS = (
    AnyData,
    AnyNetwork,
    AnySchedule | Schedule,
    AnyDensity | Density,
    DensityConfig,
    AnyCoupling,
    AnyProcess,
    AnyLoss,
    AnyOptimizer,
    AnySampler,
    AnyGuidance,
    Stepping,
    AnyGrid,
    AnyRate | DiffusionRate,
)
# Solvers are written by the name of their class, too; those of Diffrax without fields.
_SOLVER_UNIONS = (
    (Solver, ODE_SOLVERS),
    (SdeSolver, SDE_SOLVERS),
    (DiffusionSolver, DIFFUSION_SAMPLERS),
)

# Unions of fields that had one type in older versions, whose run folders do not name the type.
_FORMER_TYPES = ((AnyOptimizer, OptimizerConfig), (AnyProcess, AffinePath))


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
        _register_union(union, converter, _members(union))
    for union, table in _SOLVER_UNIONS:
        members = [cls for cls in table.values() if isinstance(cls, type)]
        _register_union(union, converter, {cls.__name__: cls for cls in members})
    read_steps = converter.get_structure_hook(AdaptiveSteps)
    converter.register_structure_hook(
        AdaptiveSteps, lambda value, to: read_steps(_with_numbers(value), to)
    )
    read_sampling = converter.get_structure_hook(Sampling)
    converter.register_structure_hook(
        Sampling,
        lambda value, to: (
            _read_flat_sampling(value, converter)
            if isinstance(value, dict) and "sampler" not in value
            else read_sampling(value, to)
        ),
    )
    return converter


def _with_numbers(value: object) -> object:
    """Raise unless the tolerances in the JSON of adaptive steps are numbers; return the value."""
    if isinstance(value, dict):
        for name in {"rtol", "atol"} & set(value):
            if isinstance(value[name], bool) or not isinstance(value[name], (int, float)):
                raise Mismatch(f"a number as {name}", value[name])
    return value


def _read_flat_sampling(value: dict[str, Any], converter: cattrs.Converter) -> Sampling:
    """Read the sampling of older versions, which had fields for all samplers in one object."""
    solver, fixed = value.get("solver", "tsit5"), value.get("num_steps") is not None
    unused = {"rtol", "atol", "control", "slots"} if fixed else {"grid", "shift", "grid_density"}
    if value.get("grid", "uniform") != "shifted":
        unused |= {"shift"}
    if value.get("grid", "uniform") != "quantiles":
        unused |= {"grid_density"}
    if solver not in SDE_SOLVERS:
        unused |= {"rate", "rate_scale", "rate_power", "last_step"}
    elif value.get("rate", "sigma") != "sigma":
        unused |= {"rate_power"}
    if solver in SDE_SOLVERS or value.get("slots") is not None:
        unused |= {"control"}
    options = converter.structure(value, SamplingOptions)
    used = {"solver", *value} - unused
    given = {name: getattr(options, name) for name in used}
    return with_options(Sampling(), {k: item for k, item in given.items() if item is not None})


def _as_integer(value: object) -> object:
    """Convert a float with an integer value to int; return other values unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _members(union: object) -> dict[str, type]:
    """Return the dataclasses of a union by name."""
    return {
        member.__name__: member
        for member in typing.get_args(union)
        if isinstance(member, type) and dataclasses.is_dataclass(member)
    }


def _is_of_diffrax(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "diffrax"


def _register_union(union: Any, converter: cattrs.Converter, members: Mapping[str, type]) -> None:
    """Write members of a union with the name of their class, and read them by that name.

    Args:
        union: The union, with or without None.
        converter: The converter of configs.
        members: The classes of fmjax by name.
    """
    optional = union | None
    former = next((cls.__name__ for typed, cls in _FORMER_TYPES if typed == union), None)

    def unstructure(value: object) -> dict[str, Any] | None:
        cls = type(value)
        if value is None:
            return None
        if _is_of_diffrax(cls):
            rule = "have its default settings to be saved in a config"
            is_default = members.get(cls.__name__) is cls and value == cls()
            require(is_default, f"solver {cls.__name__}", rule, repr(value))
            return {"type": cls.__name__}
        return {**converter.unstructure(value, cls), "type": cls.__qualname__}

    def read(value: object, target: object) -> object:
        if value is None and target == optional:
            return None
        if not isinstance(value, dict):
            raise Mismatch("an object", value)
        name = value.get("type", former)
        cls = (_user_classes | dict(members)).get(name) if isinstance(name, str) else None
        if cls is None:
            what = f"an object of type {', '.join(members)}"
            if _is_open(union):
                what = (
                    "an object of a class of fmjax, or of a class in a config file that is passed "
                    "too (--config FILE),"
                )
            raise Mismatch(what, name)
        fields = {key: item for key, item in value.items() if key != "type"}
        if _is_of_diffrax(cls):
            return converter.structure(fields, _NoFields) and cls()
        return converter.structure(fields, cls)

    def is_union(annotation: object) -> bool:
        return annotation in (union, optional)

    converter.register_unstructure_hook_func(is_union, unstructure)
    converter.register_structure_hook_func(is_union, read)


@dataclasses.dataclass(frozen=True)
class _NoFields:
    """The fields of a solver of Diffrax in JSON."""


def _is_open(union: object) -> bool:
    """Whether a union has a protocol, which classes of users implement."""
    return any(_methods(member) for member in typing.get_args(union))


def _methods(annotation: object) -> tuple[str, ...]:
    """Return the methods that a protocol requires; empty for other annotations."""
    if not getattr(annotation, "_is_protocol", False):
        return ()
    return tuple(name for name, value in vars(annotation).items() if _is_required(name, value))


def _is_required(name: str, value: object) -> bool:
    return callable(value) and (name == "__call__" or not name.startswith("_"))


# Classes of users by qualified name. Configs in JSON contain objects of these classes and of
# fmjax's only, so that reading a run folder never imports or executes code.
_user_classes: dict[str, type] = {}


def register_classes(classes: Iterable[type]) -> None:
    """Let configs that are read from JSON contain objects of the classes of a user.

    Args:
        classes: Frozen dataclasses whose fields are JSON values or other dataclasses.

    Raises:
        ValueError: If a class is not a frozen dataclass, or has the name of a class of fmjax.
    """
    names = {member.__name__ for union in _UNIONS for member in typing.get_args(union)}
    names |= {cls.__name__ for _, table in _SOLVER_UNIONS for cls in table.values()}
    for cls in classes:
        name = cls.__qualname__
        params = getattr(cls, "__dataclass_params__", None)
        is_frozen = params is not None and params.frozen
        require(is_frozen, f"class {name}", "be a frozen dataclass", "another class")
        require(name not in names, f"class {name}", "have another name than fmjax's class", name)
        _user_classes[name] = cls


def user_classes(config: object) -> Iterator[type]:
    """Iterate over the classes in a config that are not of fmjax."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return
    if _is_of_diffrax(type(config)):
        return
    if not type(config).__module__.startswith("fmjax."):
        yield type(config)
    for field in dataclasses.fields(config):
        yield from user_classes(getattr(config, field.name))


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
    if _is_of_diffrax(type(config)):
        return
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if all(_is_checked(member) for member in members):
            _require_member(value, members, f"{name}.{field.name}")
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                require_types(value, f"{name}.{field.name}")


def _is_checked(annotation: object) -> bool:
    return (
        dataclasses.is_dataclass(annotation)
        or _is_enum(annotation)
        or annotation is types.NoneType
        or bool(_methods(annotation))
    )


def _require_member(value: object, members: Sequence[Any], name: str) -> None:
    """Raise unless a value has one of the types, or the methods of a protocol among them."""
    plain = [member for member in members if not _methods(member)]
    if isinstance(value, tuple(plain)):
        return
    names = " or ".join("None" if member is types.NoneType else member.__name__ for member in plain)
    protocols = [member for member in members if _methods(member)]
    if not protocols or isinstance(value, type) or not dataclasses.is_dataclass(value):
        names += "".join(
            f", or a frozen dataclass with the methods of {p.__name__}" for p in protocols
        )
        raise ValueError(f"{name} must be a {names}, got {value!r}")
    for method in _methods(protocols[0]):
        rule = f"have a method {method}, like every {protocols[0].__name__}"
        require(callable(getattr(value, method, None)), name, rule, f"class {type(value).__name__}")


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
