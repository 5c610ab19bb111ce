"""Run folders: the files they contain, and how to open them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from fmjax._arrays import Params, TextShape
from fmjax._checks import require, require_unicode
from fmjax._files import lock_outputs, require_exists, write_atomically
from fmjax._inputs import require_points
from fmjax._json import EventShape, Size, read_json
from fmjax._progress import Progress, Silent
from fmjax._specs import (
    CondSpec,
    class_spec,
    has_arrays,
    num_classes,
    read_cond_spec,
    token_spec,
)
from fmjax.config import (
    Config,
    Experiment,
    LikelihoodConfig,
    Sampling,
    build,
    from_json,
    register_classes,
)
from fmjax.data import Standardization, WordTokenizer, read_standardization, read_word_tokenizer
from fmjax.paths import AffinePath
from fmjax.runs.sample_set import SampleSet
from fmjax.sharding import MeshConfig, make_mesh, with_shardings
from fmjax.solvers import Model
from fmjax.training import restore_ema

Rest = ParamSpec("Rest")
Result = TypeVar("Result")
Labels = jax.Array | np.ndarray | Sequence[int] | int


@dataclass(frozen=True)
class RunFolder:
    """The files of a run folder; the folder does not need to exist.

    Attributes:
        root: The run folder.

    Raises:
        ValueError: If the absolute path of the folder is not UTF-8.
    """

    root: Path

    def __post_init__(self) -> None:
        # Orbax and TensorBoard cannot write to file names that are not UTF-8.
        require_unicode("run folder", self.root.absolute())

    @property
    def config(self) -> Path:
        """The complete config."""
        return self.root / "config.json"

    @property
    def model(self) -> Path:
        """The event shape, the conditions of the network, and the names of the classes."""
        return self.root / "model.json"

    @property
    def extensions(self) -> Path:
        """Changes of the number of steps after some steps were trained."""
        return self.root / "extensions.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer of a run conditioned on captions."""
        return self.root / "tokenizer.json"

    @property
    def standardization(self) -> Path:
        """Mean and standard deviation of the training data of a run that standardizes them."""
        return self.root / "standardization.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of the Orbax checkpoints."""
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Training metrics, one line of JSON every `log_every` steps."""
        return self.root / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """The folder of samples, as pictures and as .npz files."""
        return self.root / "samples"

    @property
    def sample_grid(self) -> Path:
        """The samples that the report shows, next to a picture."""
        return self.samples / "grid.npz"

    @property
    def comparison(self) -> Path:
        """The solver comparison that `fmjax.report.comparison` writes, next to a CSV file."""
        return self.root / "comparison.json"

    @property
    def likelihood(self) -> Path:
        """The log-likelihood of test data."""
        return self.root / "likelihood.json"

    @property
    def gallery(self) -> Path:
        """Samples of every row of the comparison."""
        return self.root / "gallery.npz"

    @property
    def grid(self) -> Path:
        """The density of the calibrated time grid."""
        return self.root / "grid.json"

    @property
    def evaluation(self) -> Path:
        """Metrics of the samples."""
        return self.root / "evaluation.json"

    @property
    def evaluation_samples(self) -> Path:
        """The samples of the evaluation, with the settings that they belong to."""
        return self.samples / "evaluation.npz"

    @property
    def straightness(self) -> Path:
        """The straightness of the trajectories; `paths.json` in runs of older versions."""
        older = self.root / "paths.json"
        return older if older.exists() else self.root / "straightness.json"

    @property
    def posterior(self) -> Path:
        """Calibration of the posteriors of a simulator's parameters."""
        return self.root / "posterior.json"

    @property
    def posterior_samples(self) -> Path:
        """Ranks, log-densities and samples of the posteriors of test observations."""
        return self.samples / "posterior.npz"

    @property
    def inversion(self) -> Path:
        """Errors of round trips from images to noise and back."""
        return self.root / "inversion.json"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "report.html"


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with write_atomically(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_config(folder: Path) -> Config:
    """Read the config of the run in a folder.

    Raises:
        ValueError: If the folder is not a run, or its config cannot be read.
    """
    files = RunFolder(folder)
    require_exists("run folder", folder)
    for file in (files.config, files.model):
        require(file.is_file(), f"run folder {folder}", f"hold {file.name}", "no such file")
    return with_current_defaults(from_json(files.config.read_bytes(), str(files.config)))


class _OldTokens(NamedTuple):
    """Sizes of captions in `model.json` of older versions."""

    num_tokens: Size
    vocab_size: Size


class _Model(NamedTuple):
    """Contents of `model.json`; older versions stored the conditions in three other fields."""

    event_shape: EventShape
    conditions: dict[str, Any] | None = None
    captions: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    num_classes: Size | None = None
    text: TextShape | None = None
    tokens: _OldTokens | None = None


def _conditions(model: _Model, file: Path) -> CondSpec:
    """Return the conditions in `model.json` of this version or an older one."""
    if model.tokens is not None:
        return token_spec(model.tokens.num_tokens, model.tokens.vocab_size)
    if model.text is not None:
        return model.text
    if model.num_classes is not None:
        return class_spec(model.num_classes)
    return read_cond_spec(model.conditions, f"{file}: conditions")


def with_current_defaults(config: Config) -> Config:
    """Replace defaults of older versions in a config by the current defaults.

    `path.min_divisor` was 0.001 by default, which bounded the conversions among predictions. Its
    default is now 0, which makes the conversions exact.
    """
    path = config.path
    if not isinstance(path, AffinePath) or path.min_divisor != 1e-3:
        return config
    return dataclasses.replace(config, path=AffinePath(path.schedule))


def require_no_run(folder: Path, name: str = "output") -> None:
    """Raise a `ValueError` if a folder is a run folder, whose files would be overwritten."""
    require(not RunFolder(folder).model.is_file(), name, "not be a run folder", folder)


def read_model(folder: Path) -> tuple[tuple[int, ...], CondSpec]:
    """Read the event shape and the conditions of the run in a folder.

    Raises:
        ValueError: If `model.json` is missing or invalid.
    """
    file = RunFolder(folder).model
    model = read_json(file, _Model)
    return model.event_shape, _conditions(model, file)


def read_captions(folder: Path) -> tuple[str, ...]:
    """Read example captions of the training data of the run in a folder.

    Returns:
        The captions; empty for a run without captions.

    Raises:
        ValueError: If `model.json` is missing or invalid.
    """
    return read_json(RunFolder(folder).model, _Model).captions


def read_class_names(folder: Path) -> tuple[str, ...]:
    """Read the names of the classes of the run in a folder.

    Returns:
        The names, in the order of the labels; empty if there are no classes or no names, as in
        runs of older versions, or no `model.json`, as for a run that is not stored.

    Raises:
        ValueError: If `model.json` is invalid.
    """
    file = RunFolder(folder).model
    if not file.is_file():
        return ()
    model = read_json(file, _Model)
    number = num_classes(_conditions(model, file))
    fits = len(model.class_names) in (0, number)
    rule = f"hold a name for each of {number} classes"
    require(fits, str(file), rule, len(model.class_names))
    return model.class_names


def select_texts(texts: Sequence[str], num: int) -> list[str]:
    """Select at most `num` distinct texts, evenly spaced."""
    distinct = list(dict.fromkeys(texts))
    indices = np.linspace(0, len(distinct) - 1, min(num, len(distinct)))
    return [distinct[index] for index in indices.astype(int)]


class Run(NamedTuple):
    """A trained run, ready to sample from.

    Attributes:
        folder: The run folder.
        config: The config of the training.
        experiment: The model, objective and optimizer that the config describes.
        event_shape: Shape of one example.
        conditions: The conditions of the model.
        params: Averaged (EMA) weights of the newest checkpoint, sharded over the mesh.
        step: The training step of that checkpoint.
        mesh: The mesh of devices.
    """

    folder: RunFolder
    config: Config
    experiment: Experiment
    event_shape: tuple[int, ...]
    conditions: CondSpec
    params: Params
    step: int
    mesh: jax.sharding.Mesh

    @property
    def model(self) -> Model:
        """The network, its path and what it predicts."""
        return self.experiment.model

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None for a model that is not conditioned on classes."""
        return num_classes(self.conditions)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty if there are none or they are unknown."""
        return read_class_names(self.folder.root)

    @property
    def tokenizer(self) -> WordTokenizer:
        """The tokenizer of a run conditioned on captions."""
        return read_word_tokenizer(self.folder.tokenizer)

    @property
    def standardization(self) -> Standardization:
        """Mean and standard deviation of the training data; empty if they are not standardized."""
        if not self.config.standardize:
            return Standardization()
        return read_standardization(self.folder.standardization)

    @property
    def captions(self) -> tuple[str, ...]:
        """Example captions of the training data; empty for a run without captions."""
        return read_captions(self.folder.root)

    def sample(
        self,
        num_samples: int | None = None,
        *,
        classes: Labels = (),
        prompts: Sequence[str] | str = (),
        conditions: PyTree = None,
        seed: int | None = None,
        solver: str | None = None,
        num_steps: int | None = None,
        guidance: float | None = None,
        sampling: Sampling | None = None,
        progress: Progress = Silent(),
    ) -> SampleSet:
        """Generate samples with the averaged weights, on all devices of the mesh.

        The samples equal those of `fmjax sample` with the same settings. A solver without
        `num_steps` adapts its steps, as on the command line. No file is written, except
        `grid.json` of the run if the steps use its calibrated grid for the first time.

        Args:
            num_samples: Number of samples; None takes that of the settings, or one per condition if
                `conditions` are given.
            classes: One or more class labels, sampled in equal numbers and in this order; empty
                samples all classes.
            prompts: One or more prompts, for a model of captions; empty samples some captions of
                the training data.
            conditions: Conditions in data units for a model that is conditioned on arrays: an array
                `[num_conditions, *shape]` or a dict of them, sampled in equal numbers and in this
                order; None takes those of the first test examples.
            seed: Seed of the noise.
            solver: Name of a solver, such as "tsit5".
            num_steps: Number of fixed steps.
            guidance: Classifier-free guidance scale; 1 is no guidance.
            sampling: All settings of the sampler; None takes those of the run, `config.sampling`.
                Each argument above that is given replaces one of them.
            progress: Receives progress reports.

        Returns:
            The samples `x1` `[num_samples, *event]` as NumPy arrays, with their labels, costs and
            success. A failed solve is marked in `succeeded`.

        Raises:
            ValueError: If settings contradict each other, the model does not have one of the
                classes or does not take prompts or conditions, or the conditions do not fit it.
        """
        from fmjax.runs.sampling.batches import require_samples_fit
        from fmjax.runs.sampling.condition_arrays import checked_conditions, num_conditions
        from fmjax.runs.sampling.conditions import class_labels, requested_conditions
        from fmjax.runs.sampling.run_samples import sample_from_run

        prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        if conditions is not None and has_arrays(self.conditions):
            conditions = checked_conditions("conditions", conditions, self.conditions)
            num_samples = num_conditions(conditions) if num_samples is None else num_samples
        base = self.config.sampling if sampling is None else sampling
        sampling = base.with_names(
            num_samples=num_samples,
            seed=seed,
            solver=solver,
            num_steps=num_steps,
            guidance=guidance,
            prompts=prompts or None,
        )
        require_samples_fit("num_samples", sampling.num_samples, self.event_shape)
        labels = tuple(class_labels(classes).ravel().tolist())
        requested = requested_conditions(
            self,
            sampling.num_samples,
            labels,
            sampling.prompts,
            arrays=conditions,
            progress=progress,
        )
        return sample_from_run(self, sampling, requested, progress=progress)

    def log_density(
        self,
        x: jax.Array | np.ndarray,
        *,
        classes: Labels | None = None,
        prompts: Sequence[str] | str | None = None,
        cond: PyTree = None,
        divergence: Literal["exact", "hutchinson"] | None = None,
        likelihood: LikelihoodConfig | None = None,
        progress: Progress = Silent(),
    ) -> np.ndarray:
        """Compute the log-density of points under the model, without guidance.

        The divergence of the velocity is by default Hutchinson's unbiased random estimate, as in
        `fmjax likelihood`; `divergence="exact"` costs one derivative per dimension. No noise is
        added to `x`: add it to discrete data with `fmjax.solvers.dequantize`.

        Args:
            x: Points in data units, `[num, *event]`, as `sample` returns them.
            classes: Class label of each point `[num]`, or one for all points; required if the model
                is conditioned on classes.
            prompts: Prompt of each point, or one for all points; required if the model is
                conditioned on captions.
            cond: Condition of each point in data units, or one for all points, for a model that is
                conditioned on arrays: an array `[num, *shape]` or `[1, *shape]`, or a dict of them.
            divergence: "exact" or "hutchinson"; None takes that of `likelihood`.
            likelihood: Solver, tolerances, batch size and seed; its `num_examples` and `dequantize`
                have no effect. None takes the defaults of `fmjax likelihood`.
            progress: Receives progress reports.

        Returns:
            Log-density of each point in nats, float64 `[num]`; NaN where the solve failed.

        Raises:
            ValueError: If `x` does not have the event shape of the model, the conditions do not fit
                the points, or the source distribution of the run is a dataset.

        Reference: Chen et al. 2018, arXiv:1806.07366, equation 8.
        """
        from fmjax.runs.log_density import run_log_density
        from fmjax.runs.sampling.conditions import conditions_of_points

        require_points("x", x)
        rule = f"have shape [num, {', '.join(map(str, self.event_shape))}]"
        require(x.shape[1:] == self.event_shape, "x", rule, x.shape)
        cond = conditions_of_points(self, len(x), classes, prompts, cond)
        config = LikelihoodConfig() if likelihood is None else likelihood
        if divergence is not None:
            config = dataclasses.replace(config, divergence=divergence)
        points = np.asarray(x, np.float32)
        solved = run_log_density(self, points, cond, config, progress=progress)
        return np.where(solved.succeeded, solved.nats, np.nan)


def _mesh_for(config: MeshConfig) -> jax.sharding.Mesh:
    """The mesh of the training, or a data-parallel mesh if the number of devices differs.

    Restoring shards the weights again, so any mesh works.
    """
    try:
        return make_mesh(config)
    except ValueError:
        return make_mesh()


def require_openable(name: str, conditions: CondSpec) -> None:
    """Raise for a model of text embeddings, which `Run` cannot sample without a text encoder."""
    rule = "hold an unconditional model or one conditioned on classes or captions"
    got = "one conditioned on text embeddings, which needs a text encoder"
    require(not isinstance(conditions, TextShape), name, rule, got)


def open_run(folder: Path | str, *, alone: bool = False, classes: Iterable[type] = ()) -> Run:
    """Open a run folder and restore the averaged (EMA) weights of its newest checkpoint.

    Args:
        folder: The run folder.
        alone: Whether to use the local devices of this process only, without synchronizing with
            other processes.
        classes: Classes of a user's objects in the config of the run, such as a network. Opening a
            run does not import or execute code.

    Raises:
        ValueError: If the folder is not a run, has no checkpoint, or the checkpoint is damaged
            or belongs to another model.
    """
    register_classes(classes)
    files = RunFolder(Path(folder))
    config = read_config(files.root)
    event_shape, conditions = read_model(files.root)
    require_openable(f"run folder {folder}", conditions)
    experiment = build(config, event_shape, conditions)
    local_only = alone and jax.process_count() > 1
    mesh = make_mesh(devices=jax.local_devices()) if local_only else _mesh_for(config.mesh)
    like = jax.eval_shape(experiment.model.net.init, jax.random.key(0))
    like = with_shardings(like, mesh, experiment.model.net.tensor_axes)
    params, step = restore_ema(files.checkpoints, like, alone=alone)
    return Run(files, config, experiment, event_shape, conditions, params, step, mesh)


def writes(
    *names: str,
) -> Callable[[Callable[Concatenate[Run, Rest], Result]], Callable[Concatenate[Run, Rest], Result]]:
    """Make a decorator that locks the files a job on a run writes.

    Other files of the run stay unlocked, so its training can continue. A second process with the
    same job raises an error.

    Args:
        names: File names relative to the run folder.
    """

    def decorate(
        job: Callable[Concatenate[Run, Rest], Result],
    ) -> Callable[Concatenate[Run, Rest], Result]:
        @functools.wraps(job)
        def locked_job(run: Run, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
            with lock_outputs(*(run.folder.root / name for name in names), name="run folder"):
                return job(run, *args, **kwargs)

        return locked_job

    return decorate
