"""Recommendation of a solver for each error level, as data and as sentences."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from fmjax.report.comparison import Comparison, SolverRun, power_of_ten

LEVELS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
BUDGETS = (1, 4, 16, 64, 256, 1024)


class Advice(NamedTuple):
    """Recommended solver settings for one error level.

    Attributes:
        level: Maximum RMSE of the worst sample, in data units.
        cheapest: Run that reaches the level with the fewest network evaluations, or None.
        fastest: Run that reaches the level in the least wall time, or None.
    """

    level: float
    cheapest: SolverRun | None
    fastest: SolverRun | None


def advise(comparison: Comparison, levels: Sequence[float] = LEVELS) -> tuple[Advice, ...]:
    """Find the cheapest and the fastest run for each error level.

    Only runs in which all samples succeeded are considered. Of two runs with equal cost, the more
    accurate one is chosen.

    Args:
        comparison: Solver comparison with errors.
        levels: Error levels, as RMSE of the worst sample.
    """
    complete = [r for r in comparison.runs if r.succeeded == 1 and math.isfinite(r.rmse_worst)]

    def advice(level: float) -> Advice:
        accurate = [run for run in complete if run.rmse_worst <= level]
        return Advice(
            level=level,
            cheapest=min(accurate, key=lambda r: (r.nfe_mean, r.rmse_worst), default=None),
            fastest=min(accurate, key=lambda r: (r.seconds, r.rmse_worst), default=None),
        )

    return tuple(advice(level) for level in levels)


def sentences(comparison: Comparison, levels: Sequence[float] = LEVELS) -> tuple[str, ...]:
    """Write the recommendations as sentences, one for adjacent levels with the same runs.

    Levels below the uncertainty of the reference are omitted, with a note. Without errors, the best
    run by the first metric is recommended for each budget of evaluations.
    """
    if not comparison.runs:
        return ("No solver was run.",)
    has_errors = not all(math.isnan(run.rmse_worst) for run in comparison.runs)
    if comparison.reference is None or not has_errors:
        return _metric_sentences(comparison)
    uncertainty = comparison.reference.uncertainty
    resolved = [level for level in sorted(levels, reverse=True) if not level < uncertainty]
    groups: list[list[Advice]] = []
    for item in advise(comparison, resolved):
        if groups and groups[-1][-1][1:] == item[1:]:
            groups[-1].append(item)
        else:
            groups.append([item])
    lines = [_sentence(group, comparison, first=i == 0) for i, group in enumerate(groups)]
    first_run = groups[0][-1].cheapest if groups else None
    if first_run is not None and (options := _options(first_run)) is not None:
        lines.append(f"To sample with the first of these: {options}.")
    if len(resolved) < len(levels):
        limit = _level(uncertainty)
        lines.append(f"Errors below {limit} cannot be distinguished from that of the reference.")
    return tuple(lines)


def _metric_sentences(comparison: Comparison) -> tuple[str, ...]:
    """Name the best run by the first metric within each budget of evaluations."""
    if not comparison.metric_names:
        return ()
    name = comparison.metric_names[0]
    higher = name in comparison.higher_is_better
    complete = [run for run in comparison.runs if run.succeeded == 1]
    complete = [run for run in complete if math.isfinite(run.metrics.get(name, math.nan))]
    lines, previous_best = [], None
    for budget in BUDGETS:
        affordable = [run for run in complete if run.nfe_mean <= budget]
        best = (max if higher else min)(affordable, key=lambda r: r.metrics[name], default=None)
        if best is None or best is previous_best:
            continue
        previous_best = best
        lines.append(
            f"With at most {budget} evaluation{'' if budget == 1 else 's'}, the best {name} is "
            f"{best.metrics[name]:.3g}, from {_named(best, comparison)}."
        )
    return tuple(lines)


def _sentence(group: list[Advice], comparison: Comparison, *, first: bool) -> str:
    """Write one sentence for levels with the same runs; the first one names the error."""
    cheapest, fastest = group[-1].cheapest, group[-1].fastest
    if cheapest is None or fastest is None:
        return _none_reaches(_level(group[0].level), comparison, first=first)
    # A run that reaches the lowest level of a group also reaches its higher levels.
    level = _level(group[-1].level)
    within = f"a worst-sample error of at most {level}" if first else f"at most {level}"
    cost = f"{_evaluations(cheapest)} in {seconds_in_words(cheapest.seconds)}"
    use = f"For {within}, use {_named(cheapest, comparison)}"
    if fastest == cheapest:
        return f"{use}: {cost}, the fewest evaluations and the least time."
    return (
        f"{use} for the fewest evaluations ({cost}) or "
        f"{_named(fastest, comparison)} for the least time "
        f"({_evaluations(fastest)} in {seconds_in_words(fastest.seconds)})."
    )


def _none_reaches(level: str, comparison: Comparison, *, first: bool) -> str:
    target = f"a worst-sample error of {level}" if first else level
    ode_runs = [run for run in comparison.runs if run.family != "stochastic"] or comparison.runs
    best = min(ode_runs, key=lambda run: (run.succeeded < 1, run.rmse_worst))
    if best.succeeded < 1 or not math.isfinite(best.rmse_worst):
        return f"No run reaches {target}: in every run, some samples failed."
    closest = _named(best, comparison)
    return f"No run reaches {target}; the closest is {closest}, with {_level(best.rmse_worst)}."


def _level(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-3 else power_of_ten(value)


def _named(run: SolverRun, comparison: Comparison) -> str:
    preposition = "at" if run.adaptive else "with"
    return f"{comparison.name_of(run)} {preposition} {run.setting}"


def _options(run: SolverRun) -> str | None:
    """Return the options of `fmjax sample` for a run.

    None if the title of the run has a variant for which there are no options, such as bfloat16.
    """
    name, *variants = run.solver.split(", ")
    solver = re.sub("[^a-z0-9]+", "_", name.lower().replace("++", "_pp")).strip("_")
    grids = [variant.removesuffix(" grid") for variant in variants if variant.endswith(" grid")]
    if len(grids) < len(variants):
        return None
    if run.tolerance is not None:
        tolerance = power_of_ten(run.tolerance)
        return f"--solver {solver} --rtol {tolerance} --atol {tolerance}"
    return f"--solver {solver} --num-steps {run.steps}" + "".join(f" --grid {g}" for g in grids)


def _evaluations(run: SolverRun) -> str:
    count = f"{run.nfe_mean:.3g}" if run.nfe_mean < 100 else f"{run.nfe_mean:,.0f}"
    return f"{count} evaluation" + ("" if count == "1" else "s")


def seconds_in_words(seconds: float) -> str:
    """Format a duration with its unit, to three digits: "62 µs", "4.2 ms", "1.25 s"."""
    for unit, size in (("µs", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:,.3g} s" if seconds < 999.5 else f"{seconds:,.0f} s"
