"""What a compiled program sends between devices, read off its text.

The text is XLA's. A collective inside a loop counts as often as the loop runs, if XLA knows that.
On some chips the compiler writes one kind as another (a gather as a sum of parts that are mostly
zero): bytes are then those of what it wrote. Between TPU slices it goes through the hosts, as pairs
of send and receive that say what they do.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(
    rf" = (.*?) ({'|'.join(KINDS)}|ragged-all-to-all|collective-broadcast)(?:-start)?\("
)
BETWEEN_SLICES = "between slices"
_MEGASCALE = re.compile(
    r' = \((.*?), u32\[\].* send\(.*_xla_megascale_target="\{([\d,:]+)\}'
    r'.*_xla_megascale_transfer_type="(\w+)"'
)
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CHANNEL = re.compile(r"channel_id=\d+")
_FUSED = re.compile(r" fusion\(.*?calls=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLS = re.compile(
    r"(?:calls|to_apply|branch_computations|called_computations|true_computation|"
    r"false_computation)=(?:\{([^}]*)\}|([^,}\s]+))"
)
_SHAPE = re.compile(r"\b(pred|bf16|f8\w*|[sufc]\d+)\[([\d,]*)\]")


class Traffic(NamedTuple):
    """One kind of collective in a step.

    Attributes:
        count: How often it runs.
        bytes: What each device has of the results, over all of them.
        sent: What each device sends in rings, over all of them.
        across: Of it, what leaves the device's slice or node, at best: each slice gathers or sums
            what it can of its own first.
    """

    count: int
    bytes: float
    sent: float
    across: float = 0.0


def collectives(program: str, domains: Sequence[int] = ()) -> dict[str, Traffic]:
    """Each kind of collective that a program's text has.

    Args:
        program: As a compiled function's `as_text()` gives it.
        domains: The slice or node of each device, in the program's order; all in one if empty.
    """
    several = len(set(domains)) > 1
    lines = _computations(program)
    times = _times_run(lines)
    found: dict[str, Traffic] = {}
    # On TPUs one that goes on beside other work is in several fusions, under one number.
    fused = {name for body in lines.values() for name in _FUSED.findall("\n".join(body))}
    seen: set[str] = set()

    def add(kind: str, number: int, each: Traffic) -> None:
        before = found.get(kind, Traffic(0, 0.0, 0.0))
        found[kind] = Traffic(
            before.count + number,
            before.bytes + number * each.bytes,
            before.sent + number * each.sent,
            before.across + number * each.across,
        )

    for name, body in lines.items():
        for line in body:
            if times[name] and (match := _MEGASCALE.search(line)):
                add(BETWEEN_SLICES, times[name], _between_slices(*match.groups()))
            elif times[name] and (match := _COLLECTIVE.search(line)):
                channel = _CHANNEL.search(line)
                if channel is not None and name in fused:
                    if channel[0] in seen:
                        continue
                    seen.add(channel[0])
                kind, size = match[2], _result_bytes(match[1], line)
                groups = _groups(line)
                sent = _sent(kind, size, groups.shape[1])
                across = min(sent, _across(kind, size, groups, domains)) if several else 0.0
                add(kind, times[name], Traffic(1, size, sent, across))
    return found


def _between_slices(shape: str, slices: str, kind: str) -> Traffic:
    """What one device sends to those of other slices, written as "1,2" or "1:4"."""
    ranges = [[int(end) for end in part.split(":")] for part in slices.split(",")]
    number = sum(ends[-1] - ends[0] + 1 for ends in ranges)
    size = sum(_shape_bytes(*each) for each in _SHAPE.findall(shape))
    sent = {"ALL_REDUCE": 2 * (number - 1) / number, "ALL_GATHER": number - 1}.get(kind, 1) * size
    return Traffic(1, size, sent, sent)


def _computations(program: str) -> dict[str, list[str]]:
    """The lines of each computation; those of the entry under "ENTRY"."""
    found: dict[str, list[str]] = {}
    inside: list[str] | None = None
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            name = "ENTRY" if line.startswith("ENTRY") else match[1]
            inside = found.setdefault(name, [])
        elif line.rstrip() == "}":  # Kernels have lines in it that only begin so.
            inside = None
        elif inside is not None:
            inside.append(line)
    return found


def _times_run(lines: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs in one run of the program."""
    times: dict[str, int] = defaultdict(int)

    def visit(name: str, factor: int) -> None:
        times[name] += factor
        for line in lines.get(name, ()):
            for callee, trips in _callees(line, lines):
                if callee in lines:
                    visit(callee, factor * trips)

    visit("ENTRY", 1)
    return times


