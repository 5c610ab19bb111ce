"""Which solver to take for which error, from a comparison's rows, in numbers and in words."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from fmjax.report.comparison import Comparison, SolverRun, power_of_ten

LEVELS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
BUDGETS = (1, 4, 16, 64, 256, 1024)


class Advice(NamedTuple):
    """What to take for one error.

    Attributes:
        level: Worst-sample RMSE that must not be exceeded, in data units.
        cheapest: The run that reaches it with the fewest evaluations; None if none does.
        fastest: The run that reaches it in the least wall time; None if none does.
    """

    level: float
    cheapest: SolverRun | None
    fastest: SolverRun | None


def advise(comparison: Comparison, levels: Sequence[float] = LEVELS) -> tuple[Advice, ...]:
    """For each level the cheapest and the fastest run that reaches it.

    Only runs in which every sample ended count. Of two runs that cost the same
    evaluations the more exact one is taken.
    """
    whole = [run for run in comparison.runs if run.succeeded == 1 and math.isfinite(run.rmse_worst)]

    def advice(level: float) -> Advice:
        good = [run for run in whole if run.rmse_worst <= level]
        return Advice(
            level=level,
            cheapest=min(good, key=lambda r: (r.nfe_mean, r.rmse_worst), default=None),
            fastest=min(good, key=lambda r: (r.seconds, r.rmse_worst), default=None),
        )

    return tuple(advice(level) for level in levels)


def sentences(comparison: Comparison, levels: Sequence[float] = LEVELS) -> tuple[str, ...]:
    """Say the advice in plain sentences; neighbouring levels with one answer share theirs.

    Levels below the reference's own uncertainty are left out, and that is said. Where nothing
    was solved to measure errors by, the first metric decides within each budget.
    """
    if not comparison.runs:
        return ("No solver was run.",)
    nothing_to_err_from = all(math.isnan(run.rmse_worst) for run in comparison.runs)
    if comparison.reference is None or nothing_to_err_from:
        return _by_metric(comparison)
    uncertainty = comparison.reference.uncertainty
    known = [level for level in sorted(levels, reverse=True) if not level < uncertainty]
    groups: list[list[Advice]] = []
    for item in advise(comparison, known):
        if groups and groups[-1][-1][1:] == item[1:]:
            groups[-1].append(item)
        else:
            groups.append([item])
    said = [_sentence(group, comparison, first=i == 0) for i, group in enumerate(groups)]
    named = groups[0][-1].cheapest if groups else None
    if named is not None and (options := _options(named)) is not None:
        said.append(f"To draw samples by the first of these: {options}.")
    if len(known) < len(levels):
        limit = _level(uncertainty)
        said.append(f"Errors below {limit} cannot be told from the reference's own.")
    return tuple(said)


def _by_metric(comparison: Comparison) -> tuple[str, ...]:
    """Which row is best by the first metric within each budget of evaluations."""
    if not comparison.metric_names:
        return ()
    name = comparison.metric_names[0]
    higher = name in comparison.higher_is_better
    whole = [run for run in comparison.runs if run.succeeded == 1]
    whole = [run for run in whole if math.isfinite(run.metrics.get(name, math.nan))]
    said, best = [], None
    for budget in BUDGETS:
        rows = [run for run in whole if run.nfe_mean <= budget]
        found = (max if higher else min)(rows, key=lambda run: run.metrics[name], default=None)
        if found is None or found is best:
            continue
        best = found
        said.append(
            f"Within {budget} evaluation{'' if budget == 1 else 's'} the best {name} is "
            f"{found.metrics[name]:.3g}, by {_named(found, comparison)}."
        )
    return tuple(said)


def _sentence(group: list[Advice], comparison: Comparison, *, first: bool) -> str:
    """One sentence for levels that share an answer; the first says what the level is of."""
    cheapest, fastest = group[-1].cheapest, group[-1].fastest
    if cheapest is None or fastest is None:
        return _none_reaches(_level(group[0].level), comparison, first=first)
    # What reaches the tightest level of a group reaches its looser ones too.
    level = _level(group[-1].level)
    within = f"a worst-sample error of at most {level}" if first else f"at most {level}"
    cost = f"{_evaluations(cheapest)} in {seconds_in_words(cheapest.seconds)}"
    take = f"For {within}, take {_named(cheapest, comparison)}"
    if fastest == cheapest:
        return f"{take}: {cost}, both the fewest and the fastest."
    return (
        f"{take} for the fewest evaluations ({cost}) or "
        f"{_named(fastest, comparison)} for the least time "
        f"({_evaluations(fastest)} in {seconds_in_words(fastest.seconds)})."
    )


def _none_reaches(level: str, comparison: Comparison, *, first: bool) -> str:
    what = f"a worst-sample error of {level}" if first else level
    solves = [run for run in comparison.runs if run.family != "stochastic"] or comparison.runs
    best = min(solves, key=lambda run: (run.succeeded < 1, run.rmse_worst))
    if best.succeeded < 1 or not math.isfinite(best.rmse_worst):
        return f"No run reaches {what}: none brought every sample to its end."
    closest = _named(best, comparison)
    return f"No run reaches {what}; the closest is {closest}, at {_level(best.rmse_worst)}."


def _level(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-3 else power_of_ten(value)


def _named(run: SolverRun, comparison: Comparison) -> str:
    joint = "at" if run.adaptive else "with"
    return f"{comparison.name_of(run)} {joint} {run.setting}"


def _options(run: SolverRun) -> str | None:
    """The run as options of `fmjax sample`, whose names are in lower case without spaces.

    None for a row that its title says was solved in another way than with these options.
    """
    name, *ways = run.solver.split(", ")
    solver = re.sub("[^a-z0-9]+", "_", name.lower().replace("++", "_pp")).strip("_")
    grids = [way.removesuffix(" grid") for way in ways if way.endswith(" grid")]
    if len(grids) < len(ways):
        return None
    if run.tolerance is not None:
        tolerance = power_of_ten(run.tolerance)
        return f"--solver {solver} --rtol {tolerance} --atol {tolerance}"
    return f"--solver {solver} --num-steps {run.steps}" + "".join(f" --grid {g}" for g in grids)


def _evaluations(run: SolverRun) -> str:
    count = f"{run.nfe_mean:.3g}" if run.nfe_mean < 100 else f"{run.nfe_mean:,.0f}"
    return f"{count} evaluation" + ("" if count == "1" else "s")


def seconds_in_words(seconds: float) -> str:
    """A duration with its unit, to two or three digits: "62 µs", "4.2 ms", "1.25 s"."""
    for unit, size in (("µs", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:,.3g} s" if seconds < 999.5 else f"{seconds:,.0f} s"
