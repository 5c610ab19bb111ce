"""Reading JSON that others may have written: text to values, and values to checked types.

`parse_json` turns text into plain values, `check_json` turns plain values into dataclasses, named
tuples, typed dicts and collections of them, and `read_json` does both for a file. Every refusal is
a `ValueError` of one line: `<file> must hold <what> at <place>, got <value>`.
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
from cattrs.cols import list_structure_factory, mapping_structure_factory
from cattrs.cols import namedtuple_dict_structure_factory as make_namedtuple_hook
from cattrs.gen import make_dict_structure_fn as make_dataclass_hook
from cattrs.gen.typeddicts import make_dict_structure_fn as make_typed_dict_hook

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]

MAX_DEPTH = 100
"""Levels of nested arrays and objects in a document."""
MAX_BYTES = 2**28
"""Size of a file."""
_MAX_DIGITS = 1_000  # Of an integer. Tokenizers state "no limit" as 10**30.
_MAX_ERRORS = 4  # Named in one message.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"?')
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Rule(NamedTuple):
    """A rule that `Annotated[kind, Rule(...)]` adds to a type.

    Attributes:
        what: What the value must be, in words.
        holds: Whether a value of the type is so.
    """

    what: str
    holds: Callable[[Any], bool]


def one_of(*values: str) -> Rule:
    """The rule of a string that is one of some."""
    return Rule(f"one of {', '.join(values)}", lambda value: value in values)


def require_lengths(name: str, **lists: Sized) -> None:
    """Raise unless lists of a document, by their names, are of one length."""
    lengths = [len(items) for items in lists.values()]
    if len(set(lengths)) > 1:
        wanted, got = " and ".join(lists), " and ".join(map(str, lengths))
        raise ValueError(f"{name} must hold {wanted} of one length, got {got}")


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
"""A float that may be infinite or NaN, in JSON also as the strings "inf", "-inf" and "nan"."""


class Mismatch(ValueError):
    """A value of another kind than its place holds."""

    def __init__(self, what: str, value: Any) -> None:
        self.what, self.got = what, shown(value)
        super().__init__(f"must be {what}, got {self.got}")


def parse_json(text: str | bytes, name: str, *, nonfinite: bool = False) -> Any:
    """The values of a JSON document.

    Args:
        text: The document; bytes are UTF-8, with or without a byte order mark.
        name: What the message calls it.
        nonfinite: Whether `NaN`, `Infinity` and `-Infinity` are numbers.

    Raises:
        ValueError: If it is no JSON, is nested deeper than `MAX_DEPTH`, repeats a key in an
            object, or holds a number that no float64 and no integer of 1,000 digits can hold.
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
        if _SURROGATE.search(text):  # Half a character, which no file and no terminal takes.
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise ValueError(f"{name} must be UTF-8 text, got {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} must be JSON, got {error}") from error
    except ValueError as error:
        raise ValueError(f"{name} must be JSON {error}") from error
    return value


def _check_depth(text: str) -> None:
    """Count brackets outside strings: `json.loads` ends in a RecursionError or deeper trouble."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"of at most {MAX_DEPTH} nested levels, got more")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"with each key once, got {shown(repeated)} twice")
    return found


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


def shown(value: Any) -> str:
    """A JSON value in a message: short, and on one line."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}..."


def read_json(
    path: Path, kind: Callable[..., T], *, nonfinite: bool = False, extra: bool = False
) -> T:
    """The document in a file, as a value of type `kind`.

    Args:
        path: The file.
        kind: The type, as for `check_json`.
        nonfinite: As for `parse_json`.
        extra: As for `check_json`.

    Raises:
        ValueError: If the file is missing or too large, or as `parse_json` and `check_json`.
    """
    value = parse_json(_bytes_of(path), str(path), nonfinite=nonfinite)
    return check_json(value, kind, str(path), extra=extra)


def _bytes_of(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path.parent} must hold {path.name}, got no such file")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} must hold at most {MAX_BYTES:,} bytes of JSON, got {size:,}")
    return path.read_bytes()


