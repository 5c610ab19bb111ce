"""Tests of runs on standardized data: in data units outside, and standardized inside."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from fmjax._files import read_npz
from fmjax._specs import class_spec
from fmjax.cli.main import main
from fmjax.config import (
    CompareConfig,
    Config,
    EvaluationConfig,
    LossConfig,
    OptimizerConfig,
    ReflowConfig,
    Sampling,
    TrainingConfig,
    build,
)
from fmjax.config.likelihood import LikelihoodConfig
from fmjax.data import ArrayData, Dataset, Standardization, fit_standardization
from fmjax.jobs.compare.compare_run import compare_run
from fmjax.jobs.evaluate.evaluate import evaluate_run
from fmjax.jobs.train.prepare import prepare
from fmjax.jobs.train.train import train
from fmjax.networks import MLPConfig
from fmjax.paths import Linear, VelocityNet
from fmjax.runs.folder import Run, RunFolder
from fmjax.sharding import make_mesh
from tests.oracles import Gaussian

MEAN, STD = np.array([3.0, -40.0, 0.0]), 10.0
EXACT = LikelihoodConfig(divergence="exact", solver="rk4", num_steps=32)


@dataclasses.dataclass(frozen=True)
class ExactVelocity:
    """The velocity of standard normal data, without parameters."""

    def make(self, event_shape, conditions):
        del event_shape, conditions
        return VelocityNet(
            lambda key: {}, lambda params, *args: Gaussian(Linear(), 0.0, 1.0).velocity(*args)
        )


def save(folder, num=512):
    """Write splits of N(MEAN, STD^2 I) with classes; return the training points."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for split in ("test", "train"):
        x = (MEAN + STD * generator.standard_normal((num, 3))).astype(np.float32)
        np.savez(folder / f"{split}.npz", x=x, labels=np.arange(num) % 2)
    return x


def config(folder, name="scaled", **options):
    options = {"network": MLPConfig(width=16, num_layers=1), "standardize": True} | options
    return Config(
        name=name,
        data=ArrayData(str(folder)),
        loss=LossConfig(label_drop=0.0),
        optimizer=OptimizerConfig(warmup_steps=0, schedule="constant"),
        training=TrainingConfig(num_steps=20, batch_size=64, log_every=10, checkpoint_every=10),
        sampling=Sampling.of(num_samples=16, solver="heun", num_steps=4),
        compare=CompareConfig(
            num_samples=16, fixed_solvers=("heun",), adaptive_solvers=(), num_steps=(4,)
        ),
        evaluation=EvaluationConfig(num_samples=64, num_trajectories=8, classifier=False),
        **options,
    )


@pytest.fixture(scope="module")
def exact_run(tmp_path_factory):
    """A run whose model is exact on standardized data, without training."""
    root = tmp_path_factory.mktemp("exact")
    x = save(root / "data")
    settings = config(root / "data", network=ExactVelocity(), conditional=False)
    folder = RunFolder(root)
    standardization = fit_standardization(Dataset(x))
    folder.standardization.write_text(json.dumps(standardization.to_json()))
    experiment = build(settings, (3,), None)
    return Run(folder, settings, experiment, (3,), None, {}, 1, make_mesh())


