"""What each command reads from its arguments, and which job it does with them.

Imports wait until a command needs them, so that a wrong word is refused at once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fmjax._progress import Progress
from fmjax.cli.console import console
from fmjax.cli.parsing import parse, path_and_rest

if TYPE_CHECKING:
    from fmjax.config import SamplingConfig
    from fmjax.studies.run_folder import Run


# Options that mean nothing with fixed steps.
_ADAPTIVE = frozenset({"rtol", "atol", "control", "slots"})


def _train(arguments: list[str]) -> None:
    path, rest = path_and_rest("train", "CONFIG", arguments)
    import dataclasses

    import tyro

    from fmjax.config import Config
    from fmjax.studies.configs import load_config
    from fmjax.studies.train import train

    @dataclasses.dataclass(frozen=True)
    class Train:
        """Train from a config, then sample, compare and report. A stopped run is resumed.

        Attributes:
            config: Every field of the config.
            run: The run folder (default: runs/NAME).
            overwrite: Replace a run that stands there.
        """

        config: Annotated[Config, tyro.conf.arg(name="")]
        run: Path | None = None
        overwrite: bool = False

    asked = parse(Train, Train(config=load_config(path)), rest, f"fmjax train {path}")
    sampling = _adaptive_if_meant(asked.config.sampling, rest, "--sampling.")
    config = dataclasses.replace(asked.config, sampling=sampling)
    folder = Path("runs") / config.name if asked.run is None else asked.run
    with console() as progress:
        run = train(config, folder, overwrite=asked.overwrite, progress=progress)
        from fmjax.studies.results import make_results  # Figures are not needed any sooner.

        make_results(run, progress=progress)


def _sample(arguments: list[str]) -> int:
    path, rest = path_and_rest("sample", "RUN", arguments)
    import dataclasses

    import tyro

    from fmjax.config import SamplingConfig
    from fmjax.studies.run_folder import open_run, read_config
    from fmjax.studies.sample import sample_run

    config = read_config(path)

    @dataclasses.dataclass(frozen=True)
    class Sample:
        """Draw samples from a run: a PNG picture and an .npz file with the numbers.

        Attributes:
            sampling: How noise becomes samples.
            classes: Only these classes (default: all, evenly).
            output: Both files' name without ending (default: within the run folder).
        """

        sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")]
        classes: tuple[int, ...] = ()
        output: Path | None = None

    asked = parse(Sample, Sample(config.sampling), rest, f"fmjax sample {path}")
    sampling = _adaptive_if_meant(asked.sampling, rest)
    with console() as progress:
        drawn = sample_run(open_run(path), sampling, asked.classes, asked.output, progress=progress)
    return 0 if drawn.succeeded.all() else 1


def _adaptive_if_meant(
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


def _on_run(path: Path, work: Callable[["Run", Progress], Any]) -> None:
    """Do `work` on the run, with progress, and make its page anew."""
    from fmjax.studies.report import report_run
    from fmjax.studies.run_folder import open_run

    with console() as progress:
        run = open_run(path)
        work(run, progress)
        report_run(run, progress=progress)


def _compare(arguments: list[str]) -> None:
    path, rest = path_and_rest("compare", "RUN", arguments)
    from fmjax.config import CompareConfig
    from fmjax.studies.compare_run import compare_run
    from fmjax.studies.run_folder import read_config

    asked = parse(CompareConfig, read_config(path).compare, rest, f"fmjax compare {path}")
    _on_run(path, lambda run, progress: compare_run(run, asked, progress=progress))


def _evaluate(arguments: list[str]) -> None:
    path, rest = path_and_rest("evaluate", "RUN", arguments)
    import dataclasses

    import tyro

    from fmjax.config import EvaluationConfig, SamplingConfig
    from fmjax.studies.evaluate import evaluate_run
    from fmjax.studies.run_folder import read_config

    config = read_config(path)

    @dataclasses.dataclass(frozen=True)
    class Evaluate:
        """Measure samples of a run against its data.

        Attributes:
            evaluation: How many samples, and how they are measured.
            sampling: How they are drawn (its number of samples does not count here).
        """

        evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")]
        sampling: SamplingConfig

    default = Evaluate(config.evaluation, config.sampling)
    asked = parse(Evaluate, default, rest, f"fmjax evaluate {path}")
    sampling = _adaptive_if_meant(asked.sampling, rest, "--sampling.")
    _on_run(
        path, lambda run, progress: evaluate_run(run, asked.evaluation, sampling, progress=progress)
    )


def _study(arguments: list[str]) -> None:
    path, rest = path_and_rest("study", "CONFIG", arguments)
    import dataclasses

    from fmjax.studies.configs import load_study
    from fmjax.studies.report import report_study
    from fmjax.studies.study import run_study

    config = load_study(path)

    @dataclasses.dataclass(frozen=True)
    class Study:
        """Train several models, sample each in several ways, and measure all alike.

        What is there already is kept: trainings are resumed, rows not drawn again.

        Attributes:
            num_samples: Samples of each row.
            output: The study's folder (default: runs/NAME).
        """

        num_samples: int = config.num_samples
        output: Path = Path("runs") / config.name

    asked = parse(Study, Study(), rest, f"fmjax study {path}")
    config = dataclasses.replace(config, num_samples=asked.num_samples)
    with console() as progress:
        run_study(config, asked.output, progress=progress)
        report_study(config, asked.output, progress=progress)


def _likelihood(arguments: list[str]) -> None:
    path, rest = path_and_rest("likelihood", "RUN", arguments)
    from fmjax.config.likelihood import LikelihoodConfig
    from fmjax.studies.likelihood import likelihood_run
    from fmjax.studies.run_folder import read_config

    read_config(path)  # A folder that is no run is refused before its options.
    asked = parse(LikelihoodConfig, LikelihoodConfig(), rest, f"fmjax likelihood {path}")
    _on_run(path, lambda run, progress: likelihood_run(run, asked, progress=progress))


def _invert(arguments: list[str]) -> None:
    path, rest = path_and_rest("invert", "RUN", arguments)
    from fmjax.config.inverting import InvertConfig
    from fmjax.studies.invert import invert_run
    from fmjax.studies.run_folder import read_config

    num_images = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    images, rest = tuple(map(Path, rest[:num_images])), rest[num_images:]
    read_config(path)  # A folder that is no run is refused before its options.
    asked = parse(InvertConfig, InvertConfig(), rest, f"fmjax invert {path}")
    _on_run(path, lambda run, progress: invert_run(run, asked, images, progress=progress))


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "train": _train,
    "sample": _sample,
    "compare": _compare,
    "evaluate": _evaluate,
    "likelihood": _likelihood,
    "invert": _invert,
    "study": _study,
}
