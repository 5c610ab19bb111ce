"""What each command reads from its arguments, and which job it does with them.

Imports wait until a command needs them, so that a wrong word is refused at once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fmjax._progress import Progress
from fmjax.cli.console import console
from fmjax.cli.parsing import parse, path_and_rest
from fmjax.cli.released import compare_prompt, encode, generate
from fmjax.cli.steps import adaptive_if_meant
from fmjax.cli.train import export, reflow, train
from fmjax.cli.work import working

if TYPE_CHECKING:
    from fmjax.runs.folder import Run


def _sample(arguments: list[str]) -> int:
    path, rest = path_and_rest("sample", "RUN", arguments)
    import dataclasses

    import tyro

    from fmjax.config import SamplingConfig
    from fmjax.jobs.sample.sample import sample_run
    from fmjax.runs.folder import open_run, read_config

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
    sampling = adaptive_if_meant(asked.sampling, rest)
    with working() as progress:
        drawn = sample_run(open_run(path), sampling, asked.classes, asked.output, progress=progress)
    return 0 if drawn.succeeded.all() else 1


def _on_run(path: Path, work: Callable[["Run", Progress], Any]) -> None:
    """Do `work` on the run, with progress, and make its page anew."""
    from fmjax.jobs.report.report import report_run
    from fmjax.runs.folder import open_run

    with working() as progress:
        run = open_run(path)
        work(run, progress)
        report_run(run, progress=progress)


def _compare(arguments: list[str]) -> None:
    path, rest = path_and_rest("compare", "RUN", arguments)
    from fmjax.pretrained.folder import is_model_folder

    if is_model_folder(path):
        compare_prompt(path, rest)
        return
    from fmjax.config import CompareConfig
    from fmjax.jobs.compare.compare_run import compare_run
    from fmjax.runs.folder import read_config

    asked = parse(CompareConfig, read_config(path).compare, rest, f"fmjax compare {path}")
    _on_run(path, lambda run, progress: compare_run(run, asked, progress=progress))


def _evaluate(arguments: list[str]) -> None:
    path, rest = path_and_rest("evaluate", "RUN", arguments)
    import dataclasses

    import tyro

    from fmjax.config import EvaluationConfig, SamplingConfig
    from fmjax.jobs.evaluate.evaluate import evaluate_run
    from fmjax.runs.folder import read_config

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
    sampling = adaptive_if_meant(asked.sampling, rest, "--sampling.")
    _on_run(
        path, lambda run, progress: evaluate_run(run, asked.evaluation, sampling, progress=progress)
    )


def _study(arguments: list[str]) -> None:
    path, rest = path_and_rest("study", "CONFIG", arguments)
    import dataclasses

    from fmjax.jobs.report.report import report_study
    from fmjax.jobs.study.study import run_study
    from fmjax.runs.load_config import load_study

    config = load_study(path)

    @dataclasses.dataclass(frozen=True)
    class Study:
        """Train several models, sample each in several ways, and measure all alike.

        What is there already is kept: trainings are resumed, rows not drawn again.

        Attributes:
            num_samples: Samples of each row.
            num_seeds: Trainings of each model, for how far the figures spread.
            output: The study's folder (default: runs/NAME).
        """

        num_samples: int = config.num_samples
        num_seeds: int = config.num_seeds
        output: Path = Path("runs") / config.name

    asked = parse(Study, Study(), rest, f"fmjax study {path}")
    config = dataclasses.replace(config, num_samples=asked.num_samples, num_seeds=asked.num_seeds)
    with working() as progress:
        run_study(config, asked.output, progress=progress)
        report_study(config, asked.output, progress=progress)


def _likelihood(arguments: list[str]) -> None:
    path, rest = path_and_rest("likelihood", "RUN", arguments)
    from fmjax.config.likelihood import LikelihoodConfig
    from fmjax.jobs.evaluate.likelihood import likelihood_run
    from fmjax.runs.folder import read_config

    read_config(path)  # A folder that is no run is refused before its options.
    asked = parse(LikelihoodConfig, LikelihoodConfig(), rest, f"fmjax likelihood {path}")
    _on_run(path, lambda run, progress: likelihood_run(run, asked, progress=progress))


def _invert(arguments: list[str]) -> None:
    path, rest = path_and_rest("invert", "RUN", arguments)
    from fmjax.config.invert import InvertConfig
    from fmjax.jobs.invert.invert import invert_run
    from fmjax.runs.folder import read_config

    num_images = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    images, rest = tuple(map(Path, rest[:num_images])), rest[num_images:]
    read_config(path)  # A folder that is no run is refused before its options.
    asked = parse(InvertConfig, InvertConfig(), rest, f"fmjax invert {path}")
    _on_run(path, lambda run, progress: invert_run(run, asked, images, progress=progress))


def _plan(arguments: list[str]) -> int:
    path, rest = path_and_rest("plan", "CONFIG", arguments)
    import dataclasses

    import tyro

    from fmjax.config import Config, PlanConfig
    from fmjax.runs.load_config import load_config

    @dataclasses.dataclass(frozen=True)
    class Plan:
        """Compile the training step for accelerators that are not here: memory, speed, price.

        Attributes:
            plan: For what, and at which price.
            config: Every field of the config.
            json: Also write all that was found to this file.
            picture: And a picture of the memory to this one.
        """

        plan: Annotated[PlanConfig, tyro.conf.arg(name="")]
        config: Annotated[Config, tyro.conf.arg(name="")]
        json: Path | None = None
        picture: Path | None = None

    default = Plan(PlanConfig(), load_config(path))
    asked = parse(Plan, default, rest, f"fmjax plan {path}")
    from fmjax._checks import require
    from fmjax._files import lock_outputs, require_target, same_place
    from fmjax.jobs.planning.plan import plan
    from fmjax.report.plan import plan_text, plans_json, plot_memory
    from fmjax.report.style import png_bytes, save_png
    from fmjax.runs.folder import write_text

    if asked.json is not None:
        require_target(asked.json, "json", inputs=[path])
    if asked.picture is not None:
        require_target(asked.picture, "picture", suffix=".png", inputs=[path])
    if asked.json is not None and asked.picture is not None:
        apart = not same_place(asked.json, asked.picture)
        require(apart, "picture", "be another file than json", asked.picture)
    files = [each for each in (asked.json, asked.picture) if each is not None]
    # Without `working`: it chooses devices by itself, and nothing it compiles can run here.
    with console() as progress, lock_outputs(*files):
        plans = plan(asked.config, asked.plan, progress=progress)
        for each in plans if len(plans) == 1 else (plans[0], plans[-1]):
            progress.say(plan_text(each))
        if asked.json is not None:
            write_text(asked.json, plans_json(plans))
        if asked.picture is not None:
            save_png(png_bytes(plot_memory(plans)), asked.picture)
    return 0 if plans[-1].fits else 1


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "train": train,
    "export": export,
    "reflow": reflow,
    "generate": generate,
    "encode": encode,
    "sample": _sample,
    "compare": _compare,
    "evaluate": _evaluate,
    "likelihood": _likelihood,
    "invert": _invert,
    "study": _study,
    "plan": _plan,
}
