"""Damage, aware of structure: JSON that stays JSON, headers, lengths, bytes."""

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

WHOLE = (
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
"""Files whose whole content is wrong."""

VALUES = (
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
RAW = ("1e400", "-1e400", "NaN", "Infinity", "9" * 4_400, "[" * 2_000 + "]" * 2_000)
_MARK = "@@RAW@@"


def whole(rng: Random) -> bytes:
    """Content that is no JSON of the right shape at all."""
    return rng.choice(WHOLE)


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """The paths of all values in JSON."""
    found = [at] if at else []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value[:20]))
    else:
        return found
    return found + [place for key, inner in items for place in places(inner, (*at, key))]


def changed(rng: Random, value: Any, num: int = 1) -> tuple[str, str]:
    """JSON with some values replaced, left out or renamed; and what was done, in words."""
    value, done, raw = copy.deepcopy(value), [], []
    for _ in range(num):
        found = places(value)
        if not found:
            break
        *inner, last = rng.choice(found)
        holder = value
        for key in inner:
            holder = holder[key]
        kind = rng.randrange(6)
        name = ".".join(map(str, (*inner, last)))
        if kind == 0:
            del holder[last]
            done.append(f"without {name}")
        elif kind == 1 and isinstance(holder, dict):
            holder[f"{last}_"] = holder.pop(last)
            done.append(f"{name} renamed")
        elif kind == 2:
            raw.append(rng.choice(RAW))
            holder[last] = _MARK
            done.append(f"{name} = {raw[-1][:8]}")
        else:
            holder[last] = copy.deepcopy(rng.choice(VALUES))
            done.append(f"{name} = {ascii(holder[last])[:20]}")
    text = json.dumps(value)
    for one in raw:
        text = text.replace(f'"{_MARK}"', one, 1)
    return text.replace(f'"{_MARK}"', "null"), ", ".join(done)


def damage_json(rng: Random, path: Path) -> str:
    """Damage one JSON file in place; what was done, in words."""
    if rng.random() < 0.35:
        content = whole(rng)
        path.write_bytes(content)
        return f"{path.name} = {content[:8]!r}"
    text, done = changed(rng, json.loads(path.read_text(encoding="utf-8")), rng.choice((1, 1, 2)))
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return f"{path.name}: {done}"


def damage_lines(rng: Random, path: Path) -> str:
    """Damage one line of a file of JSON lines, or the whole of it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if rng.random() < 0.3 or not lines:
        content = whole(rng)
        path.write_bytes(content)
        return f"{path.name} = {content[:8]!r}"
    number = rng.randrange(len(lines))
    if rng.random() < 0.5:
        line, done = changed(rng, json.loads(lines[number]))
    else:
        line = whole(rng).decode("utf-8", "replace").replace("\n", "")
        done = repr(line[:8])
    lines[number] = line
    path.write_bytes(("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))
    return f"{path.name} line {number}: {done}"


def damage_bytes(rng: Random, path: Path) -> str:
    """Cut a file off, flip or insert bytes, mostly near its start, or replace all of it."""
    content = bytearray(path.read_bytes())
    kind = rng.randrange(6)
    near = max(1, min(len(content), rng.choice((16, 128, 1024, 10**9))))
    if kind == 0:
        cut = rng.randrange(near)
        path.write_bytes(content[:cut])
        return f"{path.name} cut to {cut} bytes"
    if kind == 1:
        path.write_bytes(rng.randbytes(rng.choice((0, 1, 10, 1000))))
        return f"{path.name} replaced by noise"
    if kind == 2:
        at = rng.randrange(near)
        content[at:at] = rng.randbytes(rng.choice((1, 8, 64)))
        path.write_bytes(content)
        return f"{path.name} with bytes inserted at {at}"
    if kind == 3:
        path.unlink()
        path.mkdir()
        return f"{path.name} is a folder"
    flips = [rng.randrange(near) for _ in range(rng.choice((1, 3, 16)))]
    for at in flips:
        content[at] = rng.randrange(256)
    path.write_bytes(content)
    return f"{path.name} with bytes changed at {flips[:3]}"


def npy_header(rng: Random) -> bytes:
    """A .npy file whose header is wrong in a way that the format has names for."""
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
