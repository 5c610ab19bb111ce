"""Tests of training, sampling and log-densities from Python: `fmjax.train` and the `Run`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax._progress import COMPILING, Lines
from fmjax._specs import class_spec
from fmjax.config import (
    Config,
    EvaluationConfig,
    LikelihoodConfig,
    Sampling,
    TrainingConfig,
    build,
)
from fmjax.data import ArrayData, ToyData
from fmjax.jobs.evaluate.evaluate import read_evaluation
from fmjax.jobs.sample.sample import sample_run
from fmjax.networks import FluxConfig, MLPConfig
from fmjax.paths import VelocityNet
from fmjax.runs.folder import Run, RunFolder
from fmjax.sharding import make_mesh
from fmjax.training import Silent
from tests.bridge import Bridge
from tests.holder import holder

CONFIG = Config(
    name="toy",
    data=ToyData(num_examples=256, conditional=True),
    network=MLPConfig(width=8, num_layers=1),
    training=TrainingConfig(num_steps=3, batch_size=16, log_every=1),
    sampling=Sampling.of(num_samples=12, solver="euler", num_steps=2, batch_size=8),
    evaluation=EvaluationConfig(num_samples=16, num_projections=8, num_trajectories=8),
)
FIXED = LikelihoodConfig(solver="rk4", num_steps=4, batch_size=8)
X = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fmjax.train(CONFIG, tmp_path_factory.mktemp("runs") / "toy", progress=Silent())


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """The run before training, without weights."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "toy")
    return Run(folder, CONFIG, build(CONFIG, (2,), 2), (2,), class_spec(2), None, 0, make_mesh())


def file_names(run):
    return sorted(str(file) for file in run.folder.root.rglob("*"))


@pytest.mark.slow
def test_train_opens_a_complete_run_and_shows_progress_on_standard_error(run, capsys):
    assert (run.config, run.step, run.mesh.size) == (CONFIG, 3, 8)
    again = fmjax.train(CONFIG, str(run.folder.root))
    jax.tree.map(np.testing.assert_array_equal, again.params, run.params)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("toy: ")
    assert output.err.endswith("resumed from step 3\n")
    wider = dataclasses.replace(CONFIG, network=MLPConfig(width=16, num_layers=1))
    with pytest.raises(ValueError, match="must be new or contain a run with this config"):
        fmjax.train(wider, run.folder.root)


@pytest.mark.slow
def test_train_refuses_a_folder_that_another_process_writes(tmp_path):
    with (
        holder(tmp_path),
        pytest.raises(ValueError, match="run folder .* must have one writer at a time"),
    ):
        fmjax.train(CONFIG, tmp_path, progress=Silent())
    assert not RunFolder(tmp_path).config.exists()


def test_train_refuses_models_that_no_run_can_sample(tmp_path):
    for name, shape in {"x": (4, 4, 4), "text": (4, 8), "pooled": (6,)}.items():
        np.save(tmp_path / f"train_{name}.npy", np.zeros((16, *shape), np.float32))
    config = dataclasses.replace(
        CONFIG, data=ArrayData(str(tmp_path)), network=FluxConfig(2, 2, 16, 1, 1, (4, 6, 6))
    )
    with pytest.raises(ValueError, match="config must hold .* got one conditioned on text embed"):
        fmjax.train(config, tmp_path / "run", progress=Silent())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_samples_equal_those_of_the_command_and_nothing_is_written(run, tmp_path):
    names = file_names(run)
    samples = run.sample()
    named = run.sample(
        6,
        classes=np.array([1, 0]),
        seed=3,
        solver="heun",
        num_steps=3,
        guidance=2.0,
        progress=Silent(),
    )
    assert file_names(run) == names
    settings = CONFIG.sampling.with_names(
        num_samples=6, seed=3, solver="heun", num_steps=3, guidance=2.0
    )
    expected = sample_run(run, CONFIG.sampling, output=tmp_path / "default")
    expected_named = sample_run(run, settings, (1, 0), output=tmp_path / "named")
    for got, wanted in ((samples, expected), (named, expected_named)):
        for field in ("x1", "labels", "nfe", "succeeded"):
            np.testing.assert_array_equal(getattr(got, field), getattr(wanted, field))
    assert named.labels.tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"solver": "tsit6"}, r"solver must be one of .* \(did you mean 'tsit5'\?\)"),
        ({"classes": 2}, "class must be between 0 and 1, got 2"),
        ({"classes": 0.5}, "classes must be integers, got 0.5"),
        ({"prompts": "a fox"}, "prompts must be left out for a model that was not trained on"),
        ({"num_steps": 2, "solver": "heun", "guidance": -1.0}, "guidance must be at least 0"),
    ],
)
def test_wrong_settings_of_samples_are_refused(settings, message, untrained, unchecked):
    with pytest.raises(ValueError, match=message):
        untrained.sample(**settings)


@dataclasses.dataclass(frozen=True)
class LinearFlow:
    """`dx/dt = x / 2 + b`, with `b` the shift of the class: it maps N(0, I) to a Gaussian."""

    def make(self, event_shape, conditions):
        def apply(params, t, x, cond):
            return 0.5 * x + params["shifts"][cond]

        return VelocityNet(lambda key: {"shifts": jnp.zeros((conditions.num_values, 2))}, apply)


