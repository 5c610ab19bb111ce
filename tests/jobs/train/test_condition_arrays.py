"""Tests of runs that are conditioned on named arrays: trained, sampled on conditions, refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax import cli
from fmjax.config import (
    CompareConfig,
    Config,
    EvaluationConfig,
    LossConfig,
    OptimizerConfig,
    Sampling,
    TrainingConfig,
    build,
)
from fmjax.config.likelihood import LikelihoodConfig
from fmjax.data import ArrayData
from fmjax.jobs.compare.compare_run import compare_run
from fmjax.jobs.evaluate.evaluate import evaluate_run
from fmjax.jobs.evaluate.likelihood import likelihood_run
from fmjax.jobs.train.prepare import prepare
from fmjax.jobs.train.train import train
from fmjax.paths import Linear, VelocityNet
from fmjax.runs.folder import Run, RunFolder
from fmjax.runs.sampling.files import read_samples
from fmjax.sharding import make_mesh
from tests.oracles import Gaussian

STD = 0.5
SETTINGS = LikelihoodConfig(divergence="exact", solver="rk4", num_steps=32)


def mean_of(cond):
    """Mean of the points: the vector `shift`, or its negative where `sign` is 1."""
    sign = 1.0 - 2.0 * cond["sign"][:, None]
    return cond["shift"] * sign


@dataclasses.dataclass(frozen=True)
class ShiftedGaussian:
    """The velocity to N(mean_of(cond), STD^2 I), with a parameter that training changes."""

    def make(self, event_shape, conditions):
        assert sorted(conditions) == ["shift", "sign"]

        def apply(params, t, x, cond):
            exact = Gaussian(Linear(), mean_of(cond), STD).velocity(t, x)
            return exact + 0 * params["scale"]

        return VelocityNet(lambda key: {"scale": jnp.ones(())}, apply)


def config(folder, **options):
    return Config(
        name="shifted",
        data=ArrayData(str(folder)),
        network=ShiftedGaussian(),
        loss=LossConfig(label_drop=0.0),
        optimizer=OptimizerConfig(warmup_steps=0, schedule="constant"),
        training=TrainingConfig(num_steps=2, batch_size=16, log_every=1, checkpoint_every=2),
        sampling=Sampling.of(num_samples=8, solver="rk4", num_steps=8),
        compare=CompareConfig(
            num_samples=8, fixed_solvers=("heun",), adaptive_solvers=(), num_steps=(4,)
        ),
        evaluation=EvaluationConfig(num_samples=16, num_trajectories=8, classifier=False),
        **options,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with the exact velocity, without training."""
    root = tmp_path_factory.mktemp("conditions")
    (root / "data").mkdir()
    generator = np.random.default_rng(0)
    for split, num in (("train", 64), ("test", 12)):
        cond = {"shift": generator.normal(size=(num, 2)), "sign": np.arange(num) % 2}
        x = mean_of(cond) + STD * generator.normal(size=(num, 2))
        np.savez(root / "data" / f"{split}.npz", x=x, **{f"cond_{k}": v for k, v in cond.items()})
    settings, folder = config(root / "data"), RunFolder(root / "run")
    spec, conditions = settings.data.shape()
    prepare(folder, settings, spec, conditions)
    experiment = build(settings, spec, conditions)
    params = {"scale": jnp.ones(())}
    return Run(folder, settings, experiment, spec, conditions, params, 2, make_mesh())


CONDITIONS = {
    "shift": np.array([[30.0, 0.0], [0.0, -20.0], [5.0, 5.0]]),
    "sign": np.array([0, 1, 1]),
}


@pytest.mark.slow
def test_samples_follow_the_given_conditions_in_their_order(run):
    one_each = run.sample(conditions=CONDITIONS)
    assert (np.abs(one_each.x1 - mean_of(CONDITIONS)) < 6 * STD).all()
    samples = run.sample(7, conditions=CONDITIONS)
    repeated = {key: array[[0, 0, 0, 1, 1, 2, 2]] for key, array in CONDITIONS.items()}
    assert (np.abs(samples.x1 - mean_of(repeated)) < 6 * STD).all()
    jax.tree.map(np.testing.assert_array_equal, samples.cond, repeated)
    assert samples.labels is None


@pytest.mark.slow
def test_samples_have_the_conditions_of_the_test_split_by_default(run):
    samples = run.sample(14)
    test = run.config.data.load("test")
    expected = test.conds(np.arange(14) % 12)
    jax.tree.map(np.testing.assert_array_equal, samples.cond, expected)
    assert (np.abs(samples.x1 - mean_of(expected)) < 6 * STD).all()