@pytest.mark.slow
def test_log_densities_equal_the_closed_form_of_data_with_std_10(exact_run):
    x = np.random.default_rng(1).normal(MEAN, STD, (24, 3)).astype(np.float32)
    moments = exact_run.standardization.moments["x"]
    mean, std = np.asarray(moments.mean), np.asarray(moments.std)
    np.testing.assert_allclose(std, STD, rtol=0.1)
    z = (x - mean) / std
    expected = np.sum(-0.5 * z**2 - 0.5 * np.log(2 * np.pi) - np.log(std), axis=1)
    got = exact_run.log_density(x, likelihood=EXACT)
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.slow
def test_samples_have_the_mean_and_std_of_the_data(exact_run):
    # The exact flow of standard normal data from t = 0 to 1 is the identity.
    samples = exact_run.sample(4096, solver="rk4", num_steps=8).x1
    np.testing.assert_allclose(samples.mean(axis=0), MEAN, atol=6 * STD / 4096**0.5)
    np.testing.assert_allclose(samples.std(axis=0), STD, rtol=0.1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on standardized data, and a run on the same data that were standardized before."""
    root = tmp_path_factory.mktemp("runs")
    x = save(root / "data")
    standardization = fit_standardization(Dataset(x))
    (root / "before").mkdir()
    for split in ("train", "test"):
        with np.load(root / "data" / f"{split}.npz") as arrays:
            points = standardization.points(arrays["x"])
            np.savez(root / "before" / f"{split}.npz", x=points, labels=arrays["labels"])
    inside = train(config(root / "data"), root / "inside")
    return inside, train(config(root / "before", standardize=False), root / "outside")


@pytest.mark.slow
def test_a_run_equals_one_on_data_that_were_standardized_before(runs, tmp_path):
    inside, outside = runs
    jax.tree.map(np.testing.assert_array_equal, inside.params, outside.params)
    standardization = inside.standardization
    assert outside.standardization == Standardization()
    samples, standard = inside.sample(seed=3), outside.sample(seed=3)
    restored = standardization.restore_points(standard.x1)
    np.testing.assert_array_equal(samples.x1, restored)
    with np.load(_sampled(inside, tmp_path)) as arrays:
        np.testing.assert_array_equal(arrays["x1"], restored)
    labels = np.arange(16) % 2
    density = inside.log_density(restored, classes=labels, likelihood=EXACT)
    standard_density = outside.log_density(standard.x1, classes=labels, likelihood=EXACT)
    log_volume = np.sum(np.log(standardization.moments["x"].std))
    np.testing.assert_allclose(density, standard_density - log_volume, atol=1e-3)


def _sampled(run, folder):
    """Sample on the command line; return the file."""
    stem = folder / "samples"
    with pytest.raises(SystemExit, match="0"):
        main(["sample", str(run.folder.root), "--seed", "3", "--output", str(stem)])
    return stem.with_suffix(".npz")


@pytest.mark.slow
def test_results_are_in_data_units(runs):
    inside, outside = runs
    results = [evaluate_run(r, r.config.evaluation, r.config.sampling) for r in runs]
    kept, standard = (read_npz(r.folder.evaluation_samples)["x1"] for r in runs)
    np.testing.assert_array_equal(kept, inside.standardization.restore_points(standard))
    # All standard deviations are about 10.
    assert results[0].wasserstein == pytest.approx(10 * results[1].wasserstein, rel=0.1)
    compared = [compare_run(r, r.config.compare).runs[0] for r in runs]
    assert compared[0].rmse_mean == pytest.approx(compared[1].rmse_mean)
    name = "sliced Wasserstein distance"
    metrics = [row.metrics[name] for row in compared]
    assert metrics[0] == pytest.approx(10 * metrics[1], rel=0.1)


@pytest.mark.slow
def test_resumed_and_reflowed_runs_use_the_stored_moments(runs, tmp_path):
    inside, _ = runs
    data = inside.config.data.folder
    short = dataclasses.replace(
        config(data), training=dataclasses.replace(inside.config.training, num_steps=10)
    )
    train(short, tmp_path / "resumed")
    resumed = train(config(data), tmp_path / "resumed")
    jax.tree.map(np.testing.assert_array_equal, resumed.params, inside.params)
    reflow = ReflowConfig(str(inside.folder.root), num_pairs=128, sampling=Sampling.of())
    student = train(config(data, "student", reflow=reflow), tmp_path / "student")
    assert student.standardization == inside.standardization
    distance = np.abs(student.sample(256).x1.mean(axis=0) - inside.sample(256).x1.mean(axis=0))
    assert (distance < STD).all()
    with pytest.raises(ValueError, match="standardize must be True, as in the run that generates"):
        train(config(data, "student", reflow=reflow, standardize=False), tmp_path / "other")


def test_a_run_may_not_change_whether_data_are_standardized(tmp_path):
    folder = RunFolder(tmp_path / "run")
    prepare(folder, config(tmp_path, standardize=False), (3,), class_spec(2))
    with pytest.raises(ValueError, match=r"got different standardize \(False -> True\)"):
        prepare(folder, config(tmp_path), (3,), class_spec(2))