def check_json(value: Any, kind: Callable[..., T], name: str, *, extra: bool = False) -> T:
    """A parsed document as a value of type `kind`.

    Types are strict: a string is no number, a bool is no integer, a float must be finite (but for
    `AnyFloat`), an integer must fit 64 bits.

    Args:
        value: From `parse_json`.
        kind: A dataclass, a `NamedTuple`, a `TypedDict`, `dict[str, ...]`, `list[...]` or
            `tuple[...]`, of these, of str, int, float, bool, `Literal`, enums, unions and `Any`.
            `Annotated[..., Rule(...)]` narrows a type.
        name: What the message calls the document.
        extra: Whether objects may hold keys that their type does not have.

    Raises:
        ValueError: If it is of another type; the message names each place, up to four.
    """
    return structure(_CONVERTERS[extra], value, kind, name)


def structure(converter: cattrs.Converter, value: Any, kind: Callable[..., T], name: str) -> T:
    """`check_json` with a converter from `make_converter`, to which hooks may have been added."""
    try:
        return converter.structure(value, typing.cast("type[T]", kind))
    except cattrs.BaseValidationError as error:
        lines = cattrs.transform_error(error, path="", format_exception=_in_words)
        first = "; ".join(_placed(line) for line in lines[:_MAX_ERRORS])
        more = f"; and {len(lines) - _MAX_ERRORS} more" if len(lines) > _MAX_ERRORS else ""
        raise ValueError(f"{name} {first}{more}") from error
    except ValueError as error:
        raise ValueError(f"{name} {_in_words(error, None).format('')}") from error


def _in_words(error: BaseException, _: object) -> str:
    """A refusal with `{}` for the place."""
    if isinstance(error, Mismatch):
        return _braces(f"must hold {error.what}") + "{}" + _braces(f", got {error.got}")
    if isinstance(error, KeyError):
        return "must hold a value{}, got none"
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        names = ", ".join(shown(name) for name in sorted(error.extra_fields)[:_MAX_ERRORS])
        return "must hold known keys alone{}, got " + _braces(names)
    # What a type itself refuses says which of its fields that is.
    return _braces(f"must be valid, got {error}")


