"""One function for each command: it parses the arguments and runs the job.

Jobs are imported inside these functions, so that a misspelled command fails without delay.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fmjax._progress import Progress
from fmjax.cli.console import console
from fmjax.cli.parsing import parse, split_path
from fmjax.cli.released import compare_prompt, encode, generate
from fmjax.cli.train import export, reflow, train
from fmjax.cli.work import command_progress

if TYPE_CHECKING:
    from fmjax.runs.folder import Run


def _sample(arguments: list[str]) -> int:
    """Run `fmjax sample RUN`; the exit code is 1 if a solve failed."""
    folder, options = split_path("sample", "RUN", arguments)
    import dataclasses

    import tyro

    from fmjax.config import Sampling
    from fmjax.jobs.sample.sample import sample_run
    from fmjax.runs.folder import open_run, read_config, read_model
    from fmjax.runs.sampling.condition_arrays import num_conditions, read_condition_file

    config = read_config(folder)

    @dataclasses.dataclass(frozen=True)
    class Sample:
        """Sample from a run and write them as a PNG picture and an .npz file of arrays.

        Attributes:
            sampling: Solver, number of samples, guidance and seed.
            classes: Class labels to sample (default: all classes, evenly).
            conditions: An .npz file of conditions, for a run that is conditioned on arrays: `cond`,
                or one array for each key of a dict. Without --num-samples, each is sampled once.
            output: Name of both files without the suffix (default: a name in the run folder).
        """

        sampling: Annotated[Sampling, tyro.conf.arg(name="")]
        classes: tuple[int, ...] = ()
        conditions: Path | None = None
        output: Path | None = None

    args = parse(Sample, Sample(config.sampling), options, f"fmjax sample {folder}")
    sampling, conditions = args.sampling, None
    if args.conditions is not None:
        conditions = read_condition_file(args.conditions, read_model(folder)[1])
        words = {option.split("=")[0].replace("_", "-") for option in options}
        if "--num-samples" not in words:
            sampling = dataclasses.replace(sampling, num_samples=num_conditions(conditions))
    with command_progress() as progress:
        run = open_run(folder)
        samples = sample_run(
            run, sampling, args.classes, args.output, conditions=conditions, progress=progress
        )
    return 0 if samples.succeeded.all() else 1


def _on_run(folder: Path, job: Callable[["Run", Progress], object]) -> None:
    """Run a job on the run in `folder`, show its progress, and update the report page."""
    from fmjax.jobs.report.report import report_run
    from fmjax.runs.folder import open_run

    with command_progress() as progress:
        run = open_run(folder)
        job(run, progress)
        report_run(run, progress=progress)


def _compare(arguments: list[str]) -> None:
    """Run `fmjax compare RUN`, or `fmjax compare FOLDER PROMPT` for a released model."""
    folder, options = split_path("compare", "RUN", arguments)
    from fmjax.pretrained.folder import is_model_folder

    if is_model_folder(folder):
        compare_prompt(folder, options)
        return
    from fmjax.config import CompareConfig
    from fmjax.jobs.compare.compare_run import compare_run
    from fmjax.runs.folder import read_config

    default = read_config(folder).compare
    config = parse(CompareConfig, default, options, f"fmjax compare {folder}")
    _on_run(folder, lambda run, progress: compare_run(run, config, progress=progress))


def _evaluate(arguments: list[str]) -> None:
    """Run `fmjax evaluate RUN`."""
    folder, options = split_path("evaluate", "RUN", arguments)
    import dataclasses

    import tyro

    from fmjax.config import EvaluationConfig, Sampling
    from fmjax.jobs.evaluate.evaluate import evaluate_run
    from fmjax.runs.folder import read_config

    config = read_config(folder)

    @dataclasses.dataclass(frozen=True)
    class Evaluate:
        """Compare samples of a run with its data by metrics such as the Frechet distance.

        Attributes:
            evaluation: Number of samples, and which metrics are computed.
            sampling: How the samples are generated; `--sampling.num-samples` has no effect here.
        """

        evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")]
        sampling: Sampling

    default = Evaluate(config.evaluation, config.sampling)
    args = parse(Evaluate, default, options, f"fmjax evaluate {folder}")
    _on_run(
        folder,
        lambda run, progress: evaluate_run(run, args.evaluation, args.sampling, progress=progress),
    )


def _study(arguments: list[str]) -> None:
    """Run `fmjax study CONFIG`."""
    config_file, options = split_path("study", "CONFIG", arguments)
    import dataclasses

    from fmjax.jobs.report.report import report_study
    from fmjax.jobs.study.study import run_study
    from fmjax.runs.load_config import load_study

    config = load_study(config_file)

    @dataclasses.dataclass(frozen=True)
    class Study:
        """Train several models, sample each in several ways, and evaluate all by the same metrics.

        Existing results are kept: stopped trainings are resumed, finished rows are not repeated.

        Attributes:
            num_samples: Number of samples for each row of the table.
            num_seeds: Number of trainings of each model, with different seeds; the table then has
                means and spreads.
            output: Folder of the study (default: runs/NAME).
        """

        num_samples: int = config.num_samples
        num_seeds: int = config.num_seeds
        output: Path = Path("runs") / config.name

    args = parse(Study, Study(), options, f"fmjax study {config_file}")
    config = dataclasses.replace(config, num_samples=args.num_samples, num_seeds=args.num_seeds)
    with command_progress() as progress:
        run_study(config, args.output, progress=progress)
        report_study(config, args.output, progress=progress)


def _likelihood(arguments: list[str]) -> None:
    """Run `fmjax likelihood RUN`."""
    folder, options = split_path("likelihood", "RUN", arguments)
    from fmjax.config.likelihood import LikelihoodConfig
    from fmjax.jobs.evaluate.likelihood import likelihood_run
    from fmjax.runs.folder import read_config

    read_config(folder)  # Check the folder before the options.
    config = parse(LikelihoodConfig, LikelihoodConfig(), options, f"fmjax likelihood {folder}")
    _on_run(folder, lambda run, progress: likelihood_run(run, config, progress=progress))


def _invert(arguments: list[str]) -> None:
    """Run `fmjax invert RUN [IMAGES...]`."""
    folder, words = split_path("invert", "RUN", arguments)
    from fmjax.config.invert import InvertConfig
    from fmjax.jobs.invert.invert import invert_run
    from fmjax.runs.folder import read_config

    num_images = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    images, options = tuple(map(Path, words[:num_images])), words[num_images:]
    read_config(folder)  # Check the folder before the options.
    config = parse(InvertConfig, InvertConfig(), options, f"fmjax invert {folder}")
    _on_run(folder, lambda run, progress: invert_run(run, config, images, progress=progress))


def _plan(arguments: list[str]) -> int:
    """Run `fmjax plan CONFIG`; the exit code is 1 if the last plan does not fit the devices."""
    config_file, options = split_path("plan", "CONFIG", arguments)
    import dataclasses

    import tyro

    from fmjax.config import Config, PlanConfig
    from fmjax.runs.load_config import load_config

    @dataclasses.dataclass(frozen=True)
    class Plan:
        """Compile a config for accelerators that are not present; print memory, speed and price.

        Attributes:
            plan: Which program is compiled, for which devices, and the price of a device.
            config: The experiment, as in its config file.
            json: JSON file to write the full results to.
            picture: PNG file to write a chart of the memory to.
        """

        plan: Annotated[PlanConfig, tyro.conf.arg(name="")]
        config: Annotated[Config, tyro.conf.arg(name="")]
        json: Path | None = None
        picture: Path | None = None

    default = Plan(PlanConfig(), load_config(config_file))
    args = parse(Plan, default, options, f"fmjax plan {config_file}")
    from fmjax._checks import require
    from fmjax._files import is_same_location, lock_outputs, require_target
    from fmjax.jobs.planning.plan import plan
    from fmjax.report.plan import plan_text, plans_json, plot_memory
    from fmjax.report.style import png_bytes, save_png
    from fmjax.runs.folder import write_text

    if args.json is not None:
        require_target(args.json, "json", inputs=[config_file])
    if args.picture is not None:
        require_target(args.picture, "picture", suffix=".png", inputs=[config_file])
    if args.json is not None and args.picture is not None:
        distinct = not is_same_location(args.json, args.picture)
        require(distinct, "picture", "be another file than json", args.picture)
    outputs = [file for file in (args.json, args.picture) if file is not None]
    # Not in `command_progress`, because `plan` sets up the devices itself and runs no program.
    with console() as progress, lock_outputs(*outputs):
        plans = plan(args.config, args.plan, progress=progress)
        for shown_plan in plans if len(plans) == 1 else (plans[0], plans[-1]):
            progress.say(plan_text(shown_plan))
        if args.json is not None:
            write_text(args.json, plans_json(plans))
        if args.picture is not None:
            save_png(png_bytes(plot_memory(plans)), args.picture)
    return 0 if plans[-1].fits else 1


def _data(arguments: list[str]) -> None:
    """Run `fmjax data CONFIG`."""
    config_file, options = split_path("data", "CONFIG", arguments)
    import dataclasses

    import tyro

    from fmjax.config import Config
    from fmjax.runs.load_config import load_config

    @dataclasses.dataclass(frozen=True)
    class Data:
        """Load the data of a config; print counts, range and classes; write a picture of examples.

        Attributes:
            config: The experiment, as in its config file; only its data are used.
            output: PNG file of the examples (default: runs/NAME-data.png).
        """

        config: Annotated[Config, tyro.conf.arg(name="")]
        output: Path | None = None

    default = Data(load_config(config_file))
    args = parse(Data, default, options, f"fmjax data {config_file}")
    from fmjax.jobs.data.describe import describe_data

    output = args.output
    if output is None:
        output = Path("runs") / f"{args.config.name}-data.png"
    with console() as progress:  # Not `command_progress`, because no program runs on devices.
        describe_data(args.config, output, progress=progress)


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
    "data": _data,
}
