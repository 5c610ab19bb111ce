"""One row of a study from those of several seeds."""

import math
import statistics
from collections.abc import Sequence

from fmjax.report.comparison import SolverRun


def mean_row(rows: Sequence[SolverRun]) -> SolverRun:
    """The means over trainings that differ in their seed, under the name of the first.

    Args:
        rows: Of the same sampling; a single one is returned as it is.

    Returns:
        A row whose `spread` is the sample standard deviation of each metric, NaN where one of
        them is not finite.
    """
    first = rows[0]
    if len(rows) == 1:
        return first
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    metrics = {name: [row.metrics.get(name, math.nan) for row in rows] for name in names}
    finite = {name: all(map(math.isfinite, each)) for name, each in metrics.items()}
    return first._replace(
        nfe_mean=statistics.fmean(row.nfe_mean for row in rows),
        nfe_max=max(row.nfe_max for row in rows),
        seconds=statistics.fmean(row.seconds for row in rows),
        succeeded=statistics.fmean(row.succeeded for row in rows),
        metrics={name: statistics.fmean(each) for name, each in metrics.items()},
        spread={
            name: statistics.stdev(each) if finite[name] else math.nan
            for name, each in metrics.items()
        },
    )
