"""The commands `train`, `reflow` and `export`.

Jobs are imported inside the functions, so that a misspelled command fails without delay.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fmjax.cli.parsing import parse, split_path
from fmjax.cli.work import command_progress

if TYPE_CHECKING:
    from fmjax.config import Config
    from fmjax.sharding import Processes


def train(arguments: list[str]) -> None:
    """Run `fmjax train CONFIG`."""
    start = time.perf_counter()
    config_file, options = split_path("train", "CONFIG", arguments)
    import dataclasses

    import tyro

    from fmjax.config import Config
    from fmjax.runs.load_config import load_config
    from fmjax.sharding import Processes

    @dataclasses.dataclass(frozen=True)
    class Train:
        """Train from a config, then sample, compare solvers, and write a report.

        A stopped run is resumed. An existing run also accepts more steps, which continue it, and
        other options that do not change the training.

        Attributes:
            config: The experiment, as in its config file.
            run: The run folder (default: runs/NAME).
            overwrite: Replace the run that is in this folder.
            processes: Address and number of the processes, each of which runs this command.
        """

        config: Annotated[Config, tyro.conf.arg(name="")]
        run: Path | None = None
        overwrite: bool = False
        processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes()

    default = Train(config=load_config(config_file))
    args = parse(Train, default, options, f"fmjax train {config_file}")
    _train_and_report(args.config, args.run, args.overwrite, args.processes, start)


def _train_and_report(
    config: "Config", run: Path | None, overwrite: bool, processes: "Processes", start: float
) -> None:
    """Train in all processes of a run, then write samples and report in the main process.

    Args:
        config: The experiment.
        run: The run folder; None takes runs/NAME.
        overwrite: Whether to replace a run in this folder.
        processes: The processes of the run.
        start: `time.perf_counter()` at the start of the command, for the times of its parts.
    """
    from fmjax._arrays import TextShape
    from fmjax.jobs.train.prepare import lock_run
    from fmjax.jobs.train.train import train_folder
    from fmjax.runs.folder import open_run, read_model
    from fmjax.sharding import all_or_none, is_main

    folder = Path("runs") / config.name if run is None else run
    with (
        command_progress(processes, start) as progress,
        lock_run(folder, config, overwrite=overwrite),
    ):
        train_folder(config, folder, overwrite=overwrite, progress=progress)
        with all_or_none("making the results"):
            if is_main() and isinstance(read_model(folder)[1], TextShape):
                progress.say(
                    "training is done; no samples are generated, because they need prompts"
                )
                if config.pretrained is not None:
                    progress.say(f"fmjax export {folder} writes the model for diffusers")
            elif is_main():
                from fmjax.jobs.report.results import make_results  # Not needed for training.

                make_results(open_run(folder, alone=True), progress=progress)


def reflow(arguments: list[str]) -> None:
    """Run `fmjax reflow RUN`."""
    start = time.perf_counter()
    folder, options = split_path("reflow", "RUN", arguments)
    import dataclasses

    import tyro

    from fmjax.config import Config
    from fmjax.jobs.train.reflow import reflow_config
    from fmjax.runs.folder import read_config
    from fmjax.sharding import Processes

    distill = "--distill" in options

    @dataclasses.dataclass(frozen=True)
    class Reflow:
        """Generate pairs of source and target with a run, and train the next flow on them.

        Existing pairs are used again, and a stopped training is resumed.

        Attributes:
            config: Config of the next flow, whose fields default to those of the run.
            distill: Train only the single Euler step from t = 0 to t = 1.
            run: Run folder of the next flow (default: runs/NAME).
            overwrite: Replace the run that is in this folder.
            processes: Address and number of the processes, each of which runs this command.
        """

        config: Annotated[Config, tyro.conf.arg(name="")]
        distill: bool = False
        run: Path | None = None
        overwrite: bool = False
        processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes()

    default = Reflow(reflow_config(read_config(folder), folder, distill=distill), distill)
    args = parse(Reflow, default, options, f"fmjax reflow {folder}")
    _train_and_report(args.config, args.run, args.overwrite, args.processes, start)


def export(arguments: list[str]) -> None:
    """Run `fmjax export RUN`."""
    folder, options = split_path("export", "RUN", arguments)
    import dataclasses

    from fmjax.jobs.released.export import export_run
    from fmjax.runs.folder import read_config

    read_config(folder)  # Check the folder before the options.

    @dataclasses.dataclass(frozen=True)
    class Export:
        """Write the averaged weights of a finetuned released model for diffusers.

        Attributes:
            output: Folder to write to; for adapters also the name of a .safetensors file
                (default: export, in the run folder).
            merged: Write the weights with the adapters added, instead of the adapters.
            pipeline: Write a complete pipeline, whose other parts are copied from the released
                model, instead of the transformer only.
            overwrite: Write into a folder that is not empty.
        """

        output: Path | None = None
        merged: bool = False
        pipeline: bool = False
        overwrite: bool = False

    args = parse(Export, Export(), options, f"fmjax export {folder}")
    output = folder / "export" if args.output is None else args.output
    with command_progress() as progress:
        written = export_run(
            folder,
            output,
            merged=args.merged,
            pipeline=args.pipeline,
            overwrite=args.overwrite,
            progress=progress,
        )
        progress.say(f"wrote {written}")
