"""Average the rows of a study over seeds."""

import math
import statistics
from collections.abc import Sequence

from fmjax.report.comparison import SolverRun


def mean_row(rows: Sequence[SolverRun]) -> SolverRun:
    """Average rows of trainings that differ only in their seed, under the name of the first.

    Args:
        rows: One row per seed, with the same sampling. A single row is returned unchanged.

    Returns:
        A row of means (the maximum for `nfe_max`). Its `spread` is the sample standard deviation of
        each metric, or NaN if one of the values is not finite.
    """
    first = rows[0]
    if len(rows) == 1:
        return first
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    metrics = {name: [row.metrics.get(name, math.nan) for row in rows] for name in names}
    is_finite = {name: all(map(math.isfinite, values)) for name, values in metrics.items()}
    return first._replace(
        nfe_mean=statistics.fmean(row.nfe_mean for row in rows),
        nfe_max=max(row.nfe_max for row in rows),
        seconds=statistics.fmean(row.seconds for row in rows),
        succeeded=statistics.fmean(row.succeeded for row in rows),
        metrics={name: statistics.fmean(values) for name, values in metrics.items()},
        spread={
            name: statistics.stdev(values) if is_finite[name] else math.nan
            for name, values in metrics.items()
        },
    )
