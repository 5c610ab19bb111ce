"""The solver comparison on a run: its field, its guidance, its data's metrics."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._checks import require
from fmjax._progress import Progress, Silent
from fmjax.config import SOLVERS, CompareConfig, guided, solver_title
from fmjax.metrics import FeatureExtractor, frechet_distance, sliced_wasserstein
from fmjax.report.comparison import Comparison, write_csv, write_json
from fmjax.studies.compare import Metric, compare
from fmjax.studies.draw import even_labels, noise
from fmjax.studies.evaluate import run_classifier
from fmjax.studies.run_folder import Run
from fmjax.training import batch_sharding

MAX_OTHERS = 10_000  # Real examples that the metrics compare with.


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
        extractor: Features for the Frechet distance; None takes those of the classifier that
            is trained on the run's own data.
        progress: Hears of each row.
    """
    num_devices = run.mesh.devices.size
    num_samples = -(-config.num_samples // num_devices) * num_devices
    rows = batch_sharding(run.mesh)
    unit = noise(jax.random.key(config.seed), jnp.arange(num_samples), run.event_shape)
    x0 = run.config.path.start(unit)
    labels = even_labels(num_samples, run.num_classes)
    comparison = compare(
        lambda params: guided(run.experiment, params, config.guidance),
        run.params,
        jax.device_put(x0, rows),
        None if labels is None else jax.device_put(labels, rows),
        fixed=_named(config.fixed_solvers),
        num_steps=config.num_steps,
        adaptive=_named(config.adaptive_solvers),
        tolerances=config.tolerances,
        metrics=_metrics(run, num_samples, config.seed, extractor, progress),
        progress=progress,
    )._replace(step=run.step, guidance=config.guidance)
    write_csv(comparison, run.folder.comparison.with_suffix(".csv"))
    write_json(comparison, run.folder.comparison)
    return comparison


def require_comparable(num_samples: int, num_examples: int) -> None:
    """Raise unless as many real examples can be held against the rest of them."""
    require(num_samples <= num_examples // 2, "compare.num_samples",
            f"be at most half of the {num_examples} real examples", num_samples)  # fmt: skip


def _named(solvers: tuple[str, ...]) -> dict[str, Any]:
    """Solver objects by the names that the report gives them."""
    return {solver_title(name): SOLVERS[name]() for name in solvers}


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
        return float(sliced_wasserstein(key, jnp.asarray(x), jnp.asarray(rest)))

    metrics = [Metric("sliced Wasserstein distance", wasserstein, wasserstein(held_out))]
    classifier = run_classifier(run, progress=progress)
    if extractor is None and classifier is not None:
        extractor = classifier.features
    if extractor is not None:
        take, features = extractor, extractor(rest)

        def frechet(x: np.ndarray) -> float:
            return frechet_distance(take(x), features)

        metrics.append(Metric("Frechet distance", frechet, frechet(held_out)))
    return metrics