def _callees(line: str, lines: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
    if match := _WHILE.search(line):
        known = _TRIPS.search(line)
        yield match[2], int(known[1]) if known else _trips(lines.get(match[1], []))
        return
    for match in _CALLS.finditer(line):
        # All branches of a conditional, of which one runs.
        for name in (match[1] or match[2]).split(","):
            yield name.strip("% "), 1


def _trips(condition: list[str]) -> int:
    """How often a loop runs that counts up to a constant, as scans do; of others once."""
    limits = [
        int(n) for line in condition for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", line)
    ]
    return max(limits, default=1)


def _result_bytes(shapes: str, line: str) -> float:
    """Bytes of what a collective gives; of an asynchronous one, without its operands."""
    sizes = [_shape_bytes(*shape) for shape in _SHAPE.findall(shapes)]
    if "-start(" in line and len(sizes) > 1 and "all-reduce-start(" not in line:
        # ((operands), (results), contexts): operands and results are equally many.
        sizes = [size for size in sizes if size > 4] or sizes
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes)


def _shape_bytes(kind: str, dims: str) -> float:
    width = _BYTES.get(kind)
    if width is None:
        width = 1 if kind.startswith("f8") else int(re.sub(r"\D", "", kind)) / 8
    return float(width * math.prod(int(size) for size in dims.split(",") if size))


def _groups(line: str) -> np.ndarray:
    """Which devices exchange with one another, `[groups, devices]`; pairs of a permutation."""
    if match := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]+\})\}", line):
        return np.array([_numbers(group) for group in re.findall(r"\{([\d, ]+)\}", match[1])])
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\S+)", line):
        return _ids(match[3]).reshape(int(match[1]), int(match[2]))
    if match := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S+)\))?[^{]*"
        r"\{([^}]*)\}",
        line,
    ):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        total, names = math.prod(sizes.values()), list(sizes)
        ids = _ids(match[2] or f"[{total}]").reshape(list(sizes.values()))
        inner = [names.index(name) for name in re.findall(r"'(\w+)'", match[3])]
        outer = [axis for axis in range(len(names)) if axis not in inner]
        size = math.prod(ids.shape[axis] for axis in inner)
        return ids.transpose(outer + inner).reshape(-1, size)
    return np.array([[0, 1]])


def _ids(iota: str) -> np.ndarray:
    """Device numbers as XLA writes them in short: "[2,4]T(1,0)" is counted, then transposed."""
    dims = _numbers(re.findall(r"\[([\d,]+)\]", iota)[0])
    ids = np.arange(math.prod(dims)).reshape(dims)
    permutation = re.search(r"T\(([\d,]+)\)", iota)
    return ids if permutation is None else ids.transpose(_numbers(permutation[1]))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _sent(kind: str, size: float, devices: int) -> float:
    """Bytes that each device sends, in a ring of `devices`."""
    share = (devices - 1) / devices
    if kind == "all-reduce":
        return 2 * share * size
    if kind == "reduce-scatter":  # Of what goes in, `devices` times what comes out.
        return (devices - 1) * size
    return size if kind == "collective-permute" else share * size


def _across(kind: str, size: float, groups: np.ndarray, domains: Sequence[int]) -> float:
    """Bytes that each device sends out of its slice or node, the most of any group."""
    number = max(len(set(group)) for group in np.asarray(domains)[groups].tolist())
    if number == 1:
        return 0.0
    if kind == "collective-permute":
        return size
    if kind in ("all-gather", "all-reduce"):  # Its share only: the others send the rest.
        return _sent(kind, size, number) * number / groups.shape[1]
    return _sent(kind, size, number)
