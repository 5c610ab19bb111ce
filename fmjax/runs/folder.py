"""The folder of one run: what it holds, and how it is made, resumed and read."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np

from fmjax._arrays import Conditions, Params, TextShape, TokenShape
from fmjax._checks import require, require_unicode
from fmjax._files import lock_outputs, require_exists, write_atomically
from fmjax._json import EventShape, Size, read_json
from fmjax.config import Config, Experiment, build, from_json
from fmjax.data import WordTokenizer, read_word_tokenizer
from fmjax.paths import AffinePath
from fmjax.sharding import MeshConfig, laid_out, make_mesh
from fmjax.training import restore_ema

Rest = ParamSpec("Rest")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RunFolder:
    """Paths within a run folder; the folder itself may not exist yet.

    Raises:
        ValueError: If the absolute path of the folder is not UTF-8.
    """

    path: Path

    def __post_init__(self) -> None:
        # Orbax and TensorBoard cannot write to other names.
        require_unicode("run folder", self.path.absolute())

    @property
    def config(self) -> Path:
        """The whole config."""
        return self.path / "config.json"

    @property
    def model(self) -> Path:
        """What the network was built for: the event's shape and the number of classes."""
        return self.path / "model.json"

    @property
    def tokenizer(self) -> Path:
        """Of a run on captions, what makes numbers of prompts."""
        return self.path / "tokenizer.json"

    @property
    def checkpoints(self) -> Path:
        """Orbax's folder."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One line of JSON for every `log_every` steps; TensorBoard's events stand beside it."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Pictures of samples, each with its numbers as .npz."""
        return self.path / "samples"

    @property
    def comparison(self) -> Path:
        """The solver comparison, as `fmjax.report.comparison` writes it (a CSV is beside it)."""
        return self.path / "comparison.json"

    @property
    def likelihood(self) -> Path:
        """How likely the model finds test data."""
        return self.path / "likelihood.json"

    @property
    def gallery(self) -> Path:
        """Some samples of every row of the comparison."""
        return self.path / "gallery.npz"

    @property
    def grid(self) -> Path:
        """The density of the calibrated grid, and which weights it is of."""
        return self.path / "grid.json"

    @property
    def evaluation(self) -> Path:
        """The metrics of the samples."""
        return self.path / "evaluation.json"

    @property
    def paths(self) -> Path:
        """How straight the model's paths are."""
        return self.path / "paths.json"

    @property
    def inversion(self) -> Path:
        """What is lost from images to noise and back."""
        return self.path / "inversion.json"

    @property
    def report(self) -> Path:
        """The page that shows it all."""
        return self.path / "report.html"


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_config(path: Path) -> Config:
    """The config of the run in folder `path`.

    Raises:
        ValueError: If the folder is no run, or its config cannot be read.
    """
    folder = RunFolder(path)
    require_exists("run folder", path)
    for file in (folder.config, folder.model):
        require(file.is_file(), f"run folder {path}", f"hold {file.name}", "no such file")
    return as_read(from_json(folder.config.read_bytes(), str(folder.config)))


class _Model(NamedTuple):
    """What `model.json` holds."""

    event_shape: EventShape
    num_classes: Size | None
    text: TextShape | None = None
    tokens: TokenShape | None = None
    captions: tuple[str, ...] = ()


def as_read(config: Config) -> Config:
    """The config, with what older versions wrote for defaults as they are now.

    Every run had `path.min_divisor` 0.001, which bounded all conversions; now 0 is the default,
    and they are exact.
    """
    if config.path.min_divisor != 1e-3:
        return config
    return dataclasses.replace(config, path=AffinePath(config.path.schedule))


def require_no_run(folder: Path, name: str = "output") -> None:
    """Raise a `ValueError` if a folder is that of a run, whose results would be replaced."""
    require(not RunFolder(folder).model.is_file(), name, "be no run folder", folder)


