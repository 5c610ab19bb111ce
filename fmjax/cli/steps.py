"""Choose fixed or adaptive steps from the sampling options that the user passed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmjax.config import SamplingConfig

# Options that have no effect with fixed steps.
_ADAPTIVE_OPTIONS = frozenset({"rtol", "atol", "control", "slots"})
_SDE_OPTIONS = frozenset({"rate", "rate-scale", "rate-power", "last-step"})
_GRID_OPTIONS = frozenset({"num-steps", "grid", "shift"})


def choose_steps(
    sampling: "SamplingConfig", arguments: list[str], prefix: str = "--"
) -> "SamplingConfig":
    """Use adaptive steps if the options name a solver or a tolerance, but no number of steps.

    The config of the run may set fixed steps, with which a tolerance would have no effect.

    Args:
        sampling: The parsed settings; those of the run where no option was passed.
        arguments: The words that were parsed.
        prefix: Prefix of the options that set fields of `sampling`, such as `--sampling.`.

    Raises:
        ValueError: If a tolerance is passed together with a number of steps or for a solver
            without an error estimate, or noise settings for a solver that is not of the SDE.
    """
    import dataclasses

    from fmjax._checks import require
    from fmjax.config import SDE_SOLVERS, SOLVERS, can_adapt

    words = [argument.split("=")[0].replace("_", "-") for argument in arguments]
    passed = {word.removeprefix(prefix) for word in words if word.startswith(prefix)}
    passed |= {"num-steps"} & {f"num-{name}" for name in passed}  # --steps is its short form.
    adaptive_options = sorted(passed & _ADAPTIVE_OPTIONS)
    if sampling.solver not in SDE_SOLVERS:
        rule = f"be used with an SDE solver ({', '.join(SDE_SOLVERS)})"
        for name in sorted(passed & _SDE_OPTIONS):
            require(False, name, rule, sampling.solver)
    if passed & _GRID_OPTIONS:
        rule = "be given if grid or shift is given"
        require(sampling.num_steps is not None, "num-steps", rule, "none")
        rule = "not be combined with num-steps"
        for name in adaptive_options:
            require(False, name, rule, f"{sampling.num_steps} steps")
        return sampling
    if not adaptive_options and "solver" not in passed:
        return sampling
    if can_adapt(sampling.solver):
        return dataclasses.replace(sampling, num_steps=None)
    solvers = sorted(filter(can_adapt, SOLVERS), key=lambda name: name != "tsit5")  # tsit5 first.
    rule = f"be used with a solver that estimates its error ({', '.join(solvers)})"
    for name in adaptive_options:
        require(False, name, rule, sampling.solver)
    return sampling
