"""Choose fixed or adaptive steps from the sampling options that the user passed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmjax.config import SamplingConfig


def choose_steps(
    sampling: "SamplingConfig", arguments: list[str], prefix: str = "--"
) -> "SamplingConfig":
    """Use adaptive steps if the options name a solver or a tolerance, but no number of steps.

    Args:
        sampling: The parsed settings; those of the run where no option was passed.
        arguments: The words that were parsed.
        prefix: Prefix of the options that set fields of `sampling`, such as `--sampling.`.

    Raises:
        ValueError: As for `fmjax.config.choose_steps`.
    """
    from fmjax.config.choose_steps import choose_steps

    words = [argument.split("=")[0].replace("-", "_") for argument in arguments]
    prefix = prefix.replace("-", "_")
    named = {word.removeprefix(prefix) for word in words if word.startswith(prefix)}
    named |= {"num_steps"} & {f"num_{name}" for name in named}  # --steps is its short form.
    return choose_steps(sampling, named, lambda name: name.replace("_", "-"))
