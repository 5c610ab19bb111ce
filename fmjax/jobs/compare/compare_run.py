"""The solver comparison on a run: its field, its guidance, its data's metrics."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._arrays import (
    is_image,
)
from fmjax._checks import require
from fmjax._progress import Progress, Silent
from fmjax.config import (
    FLOW_MAP,
    ODE_SOLVERS,
    CompareConfig,
    SamplingConfig,
    SolveFn,
    build,
    guided,
    is_stochastic,
    make_solve,
    require_jumps,
    solver_title,
)
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
from fmjax.runs.real_data import (
    data_classifier,
)
from fmjax.runs.sampling.batches import (
    noise_keys,
    require_samples_fit,
)
from fmjax.runs.sampling.conditions import even_conds
from fmjax.runs.sampling.run_samples import run_steps
from fmjax.runs.sampling.source_points import run_source_points
from fmjax.sharding import batch_sharding, num_shares
from fmjax.solvers import ErrorControl, FixedSteps, Samples

NUM_SHOWN = 10  # Samples of each row that the page shows.
MAX_OTHERS = 10_000  # Real examples that the metrics compare with.


@writes("comparison.json", "comparison.csv", "gallery.npz")
def compare_run(
    run: Run,
    config: CompareConfig,
    *,
    extractor: FeatureExtractor | None = None,
    progress: Progress = Silent(),
) -> Comparison:
    """Compare all solvers on the run's field; write CSV and JSON.

    Args:
        run: A trained run.
        config: Samples, steps and tolerances.
        extractor: Features for the Frechet distance; None takes those of the classifier of the
            run's data, unless `evaluation.classifier` of the run's config is False.
        progress: Hears of each row.
    """
    require_samples_fit("compare.num_samples", config.num_samples, run.event_shape)
    shares = num_shares(run.mesh)
    num_samples = -(-config.num_samples // shares) * shares
    rows = batch_sharding(run.mesh)
    key, indices = jax.random.key(config.seed), jnp.arange(num_samples)
    x0 = run_source_points(run, progress)(config.seed, indices)
    conds = even_conds(run, num_samples)
    gallery: list[GalleryEntry] = []

    def keep_some(row: Row) -> None:
        some = row.x1[np.linspace(0, num_samples - 1, NUM_SHOWN).round().astype(int)]
        gallery.append(GalleryEntry.of(row.run, some))

    comparison = compare(
        lambda params: guided(run.experiment, params, config.guidance),
        run.params,
        jax.device_put(x0, rows),
        jax.device_put(conds, rows),
        methods=run_methods(run, config, progress),
        keys=jax.device_put(noise_keys(key, indices), rows),
        metrics=_metrics(run, num_samples, config.seed, extractor, progress),
        on_row=keep_some if is_image(run.event_shape) else lambda row: None,
        progress=progress,
    )._replace(step=run.step, guidance=config.guidance)
    write_csv(comparison, run.folder.comparison.with_suffix(".csv"))
    if gallery:
        write_gallery(gallery, run.folder.gallery)
    write_json(comparison, run.folder.comparison)
    return comparison


def run_methods(run: Run, config: CompareConfig, progress: Progress = Silent()) -> list[Method]:
    """The solvers that a config names, on the field of a run."""
    methods = []
    for name in config.compared_fixed:
        asked = SamplingConfig(
            solver=name,
            num_steps=1,
            guidance=config.guidance,
            rate=config.rate,
            rate_scale=config.rate_scale,
        )
        solve = _on_mesh(run, make_solve(run.experiment, asked))
        for num, grid in itertools.product(config.num_steps, config.grids):
            if name == FLOW_MAP:
                require_jumps(run.experiment.flow_map, num, grid)
        for grid in config.grids:

            def make_grid(n: int, asked: SamplingConfig = asked, grid: Any = grid) -> Any:
                steps = run_steps(run, dataclasses.replace(asked, num_steps=n, grid=grid), progress)
                assert isinstance(steps, FixedSteps)
                return steps.times

            title = solver_title(name) + ("" if grid == "uniform" else f", {grid} grid")
            family = "stochastic" if is_stochastic(name) else "fixed"
            settings = fixed_settings(config.num_steps, make_grid)
            methods.append(Method(title, family, solve, settings))
    for name in config.compared_adaptive:
        asked = SamplingConfig(
            solver=name, guidance=config.guidance, rate=config.rate, rate_scale=config.rate_scale
        )
        methods += _adaptive_methods(run, config, asked)
    return methods


def _adaptive_methods(run: Run, config: CompareConfig, asked: SamplingConfig) -> list[Method]:
    """One solver with adaptive steps; also streaming and in bfloat16, if so configured."""
    title, of_ode = solver_title(asked.solver), asked.solver in ODE_SOLVERS
    family = "adaptive" if of_ode else "stochastic"
    control = ErrorControl.LARGEST_SAMPLE if of_ode else ErrorControl.PER_SAMPLE
    solve = _on_mesh(run, make_solve(run.experiment, asked))
    methods = [Method(title, family, solve, adaptive_settings(config.tolerances, control))]
    if config.slots is not None and of_ode:
        streamed = adaptive_settings(config.tolerances, ErrorControl.PER_SAMPLE, config.slots)
        # Its steps are of another type, which wants a program of its own.
        solve = _on_mesh(run, make_solve(run.experiment, asked))
        methods.append(Method(f"{title}, streaming", family, solve, streamed))
    if config.bfloat16:
        network = dataclasses.replace(run.config.network, dtype="bfloat16")
        rounded = dataclasses.replace(run.config, network=network)
        experiment = build(rounded, run.event_shape, run.conditions)
        solve = _on_mesh(run, make_solve(experiment, asked))
        settings = adaptive_settings(config.tolerances, control)
        methods.append(Method(f"{title}, bfloat16", family, solve, settings))
    return methods


def _on_mesh(run: Run, solve: SolveFn) -> SolveFn:
    """The same, with the run's mesh for networks and streaming to name its axes."""

    def solve_on_mesh(*arguments: Any) -> Samples:
        with jax.sharding.use_abstract_mesh(run.mesh.abstract_mesh):
            return solve(*arguments)

    return solve_on_mesh


