"""Compare solvers on the guided velocity field of a run, with metrics of its data."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._arrays import is_image
from fmjax._checks import require
from fmjax._progress import Progress, Silent
from fmjax.config import (
    ODE_SOLVERS,
    CompareConfig,
    Sampling,
    build,
    is_stochastic,
    make_solve,
    solver_title,
)
from fmjax.data import Standardization
from fmjax.jobs.compare.compare import Metric, Row, compare
from fmjax.jobs.compare.methods import Method, adaptive_settings, fixed_settings
from fmjax.metrics import (
    FeatureExtractor,
    PrecisionRecall,
    frechet_distance,
    precision_recall,
    sliced_wasserstein,
)
from fmjax.report.comparison import Comparison, write_csv, write_json
from fmjax.report.gallery import GalleryEntry, write_gallery
from fmjax.runs.folder import Run, writes
from fmjax.runs.real_data import data_classifier
from fmjax.runs.sampling.batches import noise_keys, require_samples_fit
from fmjax.runs.sampling.conditions import even_conds
from fmjax.runs.sampling.run_samples import run_steps
from fmjax.runs.sampling.source_points import run_source_points
from fmjax.sharding import batch_sharding, num_shares, on_mesh
from fmjax.solvers import ClassifierFree, ErrorControl, FixedSteps

NUM_SHOWN = 10  # Number of samples that the report shows for each row.
MAX_OTHERS = 10_000  # Maximum number of real examples that samples are compared with.


@writes("comparison.json", "comparison.csv", "gallery.npz")
def compare_run(
    run: Run,
    config: CompareConfig,
    *,
    extractor: FeatureExtractor | None = None,
    progress: Progress = Silent(),
) -> Comparison:
    """Compare solvers on the velocity field of a run, and write CSV, JSON and a gallery.

    Args:
        run: A trained run.
        config: Number of samples, solvers, steps and tolerances.
        extractor: Computes features for the Frechet distance; None uses the features of the
            classifier of the run's data, unless `evaluation.classifier` of its config is False.
        progress: Receives progress reports.
    """
    require_samples_fit("compare.num_samples", config.num_samples, run.event_shape)
    shares = num_shares(run.mesh)
    num_samples = -(-config.num_samples // shares) * shares
    by_row = batch_sharding(run.mesh)
    key, indices = jax.random.key(config.seed), jnp.arange(num_samples)
    x0 = run_source_points(run, progress)(config.seed, indices)
    conds = even_conds(run, num_samples)
    standardization = run.standardization
    gallery: list[GalleryEntry] = []

    def add_to_gallery(row: Row) -> None:
        shown = row.x1[np.linspace(0, num_samples - 1, NUM_SHOWN).round().astype(int)]
        images = standardization.restore_points(shown)
        gallery.append(GalleryEntry.of(row.run, images))

    comparison = compare(
        ClassifierFree(config.guidance)(run.model).velocity_fn,
        run.params,
        jax.device_put(x0, by_row),
        jax.device_put(conds, by_row),
        methods=run_methods(run, config, progress),
        keys=jax.device_put(noise_keys(key, indices), by_row),
        metrics=[
            _in_data_units(metric, standardization)
            for metric in _metrics(run, num_samples, config.seed, extractor, progress)
        ],
        on_row=add_to_gallery if is_image(run.event_shape) else lambda row: None,
        progress=progress,
    )._replace(step=run.step, guidance=config.guidance)
    write_csv(comparison, run.folder.comparison.with_suffix(".csv"))
    if gallery:
        write_gallery(gallery, run.folder.gallery)
    write_json(comparison, run.folder.comparison)
    return comparison


def _in_data_units(metric: Metric, standardization: Standardization) -> Metric:
    """Return a metric of samples that are still standardized."""

    def evaluate(x: np.ndarray) -> float:
        return metric.evaluate(standardization.restore_points(x))

    return metric._replace(evaluate=evaluate)


def run_methods(run: Run, config: CompareConfig, progress: Progress = Silent()) -> list[Method]:
    """Return the solvers that a config names, applied to the velocity field of a run.

    Args:
        run: A trained run.
        config: Solvers, steps and tolerances.
        progress: Receives progress reports of grid calibration.

    Raises:
        ValueError: If the model does not support one of the solvers, numbers of steps or grids.
    """
    methods = []
    for name in config.all_fixed_solvers:
        sampling = config.sampling(name, num_steps=1)
        solve = on_mesh(run.mesh, make_solve(run.model, sampling))
        for num, grid in itertools.product(config.num_steps, config.grids):
            sampling.with_names(num_steps=num, grid=grid).check(run.model)
        for grid in config.grids:

            def make_grid(num: int, sampling: Sampling = sampling, grid: str = grid) -> jax.Array:
                fixed = sampling.with_names(num_steps=num, grid=grid)
                steps = run_steps(run, fixed, progress)
                assert isinstance(steps, FixedSteps)
                return jnp.asarray(steps.times)

            title = solver_title(name) + ("" if grid == "uniform" else f", {grid} grid")
            family = "stochastic" if is_stochastic(name) else "fixed"
            settings = fixed_settings(config.num_steps, make_grid)
            methods.append(Method(title, family, solve, settings))
    for name in config.all_adaptive_solvers:
        methods += _adaptive_methods(run, config, name)
    return methods


def _adaptive_methods(run: Run, config: CompareConfig, name: str) -> list[Method]:
    """Return the compared variants of an adaptive solver: plain, streaming and in bfloat16."""
    sampling, title, is_ode = config.sampling(name), solver_title(name), name in ODE_SOLVERS
    family = "adaptive" if is_ode else "stochastic"
    control = ErrorControl.LARGEST_SAMPLE if is_ode else ErrorControl.PER_SAMPLE
    solve = on_mesh(run.mesh, make_solve(run.model, sampling))
    methods = [Method(title, family, solve, adaptive_settings(config.tolerances, control))]
    if config.slots is not None and is_ode:
        streamed = adaptive_settings(config.tolerances, ErrorControl.PER_SAMPLE, config.slots)
        # A separate `solve`, because steps of another structure need a separate program.
        solve = on_mesh(run.mesh, make_solve(run.model, sampling))
        methods.append(Method(f"{title}, streaming", family, solve, streamed))
    if config.bfloat16:
        network: Any = run.config.network
        rule = "be off for a network whose config has no dtype"
        require(hasattr(network, "dtype"), "compare.bfloat16", rule, type(network).__name__)
        network = dataclasses.replace(network, dtype="bfloat16")
        rounded = dataclasses.replace(run.config, network=network)
        experiment = build(rounded, run.event_shape, run.conditions)
        solve = on_mesh(run.mesh, make_solve(experiment.model, sampling))
        settings = adaptive_settings(config.tolerances, control)
        methods.append(Method(f"{title}, bfloat16", family, solve, settings))
    return methods


def require_comparable(num_samples: int, num_examples: int) -> None:
    """Raise unless `num_samples` real examples can be compared with as many other real examples.

    Args:
        num_samples: Number of samples.
        num_examples: Number of real examples.
    """
    require(
        num_samples <= num_examples // 2,
        "compare.num_samples",
        f"be at most {num_examples // 2}, half the number of real examples",
        num_samples,
    )


def _metrics(
    run: Run, num_samples: int, seed: int, extractor: FeatureExtractor | None, progress: Progress
) -> list[Metric]:
    """Return metrics that compare samples with real data.

    The floor of each metric is its value for `num_samples` real examples, compared with the others.
    """
    train = run.config.data.load("train", progress=progress)
    require_comparable(num_samples, len(train))
    # Many other examples make their sampling error small compared with that of the samples.
    order = np.random.default_rng(seed).permutation(len(train))[: num_samples + MAX_OTHERS]
    held_out, others = (train.points(part) for part in np.split(order, [num_samples]))
    key = jax.random.key(seed)

    def wasserstein(x: np.ndarray) -> float:
        return float(sliced_wasserstein(key, x, others))

    metrics = [Metric("sliced Wasserstein distance", wasserstein, wasserstein(held_out))]
    if extractor is None and run.config.evaluation.classifier:
        classifier = data_classifier(run.config.data, progress=progress)
        extractor = None if classifier is None else classifier.features
    if extractor is not None:
        extract, features = extractor, extractor(others)

        def frechet(x: np.ndarray) -> float:
            return frechet_distance(extract(x), features)

        metrics.append(Metric("Frechet distance", frechet, frechet(held_out)))
        subset = features[:num_samples]
        floor = precision_recall(extract(held_out), subset)
        for name in PrecisionRecall._fields:

            def share(x: np.ndarray, name: str = name) -> float:
                return getattr(precision_recall(extract(x), subset), name)

            metrics.append(Metric(name.capitalize(), share, getattr(floor, name), True))
    return metrics
