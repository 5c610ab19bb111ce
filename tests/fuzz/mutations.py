"""Damage files at random: values in JSON, lines, bytes, and headers of .npy files."""

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

INVALID_CONTENTS = (
    b"[]",
    b"null",
    b"{}",
    b'""',
    b'"x"',
    b"-1",
    b"1e400",
    b"true",
    b"",
    b"\0\0\0\0",
    b"\xff\xfe{",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"[1, 2",
    b"NaN",
    b"{'a': 1}",
    b"\xef\xbb\xbf[]",
    b"\n",
    b"9" * 5_000,
)
"""Invalid contents that replace an entire file."""

WRONG_VALUES = (
    None,
    [],
    {},
    "x",
    "",
    -1,
    0,
    2**63,
    2**1024,
    1e308,
    True,
    [[[]]],
    {"x": None},
    "1",
    "nan",
    [None],
    -(2**70),
    1.5,
    "\ud800",
    "../../etc",
    {"_type": "x"},
    [1, "a"],
)
"""JSON values that replace a value of another type or range."""

RAW_VALUES = ("1e400", "-1e400", "NaN", "Infinity", "9" * 4_400, "[" * 2_000 + "]" * 2_000)
"""JSON texts that `json.dumps` cannot write."""

_PLACEHOLDER = "@@RAW@@"


def invalid_content(rng: Random) -> bytes:
    """Return file content that is not JSON or is JSON of the wrong structure."""
    return rng.choice(INVALID_CONTENTS)


def key_paths(value: Any, prefix: tuple = ()) -> list[tuple]:
    """Return the key paths of all values in a JSON value."""
    paths = [prefix] if prefix else []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value[:20]))
    else:
        return paths
    return paths + [path for key, item in items for path in key_paths(item, (*prefix, key))]


def damaged_json(rng: Random, value: Any, num_changes: int = 1) -> tuple[str, str]:
    """Replace, remove or rename some values; return the JSON text and a description."""
    value, changes, raw_texts = copy.deepcopy(value), [], []
    for _ in range(num_changes):
        paths = key_paths(value)
        if not paths:
            break
        *parents, last = rng.choice(paths)
        container = value
        for key in parents:
            container = container[key]
        action = rng.randrange(6)
        name = ".".join(map(str, (*parents, last)))
        if action == 0:
            del container[last]
            changes.append(f"without {name}")
        elif action == 1 and isinstance(container, dict):
            container[f"{last}_"] = container.pop(last)
            changes.append(f"{name} renamed")
        elif action == 2:
            raw_texts.append(rng.choice(RAW_VALUES))
            container[last] = _PLACEHOLDER
            changes.append(f"{name} = {raw_texts[-1][:8]}")
        else:
            container[last] = copy.deepcopy(rng.choice(WRONG_VALUES))
            changes.append(f"{name} = {ascii(container[last])[:20]}")
    text = json.dumps(value)
    for raw_text in raw_texts:
        text = text.replace(f'"{_PLACEHOLDER}"', raw_text, 1)
    return text.replace(f'"{_PLACEHOLDER}"', "null"), ", ".join(changes)


def damage_json(rng: Random, file: Path) -> str:
    """Damage a JSON file in place; return a description of the damage."""
    if rng.random() < 0.35:
        content = invalid_content(rng)
        file.write_bytes(content)
        return f"{file.name} = {content[:8]!r}"
    value = json.loads(file.read_text(encoding="utf-8"))
    text, changes = damaged_json(rng, value, rng.choice((1, 1, 2)))
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    return f"{file.name}: {changes}"


def damage_lines(rng: Random, file: Path) -> str:
    """Damage one line of a JSON Lines file, or replace the entire content."""
    lines = file.read_text(encoding="utf-8").splitlines()
    if rng.random() < 0.3 or not lines:
        content = invalid_content(rng)
        file.write_bytes(content)
        return f"{file.name} = {content[:8]!r}"
    number = rng.randrange(len(lines))
    if rng.random() < 0.5:
        line, changes = damaged_json(rng, json.loads(lines[number]))
    else:
        line = invalid_content(rng).decode("utf-8", "replace").replace("\n", "")
        changes = repr(line[:8])
    lines[number] = line
    file.write_bytes(("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))
    return f"{file.name} line {number}: {changes}"


def damage_bytes(rng: Random, file: Path) -> str:
    """Truncate a file, change or insert bytes mostly near its start, or replace the file."""
    content = bytearray(file.read_bytes())
    action = rng.randrange(6)
    limit = max(1, min(len(content), rng.choice((16, 128, 1024, 10**9))))
    if action == 0:
        cut = rng.randrange(limit)
        file.write_bytes(content[:cut])
        return f"{file.name} cut to {cut} bytes"
    if action == 1:
        file.write_bytes(rng.randbytes(rng.choice((0, 1, 10, 1000))))
        return f"{file.name} replaced by noise"
    if action == 2:
        position = rng.randrange(limit)
        content[position:position] = rng.randbytes(rng.choice((1, 8, 64)))
        file.write_bytes(content)
        return f"{file.name} with bytes inserted at {position}"
    if action == 3:
        file.unlink()
        file.mkdir()
        return f"{file.name} is a folder"
    positions = [rng.randrange(limit) for _ in range(rng.choice((1, 3, 16)))]
    for position in positions:
        content[position] = rng.randrange(256)
    file.write_bytes(content)
    return f"{file.name} with bytes changed at {positions[:3]}"


def npy_header(rng: Random) -> bytes:
    """Return a .npy file whose header has unusual or invalid fields."""
    descr = rng.choice(
        (
            "'<f4'",
            "'|O'",
            "'<c8'",
            "'|V8'",
            "'<U4'",
            "'<f999'",
            "3",
            "None",
            "''",
            "[('a', '<f4')]",
            "'<M8[s]'",
        )
    )
    shape = rng.choice(
        (
            "(4, 2)",
            "(4,)",
            "()",
            "(-4, 2)",
            "(10**12,)",
            "'x'",
            "(4.5, 2)",
            "None",
            f"({2**63}, 2)",
            "(0, 2)",
            "(4, 0)",
        )
    )
    order = rng.choice(("False", "True", "3", "'no'"))
    text = rng.choice(
        (
            f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}",
            f"{{'descr': {descr}, 'shape': {shape}}}",
            "{" * 3000,
            "(" * 300,
            "print(1)",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 2), 'x': 1}",
        )
    )
    header = text.encode() + b"\n"
    version = rng.choice((b"\x01\x00", b"\x02\x00", b"\x09\x00"))
    length = len(header) if rng.random() < 0.8 else rng.choice((0, 7, 65535))
    size = length.to_bytes(2, "little") if version == b"\x01\x00" else length.to_bytes(4, "little")
    return b"\x93NUMPY" + version + size + header + rng.randbytes(rng.choice((0, 32, 64)))
