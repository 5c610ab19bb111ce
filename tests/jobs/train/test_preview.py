"""Tests of sample previews during training."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from fmjax.config import Config, LossConfig, Sampling, TrainingConfig
from fmjax.data import DigitsData, ToyData
from fmjax.jobs.sample.sample import sample_run
from fmjax.jobs.train.preview import training_pictures
from fmjax.jobs.train.train import train
from fmjax.networks import MLPConfig
from fmjax.training import OptimizerConfig, TrainState

CONFIG = Config(
    name="tiny",
    data=ToyData("eight_gaussians", num_examples=256),
    network=MLPConfig(width=8, num_layers=1),
    loss=LossConfig(label_drop=0.0),
    optimizer=OptimizerConfig(warmup_steps=1),
    training=TrainingConfig(num_steps=10, batch_size=16, log_every=1, checkpoint_every=4),
    sampling=Sampling.of(num_samples=40, solver="euler", num_steps=2, batch_size=24),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(CONFIG, tmp_path_factory.mktemp("runs") / "tiny")


def make_preview(run, recorder, **changes):
    config = dataclasses.replace(run.config, **changes)
    return training_pictures(
        config, run.experiment, run.folder, run.event_shape, run.conditions, run.mesh, recorder
    )


def train_state(run):
    """A training state with the EMA weights of the run."""
    return TrainState(
        jnp.asarray(run.step, jnp.int32), run.params, run.params, (), jax.random.key(0)
    )


@pytest.mark.slow
def test_preview_is_written_at_each_checkpoint_but_the_last(run):
    names = sorted(file.name for file in run.folder.samples.iterdir())
    assert names == ["step04.png", "step08.png"]


@pytest.mark.parametrize("grid", ["uniform", "calibrated"])
def test_preview_shows_the_first_batch_of_ema_samples(run, tmp_path, recorder, grid):
    preview = make_preview(run, recorder, sampling=CONFIG.sampling.with_names(grid=grid))
    assert preview is not None
    preview(train_state(run))
    sampling = dataclasses.replace(CONFIG.sampling, num_samples=24)
    sample_run(run, sampling, output=tmp_path / "same")
    picture = run.folder.samples / "step10.png"
    assert picture.read_bytes() == (tmp_path / "same.png").read_bytes()
    picture.unlink()


def test_preview_is_none_if_disabled_or_not_displayable(run, recorder):
    training = dataclasses.replace(CONFIG.training, preview_samples=False)
    assert make_preview(run, recorder, training=training) is None
    assert make_preview(run._replace(event_shape=(8, 8, 4)), recorder) is None


def test_out_of_memory_disables_previews_but_not_training(run, recorder, monkeypatch):
    calls = []

    def make_failing_sampler(*_, **__):
        def sample(*_):
            calls.append(1)
            raise jax.errors.JaxRuntimeError(failure)

        return sample

    monkeypatch.setattr("fmjax.jobs.train.preview.make_run_sampler", make_failing_sampler)
    failure = "RESOURCE_EXHAUSTED: out of memory"
    preview = make_preview(run, recorder)
    assert preview is not None
    preview(train_state(run))
    preview(train_state(run))
    assert len(calls) == 1, "previews must stop after the first failure"
    assert [line.split(":")[0] for line in recorder.lines] == ["warning"]
    failure = "INTERNAL: broken"
    preview = make_preview(run, recorder)
    assert preview is not None
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        preview(train_state(run))


@pytest.mark.slow
def test_preview_of_class_samples_has_one_row_per_class(tmp_path):
    """Ten rows of three digits make a picture that is higher than wide."""
    from PIL import Image

    config = dataclasses.replace(
        CONFIG,
        data=DigitsData(),
        loss=LossConfig(),
        training=dataclasses.replace(CONFIG.training, num_steps=2, checkpoint_every=1),
        sampling=dataclasses.replace(CONFIG.sampling, num_samples=30, batch_size=32),
    )
    run = train(config, tmp_path / "run")
    with Image.open(run.folder.samples / "step1.png") as image:
        assert image.height > 2 * image.width