def _braces(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _placed(line: str) -> str:
    words, _, place = line.rpartition(" @ ")
    place = place.lstrip(".")
    return words.format(f" at {place}" if place else "")


def plain_json(value: Any) -> Any:
    """A value for `json.dumps`: infinity and NaN, which JSON lacks, as `AnyFloat` reads them."""
    if isinstance(value, Mapping):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def make_converter(*, extra: bool = False) -> cattrs.Converter:
    """A cattrs converter that takes no value for one of another type.

    Args:
        extra: As for `check_json`.
    """
    converter = cattrs.Converter(forbid_extra_keys=not extra)
    for kind, hook in _PRIMITIVES.items():
        converter.register_structure_hook(kind, partial(_unless_enum, hook))
    converter.register_structure_hook(Enum, _enum_hook)
    factories: Mapping[Callable[[Any], bool], Callable[..., Hook]] = {
        _is(Mapping, dict): _mapping_hook,
        _is(list, Sequence): _list_hook,
        lambda kind: typing.get_origin(kind) is tuple: _tuple_hook,
        _is_union: _union_hook,
        lambda kind: typing.get_origin(kind) is typing.Literal: _literal_hook,
        lambda kind: isinstance(kind, type) and is_dataclass(kind): _object_hook,
        lambda kind: isinstance(kind, type) and hasattr(kind, "_field_defaults"): _object_hook,
        typing.is_typeddict: _object_hook,
        lambda kind: typing.get_origin(kind) is Annotated: _annotated_hook,
    }
    for predicate, factory in factories.items():
        converter.register_structure_hook_factory(predicate)(factory)
    return converter


def _is(*origins: type) -> Callable[[Any], bool]:
    return lambda kind: typing.get_origin(kind) in origins


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _primitive(kind: type, what: str) -> Hook:
    def hook(value: Any, _: Any) -> Any:
        if type(value) is not kind:
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


def _any_float_hook(value: Any, kind: Any) -> float:
    if value in ("inf", "-inf", "nan") or (type(value) is float and not math.isfinite(value)):
        return float(value)
    return _float_hook(value, kind)


_PRIMITIVES: Mapping[Any, Hook] = {
    bool: _primitive(bool, "true or false"),
    str: _primitive(str, "a string"),
    type(None): _primitive(type(None), "null"),
    int: _int_hook,
    float: _float_hook,
}


def _only(kind: type, what: str, inner: Hook) -> Hook:
    """`inner` for values of one type."""

    def hook(value: Any, to: Any) -> Any:
        if not isinstance(value, kind):
            raise Mismatch(what, value)
        return inner(value, to)

    return hook


def _list_hook(kind: Any, converter: cattrs.Converter) -> Hook:
    return _only(list, "a list", list_structure_factory(kind, converter))


def _mapping_hook(kind: Any, converter: cattrs.Converter) -> Hook:
    arguments = typing.get_args(kind)
    assert arguments[0] is str, "keys of JSON are strings"
    return _only(
        dict, "an object", mapping_structure_factory(typing.cast(Any, dict)[arguments], converter)
    )


def _tuple_hook(kind: Any, converter: cattrs.Converter) -> Hook:
    arguments = typing.get_args(kind)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        items = converter.get_structure_hook(list[arguments[0]])
        return lambda value, _: tuple(items(value, list[arguments[0]]))
    # A tuple of a fixed length: each element has its type.
    hooks = [converter.get_structure_hook(argument) for argument in arguments]

    def hook(value: Any, _: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) != len(arguments):
            raise Mismatch(f"a list of {len(arguments)} values", value)
        return tuple(each(item, to) for each, item, to in zip(hooks, value, arguments, strict=True))

    return hook


def _union_hook(kind: Any, converter: cattrs.Converter) -> Hook:
    """The first member that takes the value."""
    members = typing.get_args(kind)
    rest = [member for member in members if member is not type(None)]
    if len(rest) < len(members):  # Errors are those of the one type that it is besides null.
        some = reduce(operator.or_, rest)
        inner = converter.get_structure_hook(some)
        return lambda value, _: None if value is None else inner(value, some)
    hooks = [(converter.get_structure_hook(member), member) for member in rest]

    def hook(value: Any, _: Any) -> Any:
        wanted = []
        for inner, member in hooks:
            try:
                return inner(value, member)
            except Mismatch as error:
                wanted.append(error.what)
            except cattrs.BaseValidationError:
                wanted.append(f"a valid {getattr(member, '__name__', 'value')}")
        raise Mismatch(" or ".join(dict.fromkeys(wanted)), value)

    return hook


def _literal_hook(kind: Any, _: cattrs.Converter) -> Hook:
    values = typing.get_args(kind)

    def hook(value: Any, _: Any) -> Any:
        if not any(type(value) is type(each) and value == each for each in values):
            raise Mismatch(f"one of {', '.join(map(str, values))}", value)
        return value

    return hook


def _unless_enum(hook: Hook, value: Any, kind: Any) -> Any:
    """A hook of a class is that of its subclasses: an enum of texts is one of str."""
    return _enum_hook(value, kind) if issubclass(kind, Enum) else hook(value, kind)


def _enum_hook(value: Any, kind: Any) -> Any:
    values = {each.value: each for each in kind}
    if not isinstance(value, str | int) or value not in values:
        raise Mismatch(f"one of {', '.join(map(str, values))}", value)
    return values[value]


def _object_hook(kind: Any, converter: cattrs.Converter) -> Hook:
    inner: Hook
    if is_dataclass(kind):
        inner = make_dataclass_hook(typing.cast("type", kind), converter)
    elif typing.is_typeddict(kind):
        inner = make_typed_dict_hook(kind, converter)
    else:
        forbid = converter.forbid_extra_keys
        inner = make_namedtuple_hook(kind, converter, "from_converter", forbid)
    return _only(dict, "an object", inner)


def _annotated_hook(kind: Any, converter: cattrs.Converter) -> Hook:
    base, *notes = typing.get_args(kind)
    rules = [note for note in notes if isinstance(note, Rule)]
    inner = _any_float_hook if _MAY_BE_INFINITE in notes else converter.get_structure_hook(base)

    def hook(value: Any, _: Any) -> Any:
        found = inner(value, base)
        for rule in rules:
            if not rule.holds(found):
                raise Mismatch(rule.what, value)
        return found

    return hook


_CONVERTERS = {extra: make_converter(extra=extra) for extra in (False, True)}
