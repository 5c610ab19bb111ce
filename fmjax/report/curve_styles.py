"""Style and legend of the curves of a comparison, in its figures and on its page.

With one model, the hue is that of the solver's family, and shade and marker are those of the
solver. With several models, the hue is that of the model, and the marker that of the solver. Lines
are dashed for fixed steps, solid for adaptive steps and dotted for stochastic samplers. Markers of
fixed steps are hollow.
"""

from typing import NamedTuple

from matplotlib.colors import to_hex

from fmjax.report.comparison import Comparison, SolverRun
from fmjax.report.style import Theme, shades

FAMILIES = {"fixed": "Fixed steps", "adaptive": "Adaptive steps", "stochastic": "Stochastic"}
# Distinguishes solvers with similar shades.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


class Look(NamedTuple):
    """Style of a curve.

    Attributes:
        color: Color of line and marker, such as "#2b83ba".
        family: "fixed", "adaptive" or "stochastic", which sets the line style; "" for no line.
        marker: Matplotlib's code of the marker; "" for no marker.
    """

    color: str
    family: str
    marker: str


class LegendEntry(NamedTuple):
    """An entry of a legend, for all curves with its key.

    Attributes:
        key: Key that connects the entry with its curves.
        name: Displayed name.
        look: Style of the entry.
    """

    key: str
    name: str
    look: Look


class LegendGroup(NamedTuple):
    """A group of a legend: the models, or the solvers of one family.

    Attributes:
        title: Title of the group.
        entries: Entries of the group.
    """

    title: str
    entries: tuple[LegendEntry, ...]


def keys_of(comparison: Comparison, run: SolverRun) -> tuple[str, ...]:
    """Return the legend keys of a run: of its solver, and of its model if there are several."""
    solver = f"{run.family}:{run.solver}"
    return (solver,) if len(comparison.models) == 1 else (f"model:{run.model}", solver)


def looks(comparison: Comparison, theme: Theme) -> dict[str, Look]:
    """Return the style of each curve of `comparison.curves()`, by name."""
    solver_looks = _solver_looks(comparison, theme)
    has_models = len(comparison.models) > 1
    return {
        name: solver_looks[runs[0].family, runs[0].solver]._replace(
            **{"color": _hue(comparison, runs[0].model, theme)} if has_models else {}
        )
        for name, runs in comparison.curves().items()
    }


def legend(comparison: Comparison, theme: Theme) -> tuple[LegendGroup, ...]:
    """Make the legend: the models, if there are several, and the solvers by family."""
    groups = []
    if len(comparison.models) > 1:
        models = tuple(
            LegendEntry(f"model:{model}", model, Look(_hue(comparison, model, theme), "", ""))
            for model in comparison.models
        )
        groups.append(LegendGroup("Models", models))
    solver_looks = _solver_looks(comparison, theme)
    for family, title in FAMILIES.items():
        entries = tuple(
            LegendEntry(f"{family}:{solver}", solver, look)
            for (solver_family, solver), look in solver_looks.items()
            if solver_family == family
        )
        if entries:
            groups.append(LegendGroup(title, entries))
    return tuple(groups)


def _solver_looks(comparison: Comparison, theme: Theme) -> dict[tuple[str, str], Look]:
    """Return the style of each solver by family and name; with several models, without hue."""
    solvers = tuple(dict.fromkeys((run.family, run.solver) for run in comparison.runs))
    solver_looks = {}
    for family, stops in zip(FAMILIES, (theme.cool, theme.warm, theme.fresh), strict=True):
        names = [solver for solver_family, solver in solvers if solver_family == family]
        for i, (solver, shade) in enumerate(zip(names, shades(stops, len(names)), strict=True)):
            if len(comparison.models) == 1:
                look = Look(to_hex(shade), family, MARKERS[i % len(MARKERS)])
            else:
                index = solvers.index((family, solver))
                look = Look(theme.ink, family, MARKERS[index % len(MARKERS)])
            solver_looks[family, solver] = look
    return solver_looks


def _hue(comparison: Comparison, model: str, theme: Theme) -> str:
    return theme.hues[comparison.models.index(model) % len(theme.hues)]
