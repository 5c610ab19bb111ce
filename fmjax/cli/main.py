"""The command line: `fmjax train | sample | compare | evaluate`. The only place that prints."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fmjax.cli.console import console
from fmjax.cli.parsing import Refused, asks_for_help, parse, path_and_rest

if TYPE_CHECKING:
    from fmjax.config import SamplingConfig

USAGE = """\
usage: fmjax COMMAND ... [--help]

  train CONFIG    train from a Python config; leaves a run folder with samples and a report
  sample RUN      draw samples from a run folder
  compare RUN     compare fixed and adaptive solvers on a run
  evaluate RUN    measure samples of a run against its data

`fmjax COMMAND PATH --help` lists the options: every field of the config can be set.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit with 2 and one line for anything the user can mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_run(arguments))


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from fmjax import __version__

        print(f"fmjax {__version__}")
        return 0
    from fmjax._checks import require_one_of

    try:
        require_one_of("command", arguments[0], _COMMANDS)
        if asks_for_help(arguments[1:2]):
            # Which fields there are depends on the path, which is missing.
            print(USAGE, end="")
            return 0
        _prepare_jax()
        from fmjax.training import Interrupted, NonFiniteLoss
    except ValueError as error:
        return _complain(error)
    try:
        _COMMANDS[arguments[0]](arguments[1:])
    except NonFiniteLoss as error:
        return _complain(error, code=1)
    except Interrupted as error:
        print(f"fmjax: {error}", file=sys.stderr)
        return 128 + signal.Signals[error.cause]
    except KeyboardInterrupt:
        print("fmjax: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ValueError, OSError, Refused) as error:
        return _complain(error)
    return 0


def _complain(error: Exception, code: int = 2) -> int:
    """One line; the whole traceback only for whoever asks for it by FMJAX_TRACEBACK=1."""
    if os.environ.get("FMJAX_TRACEBACK") == "1":
        raise error
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {_plainly(error.filename)}" if error.filename else error.strerror
    print(f"fmjax: error: {' '.join(text.split())}", file=sys.stderr)
    return code


def _plainly(name: object) -> object:
    """The folder instead of a hidden temporary file in it, of which the user knows nothing."""
    if isinstance(name, (str, os.PathLike)) and Path(name).name.startswith("."):
        return Path(name).parent
    return name


def _prepare_jax() -> None:
    """Keep compiled programs between runs, unless the user has said where or not to; and memory."""
    import jax

    from fmjax._files import cache_dir
    from fmjax._memory import keep_freed_memory

    if jax.default_backend() == "cpu":
        keep_freed_memory()
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compilation"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


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


def _sample(arguments: list[str]) -> None:
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
        sample_run(open_run(path), sampling, asked.classes, asked.output, progress=progress)


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
        ValueError: If a tolerance is named for a solver that cannot adapt its steps.
    """
    import dataclasses

    from fmjax._checks import require
    from fmjax.config import SOLVERS, can_adapt

    options = [argument.split("=")[0].replace("_", "-") for argument in arguments]
    given = {option.removeprefix(prefix) for option in options if option.startswith(prefix)}
    if "num-steps" in given or not given & {"solver", "rtol", "atol", "control"}:
        return sampling
    if can_adapt(sampling.solver):
        return dataclasses.replace(sampling, num_steps=None)
    # The usual one first.
    adaptive = sorted(filter(can_adapt, SOLVERS), key=lambda name: name != "tsit5")
    rule = f"go with a solver that estimates its error ({', '.join(adaptive)})"
    for name in ("rtol", "atol", "control"):
        require(name not in given, name, rule, sampling.solver)
    return sampling


def _compare(arguments: list[str]) -> None:
    path, rest = path_and_rest("compare", "RUN", arguments)
    from fmjax.config import CompareConfig
    from fmjax.studies.compare_run import compare_run
    from fmjax.studies.report import report_run
    from fmjax.studies.run_folder import open_run, read_config

    asked = parse(CompareConfig, read_config(path).compare, rest, f"fmjax compare {path}")
    with console() as progress:
        run = open_run(path)
        compare_run(run, asked, progress=progress)
        report_run(run, progress=progress)


def _evaluate(arguments: list[str]) -> None:
    path, rest = path_and_rest("evaluate", "RUN", arguments)
    import dataclasses

    import tyro

    from fmjax.config import EvaluationConfig, SamplingConfig
    from fmjax.studies.evaluate import evaluate_run
    from fmjax.studies.report import report_run
    from fmjax.studies.run_folder import open_run, read_config

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
    with console() as progress:
        run = open_run(path)
        evaluate_run(run, asked.evaluation, sampling, progress=progress)
        report_run(run, progress=progress)


_COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "sample": _sample,
    "compare": _compare,
    "evaluate": _evaluate,
}
