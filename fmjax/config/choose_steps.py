"""Choose fixed or adaptive steps from the sampling settings that a user named."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from fmjax._checks import require
from fmjax.config.sampling import SamplingConfig
from fmjax.config.solvers import SDE_SOLVERS, SOLVERS, can_adapt

# Settings that have no effect with fixed steps.
_ADAPTIVE = frozenset({"rtol", "atol", "control", "slots"})
_SDE = frozenset({"rate", "rate_scale", "rate_power", "last_step"})
_GRID = frozenset({"num_steps", "grid", "shift"})


def choose_steps(
    sampling: SamplingConfig, named: Collection[str], spell: Callable[[str], str] = str
) -> SamplingConfig:
    """Use adaptive steps if the user named a solver or a tolerance, but no number of steps.

    The config of a run may set fixed steps, with which a tolerance would have no effect.

    Args:
        sampling: The settings; those of the run where the user named none.
        named: Names of the fields of `sampling` that the user set.
        spell: Returns the name of a field in messages.

    Raises:
        ValueError: If a tolerance is set together with a number of steps or for a solver without
            an error estimate, or noise settings for a solver that is not of the SDE.
    """
    adaptive = sorted(_ADAPTIVE.intersection(named))
    if sampling.solver not in SDE_SOLVERS:
        rule = f"be used with an SDE solver ({', '.join(SDE_SOLVERS)})"
        for name in sorted(_SDE.intersection(named)):
            require(False, spell(name), rule, sampling.solver)
    if _GRID.intersection(named):
        rule = "be given if grid or shift is given"
        require(sampling.num_steps is not None, spell("num_steps"), rule, "none")
        rule = f"not be combined with {spell('num_steps')}"
        for name in adaptive:
            require(False, spell(name), rule, f"{sampling.num_steps} steps")
        return sampling
    if not adaptive and "solver" not in named:
        return sampling
    if can_adapt(sampling.solver):
        return dataclasses.replace(sampling, num_steps=None)
    solvers = sorted(filter(can_adapt, SOLVERS), key=lambda name: name != "tsit5")  # tsit5 first.
    rule = f"be used with a solver that estimates its error ({', '.join(solvers)})"
    for name in adaptive:
        require(False, spell(name), rule, sampling.solver)
    return sampling


def with_settings(sampling: SamplingConfig, **settings: Any) -> SamplingConfig:
    """Replace the fields of `sampling` whose value is not None, as options of a command do.

    Args:
        sampling: The settings, such as those of a run.
        settings: New values of fields; None keeps the value.

    Raises:
        ValueError: If the settings contradict each other, as for `choose_steps`.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    return choose_steps(dataclasses.replace(sampling, **given), given)
