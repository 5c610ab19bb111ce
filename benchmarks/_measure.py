"""How every benchmark measures: in turns within one run, medians, ratios, one JSON line.

Absolute times of a shared machine say little; two candidates that take turns see the same
neighbours, so the ratio of their times holds.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def take_turns(
    candidates: Mapping[str, Callable[[], Any]], rounds: int, *, warmup: int = 2
) -> dict[str, list[float]]:
    """Time each candidate once a round, in alternating order; seconds of each call.

    Args:
        candidates: Each does its work to the end: a jax call must wait (`block_until_ready`).
        rounds: Measured rounds. Every other round runs backwards, so that no candidate always
            follows the same one.
        warmup: Rounds before, which compile and fill caches and are not counted.
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
    """Median over the rounds of `over[i] / under[i]`: each round against its own neighbour."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def spread(values: list[float]) -> tuple[float, float]:
    """The quartiles: half of the rounds lie between them."""
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def report(result: Mapping[str, Any]) -> None:
    """Print the result as one JSON object on one line; floats to four digits."""
    print(json.dumps({key: _short(value) for key, value in result.items()}))


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return value
