"""Timing of benchmarks: candidates in alternation, medians and ratios, one line of JSON.

Absolute times on a shared machine vary. Candidates that run in alternation are slowed down by the
same other processes, so the ratio of their times is reliable.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping


def take_turns(
    candidates: Mapping[str, Callable[[], object]], rounds: int, *, warmup: int = 2
) -> dict[str, list[float]]:
    """Time each candidate once per round, in alternating order.

    Args:
        candidates: Functions by name. Each must finish its work: JAX calls need
            `block_until_ready`.
        rounds: Number of measured rounds. Every other round is in reverse order, so that no
            candidate always follows the same one.
        warmup: Number of rounds before these, for compilation and caches, that are not measured.

    Returns:
        The seconds of each call, by name of the candidate.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for index in range(warmup + rounds):
        for name in names if index % 2 == 0 else reversed(names):
            start = time.perf_counter()
            candidates[name]()
            if index >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(over: list[float], under: list[float]) -> float:
    """Return the median over the rounds of `over[i] / under[i]`."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def spread(values: list[float]) -> tuple[float, float]:
    """Return the first and the third quartile."""
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def report(result: Mapping[str, object]) -> None:
    """Print the result as one line of JSON, with floats rounded to four digits."""
    print(json.dumps({key: _rounded(value) for key, value in result.items()}))


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
