"""Tests of the likelihood of test data under a run."""

import json

import jax
import numpy as np
import pytest

from fmjax.cli.main import main
from fmjax.config import Config, TrainingConfig
from fmjax.config.likelihood import LikelihoodConfig
from fmjax.data import Dataset, DigitsData, ToyData
from fmjax.jobs.evaluate.likelihood import level_width, likelihood_run
from fmjax.jobs.train.train import train
from fmjax.networks import DiTConfig, MLPConfig
from fmjax.runs.folder import open_run
from fmjax.solvers import Euler, ExactDivergence, FixedSteps, Hutchinson, Probe

TRAINING = TrainingConfig(num_steps=1, batch_size=16, log_every=1)
SETTINGS = LikelihoodConfig(20, "exact", solver="rk4", num_steps=8, batch_size=16)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    network = DiTConfig(width=16, num_layers=1, num_heads=2, patch_size=4)
    config = Config(name="tiny", data=DigitsData(), network=network, training=TRAINING)
    return train(config, tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    config = Config(
        name="toy", data=ToyData(num_examples=256), network=MLPConfig(width=8), training=TRAINING
    )
    return train(config, tmp_path_factory.mktemp("runs") / "toy")


@pytest.mark.slow
def test_likelihood_of_zero_velocity_is_the_normal_log_density(digits):
    # A DiT is initialized to zero velocity, and one training step changes it too little to matter.
    result = likelihood_run(digits, SETTINGS)
    test = DigitsData().load("test")
    x = test.points(np.linspace(0, len(test) - 1, 20).astype(int)).reshape(20, -1)
    # Uniform noise over a bin of width w adds w^2 / 12 to the mean of x^2.
    square = np.square(x).sum(axis=1) + 64 * 0.125**2 / 12
    nats = -0.5 * square - 32 * np.log(2 * np.pi)
    assert result.bin_width == 0.125
    assert result.nats == pytest.approx(nats.mean(), abs=0.5)
    assert result.nats_error == pytest.approx(nats.std(ddof=1) / 20**0.5, abs=0.2)
    assert result.bits_per_dim is not None
    assert result.bits_per_dim == pytest.approx(-(result.nats / 64 + np.log(0.125)) / np.log(2))
    assert (result.num_examples, result.num_failed, result.step) == (20, 0, 1)
    assert result.nfe == 8 * 4 * (1 + 64)
    written = json.loads((digits.folder.root / "likelihood.json").read_text())
    assert written == result._asdict()


@pytest.mark.slow
def test_two_dimensional_points_have_nats_but_no_bits(toy, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(
            [
                "likelihood",
                str(toy.folder.root),
                "--num-examples",
                "20",
                "--divergence",
                "exact",
                "--rtol",
                "1e-2",
                "--atol",
                "1e-2",
            ]
        )
    output = capsys.readouterr().out
    assert "bits" not in output
    assert "nats over 20 test examples by tsit5 at tolerance 0.01, exact divergence" in output
    written = json.loads((toy.folder.root / "likelihood.json").read_text())
    assert written["bits_per_dim"] is written["bin_width"] is None
    # The examples do not depend on the batch size.
    rerun = likelihood_run(
        open_run(toy.folder.root),
        LikelihoodConfig(
            num_examples=20, divergence="exact", solver="rk4", num_steps=8, batch_size=8
        ),
    )
    assert rerun.nats == pytest.approx(written["nats"], abs=0.01)


def test_level_width_is_inferred_from_the_data():
    assert level_width(Dataset(np.array([[0, 7], [255, 9]], np.uint8))) == 2 / 255
    assert level_width(DigitsData().load("test")) == 0.125
    assert level_width(ToyData(num_examples=300).load("test")) is None
    assert level_width(Dataset(np.array([[0.0, 1.0, 1.3]], np.float32))) is None
    assert level_width(Dataset(np.zeros((2, 2), np.float32))) is None


def test_config_makes_divergence_solver_and_steps():
    config = LikelihoodConfig(probes=3, distribution="normal", solver="euler", num_steps=2)
    assert config.make_divergence() == Hutchinson(3, Probe.NORMAL)
    assert config.make_solver() == Euler()
    steps = config.make_steps()
    assert isinstance(steps, FixedSteps)
    assert SETTINGS.make_divergence() == ExactDivergence()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_examples": 1}, "num_examples must be at least 2, got 1"),
        ({"probes": 0}, "probes must be at least 1, got 0"),
        ({"solver": "tsit6"}, "did you mean 'tsit5'"),
        ({"solver": "euler"}, "solver must have an error estimate if num_steps is left out"),
        ({"solver": "euler", "num_steps": 0}, "num_steps must lie in .1, 16777216., got 0"),
        ({"rtol": 0.0}, "rtol must be positive, got 0.0"),
        ({"divergence": "exakt"}, "did you mean 'exact'"),
        ({"distribution": "gauss"}, "distribution must be one of rademacher, normal"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must lie in .0, 2..63., got -1"),
    ],
)
def test_invalid_likelihood_configs_are_refused(fields, message, unchecked):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        LikelihoodConfig(**fields)


@pytest.mark.slow
def test_error_names_the_number_of_successful_solves(digits):
    nan_run = digits._replace(params=jax.tree.map(lambda leaf: leaf * np.nan, digits.params))
    with pytest.raises(ValueError, match="at least 2 examples must reach t = 0, got 0"):
        likelihood_run(nan_run, SETTINGS)
