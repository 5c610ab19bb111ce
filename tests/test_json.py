"""Tests that invalid JSON documents raise one-line errors that name the position."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import pytest

from fmjax._json import AnyFloat, Count, Rule, check_json, parse_json, plain_json, read_json


class Color(StrEnum):
    RED = "red"


class Row(NamedTuple):
    nfe: float
    error: AnyFloat | None
    times: tuple[float, ...] = ()
    pair: tuple[float, float] = (0.0, 0.0)
    metrics: Mapping[str, float] = {}


class Section(TypedDict):
    size: Count
    names: NotRequired[list[str]]


@dataclass(frozen=True)
class Document:
    rows: tuple[Row, ...]
    section: Section
    setting: int | str | None = None
    family: Literal["fixed", "adaptive"] = "fixed"
    color: Color = Color.RED
    fraction: Annotated[float, Rule("a fraction", lambda value: 0 <= value <= 1)] = 1.0
    flag: bool = False
    extra: Any = None

    def __post_init__(self):
        if self.setting == 13:
            raise ValueError("setting must not be 13, got 13")


VALID: dict[str, Any] = {
    "rows": [{"nfe": 4, "error": "inf", "times": [0, 0.5], "pair": [1, 2], "metrics": {"a": 1}}],
    "section": {"size": 3, "names": ["x"]},
    "setting": "x",
    "family": "adaptive",
    "color": "red",
    "fraction": 0.5,
    "flag": True,
    "extra": [{}],
}


def test_values_are_converted_to_annotated_types():
    result = check_json(VALID, Document, "F")
    assert result == Document(
        rows=(Row(4.0, math.inf, (0.0, 0.5), (1.0, 2.0), {"a": 1.0}),),
        section={"size": 3, "names": ["x"]},
        setting="x",
        family="adaptive",
        color=Color.RED,
        fraction=0.5,
        flag=True,
        extra=[{}],
    )
    assert type(result.rows[0].nfe) is float
    assert check_json({"rows": [], "section": {"size": 0}}, Document, "F").setting is None


INVALID = [
    ({"rows": "abc"}, "F must hold a list at rows, got 'abc'"),
    ({"rows": {"0": 1}}, "a list at rows, got an object"),
    ({"rows": [[1, 2]]}, r"an object at rows\[0\], got a list"),
    ({"rows": [{"nfe": "4", "error": None}]}, r"a number at rows\[0\].nfe, got '4'"),
    ({"rows": [{"nfe": True, "error": None}]}, r"number at rows\[0\].nfe, got true"),
    ({"rows": [{"nfe": 10**400, "error": None}]}, r"a finite number at rows\[0\].nfe, got 1000"),
    ({"rows": [{"nfe": math.nan, "error": None}]}, r"a finite number at rows\[0\].nfe, got nan"),
    ({"rows": [{"nfe": 4, "error": "infinite"}]}, r"a number at rows\[0\].error, got 'infinite'"),
    ({"rows": [{"nfe": 4}]}, r"a value at rows\[0\].error, got none"),
    (
        {"rows": [{"nfe": 4, "error": 1, "unknown": 1}]},
        r"only known keys at rows\[0\], got 'unknown'",
    ),
    ({"rows": [{"nfe": 4, "error": 1, "times": 1}]}, r"a list at rows\[0\].times, got 1"),
    ({"rows": [{"nfe": 4, "error": 1, "times": [1, "x"]}]}, r"rows\[0\].times\[1\], got 'x'"),
    ({"rows": [{"nfe": 4, "error": 1, "pair": [1]}]}, r"a list of 2 values at rows\[0\].pair"),
    ({"rows": [{"nfe": 4, "error": 1, "metrics": {"{a}": []}}]}, r"rows\[0\].metrics\['{a}'\]"),
    ({"section": []}, "an object at section, got an empty list"),
    ({"section": {"size": -1}}, "an integer of at least 0 at section.size, got -1"),
    ({"section": {"size": 1.0}}, r"an integer at section.size, got 1\.0"),
    (
        {"section": {"size": 2**63}},
        "an integer of 64 bits at section.size, got 9223372036854775808",
    ),
    ({"section": {"size": 1, "names": "abc"}}, "a list at section.names, got 'abc'"),
    ({"section": {"size": 1, "names": [None]}}, r"a string at section.names\[0\], got null"),
    ({"setting": 1.5}, r"an integer or a string at setting, got 1\.5"),
    ({"setting": 13}, "F must be valid, got setting must not be 13, got 13"),
    ({"family": "both"}, "one of fixed, adaptive at family, got 'both'"),
    ({"family": ["fixed"]}, "one of fixed, adaptive at family, got a list"),
    ({"color": "blue"}, "one of red at color, got 'blue'"),
    ({"color": {}}, "one of red at color, got an object"),
    ({"fraction": 2}, "a fraction at fraction, got 2"),
    ({"flag": 1}, "true or false at flag, got 1"),
]


@pytest.mark.parametrize(("change", "message"), INVALID)
def test_values_of_wrong_type_are_rejected_with_their_position(change, message):
    with pytest.raises(ValueError, match=message) as error:
        check_json(VALID | change, Document, "F")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [[], None, "x", 1, True])
def test_documents_of_wrong_type_are_rejected(value):
    with pytest.raises(ValueError, match="F must hold an object, got "):
        check_json(value, Document, "F")


def test_unknown_keys_are_ignored_with_extra():
    document = VALID | {"unknown": 1, "section": {"size": 1, "unknown": [1]}}
    result = check_json(document, Document, "F", extra=True)
    assert result.section["size"] == 1
    with pytest.raises(ValueError, match="only known keys"):
        check_json(document, Document, "F")


TEXTS = [
    ("[" * 100_000, "JSON of at most 100 nested levels"),
    ('{"a":' * 100_000 + "1" + "}" * 100_000, "JSON of at most 100 nested levels"),
    ("1e400", "JSON with numbers up to 1.8e308, got 1e400"),
    ("-1e400", "JSON with numbers up to 1.8e308, got -1e400"),
    ("NaN", "JSON with finite numbers, got NaN"),
    ("[-Infinity]", "JSON with finite numbers, got -Infinity"),
    ("9" * 100_000, "JSON with integers of at most 1000 digits, got 100000"),
    ('{"a": 1, "a": 1}', "JSON with each key once, got 'a' twice"),
    (b"\xff\xfe", "UTF-8 text, got"),
    ('"\\ud800"', "UTF-8 text, got"),
    (b"\x00\x01", "JSON, got Expecting value"),
    ("", "JSON, got Expecting value"),
    ('{"a": [1, 2', "JSON, got Expecting ',' delimiter"),
]


@pytest.mark.parametrize(("text", "message"), TEXTS, ids=[message for _, message in TEXTS])
def test_invalid_json_text_is_rejected(text, message):
    with pytest.raises(ValueError, match=f"F must be {message}") as error:
        parse_json(text, "F")
    assert len(str(error.value)) < 200


def test_valid_json_text_is_parsed():
    assert parse_json(b'\xef\xbb\xbf{"a": 1}', "F") == {"a": 1}  # A byte order mark.
    assert parse_json('"\\ud83d\\ude00"', "F") == "😀"
    assert parse_json(json.dumps("[" * 1000 + '"{'), "F") == "[" * 1000 + '"{'
    assert parse_json("[" * 100 + "]" * 100, "F")
    assert parse_json("1000000000000000019884624838656", "F") == 1000000000000000019884624838656
    assert math.isnan(parse_json("NaN", "F", nonfinite=True))


def test_nonfinite_numbers_are_written_as_strings_and_read_back():
    row = Row(1.0, -math.inf, (0.25,), (1.0, 2.0), {"a": 1.0})
    text = json.dumps(plain_json(row._asdict()), allow_nan=False)
    assert check_json(parse_json(text, "F"), Row, "F") == row
    old = json.dumps(row._asdict())
    assert check_json(parse_json(old, "F", nonfinite=True), Row, "F") == row


def test_files_are_read_or_named_in_the_error(tmp_path):
    file = tmp_path / "d.json"
    with pytest.raises(ValueError, match=r"must hold d\.json, got no such file"):
        read_json(file, Document)
    file.write_text(json.dumps(VALID))
    assert read_json(file, Document) == check_json(VALID, Document, "F")
    with file.open("wb") as stream:
        stream.truncate(2**28 + 1)
    with pytest.raises(ValueError, match=r"d\.json must hold at most 268,435,456 bytes of JSON"):
        read_json(file, Document)
