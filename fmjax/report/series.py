"""How the curves of a comparison look and are named, in its figures and on its page alike.

Of one model, hue tells the families apart and shades with markers the solvers; of several, hue
is the model, and markers are the solvers. The line always tells the family: dashed for fixed
steps, solid for adaptive ones, dotted for noise along the way; markers of fixed steps are hollow.
"""

from typing import NamedTuple

from matplotlib.colors import to_hex

from fmjax.report.comparison import Comparison, SolverRun
from fmjax.report.style import Theme, shades

FAMILIES = {"fixed": "Fixed steps", "adaptive": "Adaptive steps", "stochastic": "With noise"}
# Told apart at a glance also where shades are close.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


class Look(NamedTuple):
    """How a curve is drawn.

    Attributes:
        colour: Of line and marker, as "#2b83ba".
        family: "fixed", "adaptive" or "stochastic", which is the kind of line; "" draws none.
        marker: Matplotlib's letter; "" draws none.
    """

    colour: str
    family: str
    marker: str


class LegendEntry(NamedTuple):
    """One name in a legend, which stands for all curves that have its key."""

    key: str
    name: str
    look: Look


class LegendGroup(NamedTuple):
    """Names of one kind: the models, or the solvers of one family."""

    title: str
    entries: tuple[LegendEntry, ...]


def keys_of(comparison: Comparison, run: SolverRun) -> tuple[str, ...]:
    """The legend's names that a run goes by: its solver's, and its model's if there are several."""
    solver = f"{run.family}:{run.solver}"
    return (solver,) if len(comparison.models) == 1 else (f"model:{run.model}", solver)


def looks(comparison: Comparison, theme: Theme) -> dict[str, Look]:
    """How each of `comparison.curves()` looks, by its name."""
    solvers = _solver_looks(comparison, theme)
    several = len(comparison.models) > 1
    return {
        name: solvers[runs[0].family, runs[0].solver]._replace(
            **{"colour": _hue(comparison, runs[0].model, theme)} if several else {}
        )
        for name, runs in comparison.curves().items()
    }


def legend(comparison: Comparison, theme: Theme) -> tuple[LegendGroup, ...]:
    """The models, if there are several, and the solvers by family."""
    groups = []
    if len(comparison.models) > 1:
        models = tuple(
            LegendEntry(f"model:{model}", model, Look(_hue(comparison, model, theme), "", ""))
            for model in comparison.models
        )
        groups.append(LegendGroup("Models", models))
    found = _solver_looks(comparison, theme)
    for family, title in FAMILIES.items():
        entries = tuple(
            LegendEntry(f"{family}:{solver}", solver, look)
            for (kind, solver), look in found.items()
            if kind == family
        )
        if entries:
            groups.append(LegendGroup(title, entries))
    return tuple(groups)


def _solver_looks(comparison: Comparison, theme: Theme) -> dict[tuple[str, str], Look]:
    """By family and solver, in order of appearance; without hue where that is the model's."""
    solvers = tuple(dict.fromkeys((run.family, run.solver) for run in comparison.runs))
    found = {}
    for family, stops in zip(FAMILIES, (theme.cool, theme.warm, theme.fresh), strict=True):
        mine = [solver for kind, solver in solvers if kind == family]
        for i, (solver, shade) in enumerate(zip(mine, shades(stops, len(mine)), strict=True)):
            if len(comparison.models) == 1:
                look = Look(to_hex(shade), family, MARKERS[i % len(MARKERS)])
            else:
                place = solvers.index((family, solver))
                look = Look(theme.ink, family, MARKERS[place % len(MARKERS)])
            found[family, solver] = look
    return found


def _hue(comparison: Comparison, model: str, theme: Theme) -> str:
    return theme.hues[comparison.models.index(model) % len(theme.hues)]
