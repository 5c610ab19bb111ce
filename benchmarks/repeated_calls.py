"""Benchmark of solves outside of `jax.jit`: seconds of the first call and of a second one.

Events have three numbers. The velocity field of the second call is another closure, over other
parameters. Run:

    python benchmarks/repeated_calls.py

The last line is one JSON object with the seconds of both calls of each function.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from _measure import report

from fmjax.solvers import Likelihood, Samples, log_density, sample


def measure(solve: Callable[..., Samples | Likelihood]) -> list[float]:
    """Return the seconds of two calls, each with a velocity field of its own."""
    x = jax.random.normal(jax.random.key(0), (64, 3))
    seconds = []
    for scale in (0.1, 0.2):
        weights = jnp.full((3, 3), scale)
        start = time.perf_counter()
        result = solve(lambda t, x, cond=None, w=weights: jnp.tanh(x @ w), x)
        jax.block_until_ready(result)
        seconds.append(round(time.perf_counter() - start, 3))
    return seconds


if __name__ == "__main__":
    report({"sample": measure(sample), "log_density": measure(log_density)})
