"""Which steps are meant by who names some options of sampling, and not others."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmjax.config import SamplingConfig

# Options that mean nothing with fixed steps.
_ADAPTIVE = frozenset({"rtol", "atol", "control", "slots"})


def adaptive_if_meant(
    sampling: "SamplingConfig", arguments: list[str], prefix: str = "--"
) -> "SamplingConfig":
    """Adaptive steps for who names a solver or a tolerance, but no number of steps.

    The run's own config may take fixed steps, which would make a tolerance mean nothing.

    Args:
        sampling: As it was parsed, the run's own where nothing was given.
        arguments: What it was parsed from.
        prefix: Of the options that set fields of `sampling`.

    Raises:
        ValueError: If a tolerance is named for a solver that cannot adapt its steps, or beside
            a number of steps.
    """
    import dataclasses

    from fmjax._checks import require
    from fmjax.config import SDE_SOLVERS, SOLVERS, can_adapt

    options = [argument.split("=")[0].replace("_", "-") for argument in arguments]
    given = {option.removeprefix(prefix) for option in options if option.startswith(prefix)}
    tolerances = given & _ADAPTIVE
    stirs = given & {"rate", "rate-scale", "rate-power", "last-step"}
    rule = f"go with a solver of the SDE ({', '.join(SDE_SOLVERS)})"
    for name in sorted(stirs if sampling.solver not in SDE_SOLVERS else ()):
        require(False, name, rule, sampling.solver)
    on_grid = given & {"num-steps", "grid", "shift"}
    if on_grid:
        rule = "be given for a grid to lie on"
        require(sampling.num_steps is not None, "num-steps", rule, "none")
        rule = "go without a number of steps, which fixes them whatever the error"
        for name in sorted(tolerances):
            require(False, name, rule, f"{sampling.num_steps} steps")
        return sampling
    if not tolerances and "solver" not in given:
        return sampling
    if can_adapt(sampling.solver):
        return dataclasses.replace(sampling, num_steps=None)
    # The usual one first.
    adaptive = sorted(filter(can_adapt, SOLVERS), key=lambda name: name != "tsit5")
    rule = f"go with a solver that estimates its error ({', '.join(adaptive)})"
    for name in sorted(_ADAPTIVE):
        require(name not in given, name, rule, sampling.solver)
    return sampling