SHIFTS = jnp.array([[1.5, -0.5], [-2.0, 3.0]])


@pytest.fixture(scope="module")
def linear(untrained):
    """A run whose network is a `LinearFlow`, without shifts."""
    config = dataclasses.replace(CONFIG, network=LinearFlow())
    experiment = build(config, (2,), 2)
    params = {"shifts": jnp.zeros((2, 2))}
    return untrained._replace(config=config, experiment=experiment, params=params)


@pytest.mark.slow
def test_a_second_call_reuses_the_program_with_the_weights_of_the_run(linear, lowered):
    """Each Euler step of length 1/2 multiplies x by 1.25 and adds half of the shift."""
    first = linear.sample()
    num_lowered = len(lowered)
    shifted = linear._replace(params={"shifts": SHIFTS})
    second = shifted.sample(16, classes=[1, 0])
    assert shifted.sample(seed=1).x1.shape == (12, 2)
    assert len(lowered) == num_lowered
    growth = 1.25**2
    labels = np.repeat([1, 0], 8)
    expected = first.x1[:12] + 0.5 * 2.25 * np.asarray(SHIFTS)[labels[:12]]
    np.testing.assert_allclose(second.x1[:12], expected, rtol=1e-5, atol=1e-6)
    other = shifted.sample(16, classes=[1, 0], num_steps=1)
    noise = first.x1[:12] / growth
    expected = 1.5 * noise + np.asarray(SHIFTS)[labels[:12]]
    np.testing.assert_allclose(other.x1[:12], expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(shifted.sample(seed=1).x1, shifted.sample().x1)


@pytest.mark.slow
def test_log_density_equals_the_closed_form_of_each_class(linear, lowered):
    """With directions of +1 and -1, Hutchinson's estimate of this divergence is exact."""
    run = linear._replace(params={"shifts": SHIFTS})
    growth = np.exp(0.5)
    for x, classes, settings in (
        (X, np.array([1, 0, 0, 1, 1]), {}),
        (jnp.asarray(X), 1, {"divergence": "exact", "likelihood": FIXED}),
    ):
        nats = run.log_density(x, classes=classes, **settings)
        noise = (X - 2.0 * (growth - 1.0) * np.asarray(SHIFTS)[classes]) / growth
        expected = -0.5 * np.square(noise).sum(axis=1) - np.log(2 * np.pi) - 1.0
        assert (nats.dtype, nats.shape) == (np.float64, (5,))
        np.testing.assert_allclose(nats, expected, atol=1e-4)
    failed = run._replace(params={"shifts": jnp.nan * SHIFTS})
    num_lowered = len(lowered)
    nats = failed.log_density(X, classes=0, divergence="exact", likelihood=FIXED)
    assert np.isnan(nats).all()
    assert len(lowered) == num_lowered  # The program of the last call.


@pytest.mark.slow
def test_log_density_uses_the_source_of_the_process(linear):
    config = dataclasses.replace(linear.config, path=Bridge())
    run = linear._replace(config=config, experiment=build(config, (2,), 2))
    nats = run.log_density(X, classes=0, likelihood=FIXED, divergence="exact")
    x0 = X / np.exp(0.5)
    square = np.square((x0 - 1.0) / 0.5).sum(axis=1)
    expected = -0.5 * square - np.log(2 * np.pi) - 2 * np.log(0.5) - 1.0
    np.testing.assert_allclose(nats, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X,), "classes must be given for a model that is conditioned on classes, one per point"),
        ((X, [0, 1]), r"classes must be one label or have shape \(5,\), got shape \(2,\)"),
        ((X, 2), "class must be between 0 and 1, got 2"),
        ((X[:, :1], 0), r"x must have shape \[num, 2\], got \(5, 1\)"),
        ((X.astype(int), 0), "x must be floating point, got int64"),
        ((X, 0, "a fox"), "prompts must be left out for a model that is not conditioned on"),
    ],
)
def test_points_and_conditions_that_do_not_fit_are_refused(
    arguments, message, untrained, unchecked
):
    names = ("x", "classes", "prompts")
    with pytest.raises(ValueError, match=message):
        untrained.log_density(**dict(zip(names, arguments, strict=False)))


@pytest.mark.slow
def test_evaluate_uses_the_settings_of_the_run(run, capsys):
    result = fmjax.evaluate(run)
    assert result == read_evaluation(run.folder.evaluation)
    assert (result.num_samples, result.solver) == (16, "euler with 2 steps")
    assert "sliced Wasserstein distance" in capsys.readouterr().err
    other = fmjax.evaluate(run, sampling=Sampling.of(solver="euler", num_steps=1))
    assert other.solver == "euler with 1 step"


def test_lines_are_written_to_standard_error(capsys):
    lines = Lines()
    with lines.task("training", None) as advance:
        advance(0, COMPILING)
        advance(1)
    lines.part_done("training")
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "training 0\ntraining 0 compiling\n")
