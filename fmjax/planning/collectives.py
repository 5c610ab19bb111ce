"""Communication between devices in a compiled program, parsed from its XLA text.

A collective inside a loop is counted once per iteration, if XLA states the number of iterations. On
some chips the compiler replaces one kind of collective by another (an all-gather by an all-reduce
of mostly zeros); the bytes are then those of the replacement. Traffic between TPU slices goes
through the hosts, as pairs of send and receive whose attributes name the collective.
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
    """Total traffic of one kind of collective in one run of a program.

    Attributes:
        count: Number of times that the collective runs.
        bytes: Bytes of the results on each device.
        sent: Bytes that each device sends, with ring algorithms.
        across: Part of `sent` that leaves the TPU slice or GPU node of the device, if each slice or
            node first gathers or reduces its part internally (a lower bound).
    """

    count: int
    bytes: float
    sent: float
    across: float = 0.0


def collectives(program: str, domains: Sequence[int] = ()) -> dict[str, Traffic]:
    """Return the traffic of each kind of collective in a compiled program.

    Args:
        program: Text of the program, from `as_text()` of a compiled function.
        domains: TPU slice or GPU node of each device, in the program's device order; if empty, all
            devices are in one domain.
    """
    has_domains = len(set(domains)) > 1
    lines = _computations(program)
    num_runs = _num_runs(lines)
    traffic: dict[str, Traffic] = {}
    # On TPUs a collective that overlaps with other work occurs in several fusions, with one
    # channel id.
    fused = {name for body in lines.values() for name in _FUSED.findall("\n".join(body))}
    seen_channels: set[str] = set()

    def add(kind: str, count: int, single: Traffic) -> None:
        total = traffic.get(kind, Traffic(0, 0.0, 0.0))
        traffic[kind] = Traffic(
            total.count + count,
            total.bytes + count * single.bytes,
            total.sent + count * single.sent,
            total.across + count * single.across,
        )

    for name, body in lines.items():
        for line in body:
            if num_runs[name] and (match := _MEGASCALE.search(line)):
                add(BETWEEN_SLICES, num_runs[name], _between_slices(*match.groups()))
            elif num_runs[name] and (match := _COLLECTIVE.search(line)):
                channel = _CHANNEL.search(line)
                if channel is not None and name in fused:
                    if channel[0] in seen_channels:
                        continue
                    seen_channels.add(channel[0])
                kind, size = match[2], _result_bytes(match[1], line)
                groups = _groups(line)
                sent = _sent(kind, size, groups.shape[1])
                across = min(sent, _across(kind, size, groups, domains)) if has_domains else 0.0
                add(kind, num_runs[name], Traffic(1, size, sent, across))
    return traffic


def _between_slices(shape: str, slices: str, kind: str) -> Traffic:
    """Return what one device sends to other slices, whose numbers are given as "1,2" or "1:4"."""
    ranges = [[int(end) for end in part.split(":")] for part in slices.split(",")]
    num_slices = sum(ends[-1] - ends[0] + 1 for ends in ranges)
    size = sum(_shape_bytes(*dtype_and_dims) for dtype_and_dims in _SHAPE.findall(shape))
    factors = {"ALL_REDUCE": 2 * (num_slices - 1) / num_slices, "ALL_GATHER": num_slices - 1}
    sent = factors.get(kind, 1) * size
    return Traffic(1, size, sent, sent)


def _computations(program: str) -> dict[str, list[str]]:
    """Split a program into computations: name to lines; the entry is named "ENTRY"."""
    computations: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            name = "ENTRY" if line.startswith("ENTRY") else match[1]
            current = computations.setdefault(name, [])
        elif line.rstrip() == "}":  # Kernel text has other lines that start with a brace.
            current = None
        elif current is not None:
            current.append(line)
    return computations


def _num_runs(lines: dict[str, list[str]]) -> dict[str, int]:
    """Return how often each computation runs in one run of the program."""
    num_runs: dict[str, int] = defaultdict(int)

    def visit(name: str, factor: int) -> None:
        num_runs[name] += factor
        for line in lines.get(name, ()):
            for callee, trip_count in _callees(line, lines):
                if callee in lines:
                    visit(callee, factor * trip_count)

    visit("ENTRY", 1)
    return num_runs


def _callees(line: str, lines: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
    """Yield the computations that an instruction calls, and how often it calls each."""
    if match := _WHILE.search(line):
        known = _TRIPS.search(line)
        yield match[2], int(known[1]) if known else _trip_count(lines.get(match[1], []))
        return
    for match in _CALLS.finditer(line):
        # All branches of a conditional are counted, although only one of them runs.
        for name in (match[1] or match[2]).split(","):
            yield name.strip("% "), 1


def _trip_count(condition: list[str]) -> int:
    """Return the iterations of a loop that counts up to a constant, as scans do; otherwise 1."""
    limits = [
        int(n) for line in condition for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", line)
    ]
    return max(limits, default=1)


def _result_bytes(shapes: str, line: str) -> float:
    """Return the bytes of a collective's results; operands of asynchronous ones do not count."""
    sizes = [_shape_bytes(*shape) for shape in _SHAPE.findall(shapes)]
    if "-start(" in line and len(sizes) > 1 and "all-reduce-start(" not in line:
        # The shape is ((operands), (results), contexts), with as many operands as results.
        sizes = [size for size in sizes if size > 4] or sizes
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes)


def _shape_bytes(dtype: str, dims: str) -> float:
    width = _BYTES.get(dtype)
    if width is None:
        width = 1 if dtype.startswith("f8") else int(re.sub(r"\D", "", dtype)) / 8
    return float(width * math.prod(int(size) for size in dims.split(",") if size))


def _groups(line: str) -> np.ndarray:
    """Return the groups of devices that communicate, `[groups, devices]`.

    Groups of a collective-permute are (source, target) pairs.
    """
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
    """Expand XLA's short form of device numbers: "[2,4]T(1,0)" is `iota` reshaped, transposed."""
    dims = _numbers(re.findall(r"\[([\d,]+)\]", iota)[0])
    ids = np.arange(math.prod(dims)).reshape(dims)
    permutation = re.search(r"T\(([\d,]+)\)", iota)
    return ids if permutation is None else ids.transpose(_numbers(permutation[1]))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _sent(kind: str, size: float, num_devices: int) -> float:
    """Return the bytes that each device sends in a ring; `size` is the bytes of the result."""
    share = (num_devices - 1) / num_devices
    if kind == "all-reduce":
        return 2 * share * size
    if kind == "reduce-scatter":  # The input is `num_devices` times the size of the result.
        return (num_devices - 1) * size
    return size if kind == "collective-permute" else share * size


def _across(kind: str, size: float, groups: np.ndarray, domains: Sequence[int]) -> float:
    """Return the bytes that each device sends out of its slice or node; the maximum over groups."""
    num_domains = max(len(set(group)) for group in np.asarray(domains)[groups].tolist())
    if num_domains == 1:
        return 0.0
    if kind == "collective-permute":
        return size
    sent = _sent(kind, size, num_domains)
    if kind in ("all-gather", "all-reduce"):  # The devices of a domain share this traffic.
        return sent * num_domains / groups.shape[1]
    return sent
