"""Read and check JSON files, which may come from other programs.

`parse_json` turns text into plain values, `check_json` turns plain values into dataclasses, named
tuples, typed dicts and collections of them, and `read_json` does both for a file. Every error is a
`ValueError` of one line: `<file> must hold <type> at <place>, got <value>`.
"""

import json
import math
import operator
import re
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import is_dataclass
from enum import Enum
from functools import partial, reduce
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import cattrs
from cattrs.cols import (
    list_structure_factory,
    mapping_structure_factory,
    namedtuple_dict_structure_factory as make_namedtuple_hook,
)
from cattrs.gen import make_dict_structure_fn as make_dataclass_hook
from cattrs.gen.typeddicts import make_dict_structure_fn as make_typed_dict_hook

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]

MAX_DEPTH = 100
"""Maximum nesting depth of a document."""
MAX_BYTES = 2**28
"""Maximum size of a file in bytes."""
_MAX_DIGITS = 1_000  # Digits of an integer. Tokenizers write "no limit" as 10**30.
_MAX_ERRORS = 4  # Errors listed in one message.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"?')
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Rule(NamedTuple):
    """A condition on values, added to a type with `Annotated[type, Rule(...)]`.

    Attributes:
        what: Description of valid values, such as "a number in [0, 1]".
        holds: Returns whether a value of the type is valid.
    """

    what: str
    holds: Callable[[Any], bool]


def one_of(*values: str) -> Rule:
    """Return the rule that a string is one of `values`."""
    return Rule(f"one of {', '.join(values)}", lambda value: value in values)


def require_lengths(name: str, **lists: Sized) -> None:
    """Raise unless lists of a document, passed by name, have equal length."""
    lengths = [len(items) for items in lists.values()]
    if len(set(lengths)) > 1:
        names, got = " and ".join(lists), " and ".join(map(str, lengths))
        raise ValueError(f"{name} must hold {names} of equal length, got {got}")


Count = Annotated[int, Rule("an integer of at least 0", lambda value: value >= 0)]
Size = Annotated[int, Rule("an integer from 1 to 2**31 - 1", lambda value: 0 < value < 2**31)]
EventShape = Annotated[
    tuple[Size, ...],
    Rule("sizes with a product below 2**31", lambda sizes: sizes and math.prod(sizes) < 2**31),
]
Share = Annotated[float, Rule("a number in [0, 1]", lambda value: 0 <= value <= 1)]
Positive = Annotated[float, Rule("a number above 0", lambda value: value > 0)]
NonNegative = Annotated[float, Rule("a number of at least 0", lambda value: value >= 0)]
_MAY_BE_INFINITE = "may be infinite or NaN"
AnyFloat = Annotated[float, _MAY_BE_INFINITE]
"""A float that may be infinite or NaN; JSON may write it as "inf", "-inf" or "nan"."""


class Mismatch(ValueError):
    """A JSON value that does not have the type of its place."""

    def __init__(self, what: str, value: Any) -> None:
        self.what, self.got = what, format_value(value)
        super().__init__(f"must be {what}, got {self.got}")


def parse_json(text: str | bytes, name: str, *, nonfinite: bool = False) -> Any:
    """Parse a JSON document to plain Python values.

    Args:
        text: The document; bytes are UTF-8, with or without a byte order mark.
        name: Name of the document in error messages.
        nonfinite: Whether `NaN`, `Infinity` and `-Infinity` are accepted as numbers.

    Raises:
        ValueError: If the text is not JSON, is nested deeper than `MAX_DEPTH`, repeats a key in an
            object, or holds a float beyond float64 or an integer of more than 1,000 digits.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        text = text.removeprefix("\ufeff")
        _check_depth(text)
        value = json.loads(
            text,
            object_pairs_hook=_without_repeats,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=float if nonfinite else _no_constant,
        )
        if _SURROGATE.search(text):  # A lone surrogate cannot be encoded as UTF-8.
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise ValueError(f"{name} must be UTF-8 text, got {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} must be JSON, got {error}") from error
    except ValueError as error:
        raise ValueError(f"{name} must be JSON {error}") from error
    return value


def _check_depth(text: str) -> None:
    """Raise if brackets outside strings nest too deep, which would crash `json.loads`."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"of at most {MAX_DEPTH} nested levels, got more")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"with each key once, got {format_value(repeated)} twice")
    return result


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"with integers of at most {_MAX_DIGITS} digits, got {len(digits)}")
    return int(digits)


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"with numbers up to 1.8e308, got {digits[:40]}")
    return number


def _no_constant(word: str) -> float:
    raise ValueError(f"with finite numbers, got {word}")