def read_model(path: Path) -> tuple[tuple[int, ...], Conditions]:
    """The event shape and the conditions of the run in folder `path`.

    Raises:
        ValueError: If the file is not what `prepare` wrote.
    """
    model = read_json(RunFolder(path).model, _Model)
    conditions = [model.tokens, model.text, model.num_classes]
    return model.event_shape, next((each for each in conditions if each is not None), None)


def read_captions(path: Path) -> tuple[str, ...]:
    """Some captions that the run in folder `path` was trained on; none of a run without.

    Raises:
        ValueError: If the file is not what `prepare` wrote.
    """
    return read_json(RunFolder(path).model, _Model).captions


def some_texts(texts: Sequence[str], num: int) -> list[str]:
    """At most `num` of the different texts, evenly chosen."""
    different = list(dict.fromkeys(texts))
    chosen = np.linspace(0, len(different) - 1, min(num, len(different)))
    return [different[place] for place in chosen.astype(int)]


class Run(NamedTuple):
    """A trained run, ready to sample from.

    Attributes:
        folder: Where it lies.
        config: What it was made with.
        experiment: The functions the config builds.
        event_shape: One example's shape.
        conditions: What it is conditioned on.
        params: Averaged weights of the newest checkpoint, laid over the mesh.
        step: The optimiser step of that checkpoint.
        mesh: The mesh they lie on.
    """

    folder: RunFolder
    config: Config
    experiment: Experiment
    event_shape: tuple[int, ...]
    conditions: Conditions
    params: Params
    step: int
    mesh: jax.sharding.Mesh

    @property
    def num_classes(self) -> int | None:
        """None for a model without."""
        return self.conditions if isinstance(self.conditions, int) else None

    @property
    def tokenizer(self) -> WordTokenizer:
        """What makes numbers of prompts, of a run on captions."""
        return read_word_tokenizer(self.folder.tokenizer)

    @property
    def captions(self) -> tuple[str, ...]:
        """Some that it was trained on, none of a run without."""
        return read_captions(self.folder.path)


def _mesh_for(config: MeshConfig) -> jax.sharding.Mesh:
    """The layout that the run was trained on, or, on other devices, a copy on each of them.

    Restoring lays the weights anew, so any layout will do that they fit.
    """
    try:
        return make_mesh(config)
    except ValueError:
        return make_mesh()


def open_run(path: Path | str, *, alone: bool = False) -> Run:
    """Read a run folder and the averaged weights of its newest checkpoint.

    Args:
        path: The run folder.
        alone: For this process's own devices, whatever the others do.

    Raises:
        ValueError: If the folder is no run, has no checkpoint, or the checkpoint is corrupt
            or belongs to another model.
    """
    path = Path(path)
    folder, config = RunFolder(path), read_config(path)
    event_shape, conditions = read_model(path)
    if isinstance(conditions, TextShape):
        raise ValueError(
            f"run folder {path} must be of a model of classes or of none, got one of "
            "text, for which there are no prompts here"
        )
    experiment = build(config, event_shape, conditions)
    apart = alone and jax.process_count() > 1
    mesh = make_mesh(devices=jax.local_devices()) if apart else _mesh_for(config.mesh)
    like = jax.eval_shape(experiment.net.init, jax.random.key(0))
    like = laid_out(like, mesh, experiment.net.tensor_axes)
    params, step = restore_ema(folder.checkpoints, like, alone=alone)
    return Run(folder, config, experiment, event_shape, conditions, params, step, mesh)


def writes(
    *names: str,
) -> Callable[[Callable[Concatenate[Run, Rest], Result]], Callable[Concatenate[Run, Rest], Result]]:
    """Decorate a job on a run: hold the files that it writes, and no others.

    The run may be trained on meanwhile. A second process with the same job is refused.

    Args:
        names: The files within the run folder.
    """

    def decorate(
        job: Callable[Concatenate[Run, Rest], Result],
    ) -> Callable[Concatenate[Run, Rest], Result]:
        @functools.wraps(job)
        def holding(run: Run, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
            with lock_outputs(*(run.folder.path / name for name in names), name="run folder"):
                return job(run, *args, **kwargs)

        return holding

    return decorate