def require_comparable(num_samples: int, num_examples: int) -> None:
    """Raise unless as many real examples can be held against the rest of them."""
    require(
        num_samples <= num_examples // 2,
        "compare.num_samples",
        f"be at most half of the {num_examples} real examples",
        num_samples,
    )


def _metrics(
    run: Run, num_samples: int, seed: int, extractor: FeatureExtractor | None, progress: Progress
) -> list[Metric]:
    """Distances to the real data, with what as many real examples score against others."""
    train = run.config.data.load("train", progress=progress)
    require_comparable(num_samples, len(train))
    # So many that their own scatter does not count beside that of the samples.
    order = np.random.default_rng(seed).permutation(len(train))[: num_samples + MAX_OTHERS]
    held_out, rest = (train.points(part) for part in np.split(order, [num_samples]))
    key = jax.random.key(seed)

    def wasserstein(x: np.ndarray) -> float:
        return float(sliced_wasserstein(key, x, rest))

    metrics = [Metric("sliced Wasserstein distance", wasserstein, wasserstein(held_out))]
    if extractor is None and run.config.evaluation.classifier:
        classifier = data_classifier(run.config.data, progress=progress)
        extractor = None if classifier is None else classifier.features
    if extractor is not None:
        take, features = extractor, extractor(rest)

        def frechet(x: np.ndarray) -> float:
            return frechet_distance(take(x), features)

        metrics.append(Metric("Frechet distance", frechet, frechet(held_out)))
        as_many, of_held_out = features[:num_samples], take(held_out)
        floor = precision_recall(of_held_out, as_many)
        for name in PrecisionRecall._fields:

            def share(x: np.ndarray, name: str = name) -> float:
                return getattr(precision_recall(take(x), as_many), name)

            metrics.append(Metric(name.capitalize(), share, getattr(floor, name), True))
    return metrics
