"""The commands that train: what each reads from its arguments, and the job they do alike.

Imports wait until a command needs them, so that a wrong word is refused at once.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fmjax.cli.parsing import parse, path_and_rest
from fmjax.cli.steps import adaptive_if_meant
from fmjax.cli.work import working

if TYPE_CHECKING:
    from fmjax.config import Config
    from fmjax.sharding import Processes


def train(arguments: list[str]) -> None:
    """`fmjax train CONFIG`."""
    start = time.perf_counter()
    path, rest = path_and_rest("train", "CONFIG", arguments)
    import dataclasses

    import tyro

    from fmjax.config import Config
    from fmjax.runs.load_config import load_config
    from fmjax.sharding import Processes

    @dataclasses.dataclass(frozen=True)
    class Train:
        """Train from a config, then sample, compare and report. A stopped run is resumed.

        Attributes:
            config: Every field of the config.
            run: The run folder (default: runs/NAME).
            overwrite: Replace a run that stands there.
            processes: The same command runs in each of them.
        """

        config: Annotated[Config, tyro.conf.arg(name="")]
        run: Path | None = None
        overwrite: bool = False
        processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes()

    asked = parse(Train, Train(config=load_config(path)), rest, f"fmjax train {path}")
    sampling = adaptive_if_meant(asked.config.sampling, rest, "--sampling.")
    config = dataclasses.replace(asked.config, sampling=sampling)
    _train_and_show(config, asked.run, asked.overwrite, asked.processes, start)


def _train_and_show(
    config: "Config", run: Path | None, overwrite: bool, processes: "Processes", start: float
) -> None:
    """Train in the processes of a run, and make the results in the first of them.

    At the end it prints the time of each part since `start`, of `time.perf_counter()`.
    """
    from fmjax._arrays import TextShape
    from fmjax.jobs.train.prepare import lock_run
    from fmjax.jobs.train.train import train_folder
    from fmjax.runs.folder import open_run, read_model
    from fmjax.sharding import all_or_none, is_main

    folder = Path("runs") / config.name if run is None else run
    with working(processes, start) as progress, lock_run(folder, config, overwrite=overwrite):
        train_folder(config, folder, overwrite=overwrite, progress=progress)
        with all_or_none("making the results"):
            if is_main() and isinstance(read_model(folder)[1], TextShape):
                progress.say("trained; samples of a model of text need prompts: none are drawn")
                if config.pretrained is not None:
                    progress.say(f"fmjax export {folder} writes it for diffusers")
            elif is_main():
                from fmjax.jobs.report.results import make_results  # Figures are not needed sooner.

                make_results(open_run(folder, alone=True), progress=progress)


def reflow(arguments: list[str]) -> None:
    """`fmjax reflow RUN`."""
    start = time.perf_counter()
    path, rest = path_and_rest("reflow", "RUN", arguments)
    import dataclasses

    import tyro

    from fmjax.config import Config
    from fmjax.jobs.train.reflow import reflow_config
    from fmjax.runs.folder import read_config
    from fmjax.sharding import Processes

    distill = "--distill" in rest

    @dataclasses.dataclass(frozen=True)
    class Reflow:
        """Make pairs with a run, and train the next flow on them from its weights.

        Pairs that are there are not made again, and a stopped training is resumed.

        Attributes:
            config: Every field of the next flow's config.
            distill: Train its one step from t = 0 to t = 1 only.
            run: The run folder (default: runs/NAME).
            overwrite: Replace a run that stands there.
            processes: The same command runs in each of them.
        """

        config: Annotated[Config, tyro.conf.arg(name="")]
        distill: bool = False
        run: Path | None = None
        overwrite: bool = False
        processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes()

    default = Reflow(reflow_config(read_config(path), path, distill=distill), distill)
    asked = parse(Reflow, default, rest, f"fmjax reflow {path}")
    sampling = adaptive_if_meant(asked.config.sampling, rest, "--sampling.")
    config = dataclasses.replace(asked.config, sampling=sampling)
    _train_and_show(config, asked.run, asked.overwrite, asked.processes, start)


def export(arguments: list[str]) -> None:
    """`fmjax export RUN`."""
    path, rest = path_and_rest("export", "RUN", arguments)
    import dataclasses

    from fmjax.jobs.released.export import export_run
    from fmjax.runs.folder import read_config

    read_config(path)  # A folder that is no run is refused before its options.

    @dataclasses.dataclass(frozen=True)
    class Export:
        """Write what was trained on a released model, for diffusers: the averaged weights.

        Attributes:
            output: Of adapters, a folder for pytorch_lora_weights.safetensors or a .safetensors
                file; of all weights, a folder (default: export, within the run folder).
            merged: Write the weights with the adapters added, not the adapters.
            pipeline: Write the whole pipeline, its other parts copied, not the transformer alone.
            overwrite: Write into a folder that holds files.
        """

        output: Path | None = None
        merged: bool = False
        pipeline: bool = False
        overwrite: bool = False

    asked = parse(Export, Export(), rest, f"fmjax export {path}")
    output = path / "export" if asked.output is None else asked.output
    with working() as progress:
        written = export_run(
            path,
            output,
            merged=asked.merged,
            pipeline=asked.pipeline,
            overwrite=asked.overwrite,
            progress=progress,
        )
        progress.say(f"wrote {written}")