@pytest.mark.slow
def test_log_densities_are_those_of_each_condition(run):
    x = np.float32([[29.0, 0.5], [0.0, 19.0], [-5.0, -6.0]])
    got = run.log_density(x, cond=CONDITIONS, likelihood=SETTINGS)
    square = np.sum(((x - mean_of(CONDITIONS)) / STD) ** 2, axis=1)
    np.testing.assert_allclose(got, -0.5 * square - np.log(2 * np.pi * STD**2), atol=2e-3)
    first = {key: array[:1] for key, array in CONDITIONS.items()}
    one = run.log_density(x[:1], cond=first, likelihood=SETTINGS)
    np.testing.assert_allclose(one, got[:1], atol=1e-4)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (np.zeros((2, 2)), "conditions must be a dict of arrays for this model, got float64 of"),
        ({"shift": np.zeros((2, 2))}, "must hold the arrays shift, sign, got shift"),
        (CONDITIONS | {"other": np.zeros(3)}, "hold the arrays shift, sign, got other, shift, s"),
        (CONDITIONS | {"shift": np.zeros((3, 1))}, r"shift must have shape \[num, 2\], got \(3, 1"),
        (CONDITIONS | {"sign": np.zeros(3)}, "sign must hold integers, got float64 of shape"),
        (CONDITIONS | {"sign": np.array([0, 1, 2])}, r"sign must lie in \[0, 2\), got 0 to 2"),
        (CONDITIONS | {"sign": np.array([0, 1])}, "must hold arrays with equally many rows, got s"),
        (
            CONDITIONS | {"shift": np.full((3, 2), np.nan)},
            "conditions: shift must hold finite numbers, got nan in example 0",
        ),
        (CONDITIONS | {"shift": "text"}, "shift must be an array with one row per condition, got"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(run, conditions, message):
    with pytest.raises(ValueError, match=message):
        run.sample(conditions=conditions)
    if "hold the arrays" not in message:
        with pytest.raises(ValueError, match=message.removeprefix("conditions")):
            run.log_density(np.zeros((3, 2), np.float32), cond=conditions)


def test_other_conditions_and_too_few_samples_are_refused(run):
    with pytest.raises(ValueError, match="num_samples for 3 conditions must be at least 3, got 2"):
        run.sample(2, conditions=CONDITIONS)
    with pytest.raises(ValueError, match="classes must be left out for a model that is condit"):
        run.sample(classes=1)
    with pytest.raises(ValueError, match="cond must be given for a model that is conditioned on"):
        run.log_density(np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="cond must have 1 row or 2, one per point, got 3"):
        run.log_density(np.zeros((2, 2), np.float32), cond=CONDITIONS)


@pytest.mark.slow
def test_a_run_on_conditions_is_trained_measured_and_sampled_by_commands(run, tmp_path, capsys):
    settings = dataclasses.replace(run.config, standardize=True)
    trained = train(settings, tmp_path / "run")
    assert set(json.loads(trained.folder.standardization.read_text())) == {"x", "cond_shift"}
    evaluate_run(run, run.config.evaluation, run.config.sampling)
    row = compare_run(run, run.config.compare).runs[0]
    assert row.rmse_mean < 0.1
    result = likelihood_run(run, SETTINGS)
    assert result.nats == pytest.approx(-np.log(2 * np.pi * STD**2) - 1, abs=0.9)

    file = tmp_path / "conditions.npz"
    np.savez(file, **CONDITIONS)
    words = ["sample", str(trained.folder.root), "--output", str(tmp_path / "out")]

    def sample(*options):
        try:
            return cli.main([*words, *map(str, options)]) or 0
        except SystemExit as exit_:
            return exit_.code

    assert sample("--conditions", file) == 0
    samples, _ = read_samples(tmp_path / "out.npz")
    jax.tree.map(np.testing.assert_array_equal, samples.cond, CONDITIONS)
    assert sample("--conditions", file, "--num-samples", 6) == 0
    assert len(read_samples(tmp_path / "out.npz")[0].x1) == 6
    np.savez(file, shift=CONDITIONS["shift"])
    capsys.readouterr()
    assert sample("--conditions", file) == 2
    assert "must hold the arrays shift, sign, got shift" in capsys.readouterr().err
    assert sample("--conditions", tmp_path / "missing.npz") == 2
    assert "missing.npz" in capsys.readouterr().err
