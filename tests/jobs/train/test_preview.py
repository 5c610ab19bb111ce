"""Pictures of samples during a training: when they are drawn, and of which weights."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from fmjax.config import Config, LossConfig, SamplingConfig, TrainingConfig
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
    sampling=SamplingConfig(num_samples=40, solver="euler", num_steps=2, batch_size=24),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(CONFIG, tmp_path_factory.mktemp("runs") / "tiny")


def pictures_of(run, heard, **changes):
    config = dataclasses.replace(run.config, **changes)
    return training_pictures(
        config, run.experiment, run.folder, run.event_shape, run.conditions, run.mesh, heard
    )


def state_of(run):
    """The training state that the run's averaged weights are of."""
    return TrainState(
        jnp.asarray(run.step, jnp.int32), run.params, run.params, (), jax.random.key(0)
    )


@pytest.mark.slow
def test_a_picture_is_drawn_at_each_checkpoint_but_the_last(run):
    names = sorted(path.name for path in run.folder.samples.iterdir())
    assert names == ["step04.png", "step08.png"]


@pytest.mark.parametrize("grid", ["uniform", "calibrated"])
def test_a_picture_shows_the_first_batch_of_the_samples_of_the_averaged_weights(
    run, tmp_path, heard, grid
):
    draw = pictures_of(run, heard, sampling=dataclasses.replace(CONFIG.sampling, grid=grid))
    assert draw is not None
    draw(state_of(run))
    drawn = dataclasses.replace(CONFIG.sampling, num_samples=24)
    sample_run(run, drawn, output=tmp_path / "same")
    written = run.folder.samples / "step10.png"
    assert written.read_bytes() == (tmp_path / "same.png").read_bytes()
    written.unlink()


def test_nothing_is_drawn_where_it_is_off_or_samples_have_no_picture(run, heard):
    off = dataclasses.replace(CONFIG.training, preview_samples=False)
    assert pictures_of(run, heard, training=off) is None
    assert pictures_of(run._replace(event_shape=(8, 8, 4)), heard) is None


def test_too_little_memory_for_pictures_does_not_end_the_training(run, heard, monkeypatch):
    calls = []

    def no_memory(*_, **__):
        def draw(*_):
            calls.append(1)
            raise jax.errors.JaxRuntimeError(failure)

        return draw

    monkeypatch.setattr("fmjax.jobs.train.preview.make_run_sampler", no_memory)
    failure = "RESOURCE_EXHAUSTED: out of memory"
    draw = pictures_of(run, heard)
    assert draw is not None
    draw(state_of(run))
    draw(state_of(run))
    assert len(calls) == 1, "it is not tried again"
    assert [line.split(":")[0] for line in heard.lines] == ["warning"]
    failure = "INTERNAL: broken"
    draw = pictures_of(run, heard)
    assert draw is not None
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        draw(state_of(run))


@pytest.mark.slow
def test_images_of_classes_have_a_row_for_each_class(tmp_path):
    """Ten rows of three digits: the picture is higher than wide."""
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