def format_value(value: Any) -> str:
    """Format a JSON value for a message, short and on one line."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}..."


def read_json(
    file: Path, target: Callable[..., T], *, nonfinite: bool = False, extra: bool = False
) -> T:
    """Read a JSON file as a value of type `target`.

    Args:
        file: The file.
        target: Type of the document; see `check_json`.
        nonfinite: Whether `NaN`, `Infinity` and `-Infinity` are accepted as numbers.
        extra: Whether objects may have unknown keys.

    Raises:
        ValueError: If the file is missing or too large, is not JSON (see `parse_json`), or has
            another type (see `check_json`).
    """
    value = parse_json(_read_bytes(file), str(file), nonfinite=nonfinite)
    return check_json(value, target, str(file), extra=extra)


def _read_bytes(file: Path) -> bytes:
    if not file.is_file():
        raise ValueError(f"{file.parent} must hold {file.name}, got no such file")
    if (size := file.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{file} must hold at most {MAX_BYTES:,} bytes of JSON, got {size:,}")
    return file.read_bytes()


def check_json(value: Any, target: Callable[..., T], name: str, *, extra: bool = False) -> T:
    """Convert a parsed document to a value of type `target`.

    Types are strict: strings are not converted to numbers, nor bools to integers. Floats must be
    finite, except `AnyFloat`, and integers must fit 64 bits.

    Args:
        value: Result of `parse_json`.
        target: A dataclass, `NamedTuple`, `TypedDict`, `dict[str, ...]`, `list[...]` or
            `tuple[...]`, whose items are such types, str, int, float, bool, `Literal`, enums,
            unions or `Any`. `Annotated[..., Rule(...)]` adds a condition to a type.
        name: Name of the document in error messages.
        extra: Whether objects may have unknown keys.

    Raises:
        ValueError: If the value has another type. The message lists up to four errors with their
            place in the document.
    """
    return structure(_CONVERTERS[extra], value, target, name)


def structure(converter: cattrs.Converter, value: Any, target: Callable[..., T], name: str) -> T:
    """Convert parsed JSON to a checked type, with a converter from `make_converter`."""
    try:
        return converter.structure(value, typing.cast("type[T]", target))
    except cattrs.BaseValidationError as error:
        lines = cattrs.transform_error(error, path="", format_exception=_error_template)
        shown_errors = "; ".join(_insert_place(line) for line in lines[:_MAX_ERRORS])
        suffix = f"; and {len(lines) - _MAX_ERRORS} more" if len(lines) > _MAX_ERRORS else ""
        raise ValueError(f"{name} {shown_errors}{suffix}") from error
    except ValueError as error:
        raise ValueError(f"{name} {_error_template(error, None).format('')}") from error


def _error_template(error: BaseException, _: object) -> str:
    """Return the message of an error as a format string, with `{}` for the place."""
    if isinstance(error, Mismatch):
        return _escape(f"must hold {error.what}") + "{}" + _escape(f", got {error.got}")
    if isinstance(error, KeyError):
        return "must hold a value{}, got none"
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        names = ", ".join(format_value(name) for name in sorted(error.extra_fields)[:_MAX_ERRORS])
        return "must hold only known keys{}, got " + _escape(names)
    # An error raised by the type itself names the invalid field.
    return _escape(f"must be valid, got {error}")


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _insert_place(line: str) -> str:
    """Insert the place, which cattrs appends after " @ ", into an error template."""
    template, _, place = line.rpartition(" @ ")
    place = place.lstrip(".")
    return template.format(f" at {place}" if place else "")


def plain_json(value: Any) -> Any:
    """Replace infinity and NaN, which JSON lacks, by the strings that `AnyFloat` reads."""
    if isinstance(value, Mapping):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def make_converter(*, extra: bool = False) -> cattrs.Converter:
    """Create a strict cattrs converter, which does not convert between types.

    Args:
        extra: Whether objects may have unknown keys.
    """
    converter = cattrs.Converter(forbid_extra_keys=not extra)
    for target, hook in _PRIMITIVES.items():
        converter.register_structure_hook(target, partial(_unless_enum, hook))
    converter.register_structure_hook(Enum, _enum_hook)
    factories: Mapping[Callable[[Any], bool], Callable[..., Hook]] = {
        _is(Mapping, dict): _mapping_hook,
        _is(list, Sequence): _list_hook,
        lambda cls: typing.get_origin(cls) is tuple: _tuple_hook,
        _is_union: _union_hook,
        lambda cls: typing.get_origin(cls) is typing.Literal: _literal_hook,
        lambda cls: isinstance(cls, type) and is_dataclass(cls): _object_hook,
        lambda cls: isinstance(cls, type) and hasattr(cls, "_field_defaults"): _object_hook,
        typing.is_typeddict: _object_hook,
        lambda cls: typing.get_origin(cls) is Annotated: _annotated_hook,
    }
    for predicate, factory in factories.items():
        converter.register_structure_hook_factory(predicate)(factory)
    return converter


def _is(*origins: type) -> Callable[[Any], bool]:
    return lambda target: typing.get_origin(target) in origins


def _is_union(target: Any) -> bool:
    return typing.get_origin(target) in (typing.Union, types.UnionType)


def _primitive(target: type, what: str) -> Hook:
    def hook(value: Any, _: Any) -> Any:
        if type(value) is not target:
            raise Mismatch(what, value)
        return value

    return hook


def _int_hook(value: Any, _: Any) -> int:
    if type(value) is not int:
        raise Mismatch("an integer", value)
    if not -(2**63) <= value < 2**63:
        raise Mismatch("an integer of 64 bits", value)
    return value


def _float_hook(value: Any, _: Any) -> float:
    if type(value) not in (int, float) or abs(value) > 1.7e308 or value != value:
        raise Mismatch("a finite number" if isinstance(value, int | float) else "a number", value)
    return float(value)


def _any_float_hook(value: Any, target: Any) -> float:
    if value in ("inf", "-inf", "nan") or (type(value) is float and not math.isfinite(value)):
        return float(value)
    return _float_hook(value, target)


_PRIMITIVES: Mapping[Any, Hook] = {
    bool: _primitive(bool, "true or false"),
    str: _primitive(str, "a string"),
    type(None): _primitive(type(None), "null"),
    int: _int_hook,
    float: _float_hook,
}


def _only(target: type, what: str, inner: Hook) -> Hook:
    """Wrap a hook so that it raises `Mismatch` for values that are not a `target`."""

    def hook(value: Any, to: Any) -> Any:
        if not isinstance(value, target):
            raise Mismatch(what, value)
        return inner(value, to)

    return hook


def _list_hook(target: Any, converter: cattrs.Converter) -> Hook:
    return _only(list, "a list", list_structure_factory(target, converter))


def _mapping_hook(target: Any, converter: cattrs.Converter) -> Hook:
    arguments = typing.get_args(target)
    assert arguments[0] is str, "keys of JSON are strings"
    return _only(
        dict, "an object", mapping_structure_factory(typing.cast(Any, dict)[arguments], converter)
    )


def _tuple_hook(target: Any, converter: cattrs.Converter) -> Hook:
    arguments = typing.get_args(target)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        items = converter.get_structure_hook(list[arguments[0]])
        return lambda value, _: tuple(items(value, list[arguments[0]]))
    # A tuple of a fixed length has one type per element.
    hooks = [converter.get_structure_hook(argument) for argument in arguments]

    def hook(value: Any, _: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) != len(arguments):
            raise Mismatch(f"a list of {len(arguments)} values", value)
        return tuple(
            item_hook(item, to) for item_hook, item, to in zip(hooks, value, arguments, strict=True)
        )

    return hook


def _union_hook(target: Any, converter: cattrs.Converter) -> Hook:
    """Return a hook that uses the first member of a union that accepts the value."""
    members = typing.get_args(target)
    not_null = [member for member in members if member is not type(None)]
    if len(not_null) < len(members):  # Error messages then name only the types other than null.
        optional = reduce(operator.or_, not_null)
        inner = converter.get_structure_hook(optional)
        return lambda value, _: None if value is None else inner(value, optional)
    hooks = [(converter.get_structure_hook(member), member) for member in not_null]

    def hook(value: Any, _: Any) -> Any:
        expected = []
        for inner, member in hooks:
            try:
                return inner(value, member)
            except Mismatch as error:
                expected.append(error.what)
            except cattrs.BaseValidationError:
                expected.append(f"a valid {getattr(member, '__name__', 'value')}")
        raise Mismatch(" or ".join(dict.fromkeys(expected)), value)

    return hook


def _literal_hook(target: Any, _: cattrs.Converter) -> Hook:
    values = typing.get_args(target)

    def hook(value: Any, _: Any) -> Any:
        if not any(type(value) is type(item) and value == item for item in values):
            raise Mismatch(f"one of {', '.join(map(str, values))}", value)
        return value

    return hook


def _unless_enum(hook: Hook, value: Any, target: Any) -> Any:
    """Use the enum hook for enums, because cattrs applies the hook of str to string enums."""
    return _enum_hook(value, target) if issubclass(target, Enum) else hook(value, target)


def _enum_hook(value: Any, target: Any) -> Any:
    values = {member.value: member for member in target}
    if not isinstance(value, str | int) or value not in values:
        raise Mismatch(f"one of {', '.join(map(str, values))}", value)
    return values[value]


def _object_hook(target: Any, converter: cattrs.Converter) -> Hook:
    inner: Hook
    if is_dataclass(target):
        inner = make_dataclass_hook(typing.cast("type", target), converter)
    elif typing.is_typeddict(target):
        inner = make_typed_dict_hook(target, converter)
    else:
        forbid = converter.forbid_extra_keys
        inner = make_namedtuple_hook(target, converter, "from_converter", forbid)
    return _only(dict, "an object", inner)


def _annotated_hook(target: Any, converter: cattrs.Converter) -> Hook:
    base, *metadata = typing.get_args(target)
    rules = [item for item in metadata if isinstance(item, Rule)]
    inner = _any_float_hook if _MAY_BE_INFINITE in metadata else converter.get_structure_hook(base)

    def hook(value: Any, _: Any) -> Any:
        result = inner(value, base)
        for rule in rules:
            if not rule.holds(result):
                raise Mismatch(rule.what, value)
        return result

    return hook


_CONVERTERS = {extra: make_converter(extra=extra) for extra in (False, True)}
