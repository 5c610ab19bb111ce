"""Tests of `fmjax invert` on a velocity field in closed form."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from fmjax import cli
from fmjax._specs import class_spec
from fmjax.config import Config, build
from fmjax.config.invert import InvertConfig
from fmjax.data import DigitsData, load
from fmjax.jobs.invert import invert
from fmjax.jobs.invert.image_examples import Examples, chosen_images, over_devices, read_image
from fmjax.jobs.invert.invert import RoundTrip, invert_run, summarize_round_trip
from fmjax.jobs.invert.pictures import edit_all
from fmjax.networks import DiTConfig
from fmjax.paths import Linear, VelocityNet
from fmjax.runs import folder as run_folder
from fmjax.runs.folder import Run, RunFolder
from fmjax.sharding import make_mesh
from tests.oracles import Gaussian

STD = 0.2
ONE_DEVICE = jax.make_mesh(
    (1, 1),
    ("data", "fsdp"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:1],
)
CONFIG = Config("oracle", DigitsData(), network=DiTConfig(width=16, num_layers=1, num_heads=2))
SETTINGS = InvertConfig(
    num_images=4,
    fixed_solvers=("rk4",),
    num_steps=(4, 64),
    adaptive_solvers=("bosh3",),
    tolerances=(1e-4,),
    num_shown=3,
    num_between=3,
    strengths=(0.0, 1.0),
    solver="bosh3",
)


def mean_of(labels):
    return (0.1 * labels).reshape(-1, 1, 1, 1)


def velocity(params, t, x, labels):
    """Velocity for pixels distributed as N(label / 10, STD^2); without labels, label is 0."""
    return Gaussian(Linear(), 0.0 if labels is None else mean_of(labels), STD).velocity(t, x)


@pytest.fixture
def run(tmp_path):
    experiment = build(CONFIG, (8, 8, 1), 10)
    net = VelocityNet(lambda key: {}, velocity)
    experiment = experiment._replace(model=experiment.model._replace(net=net))
    return Run(
        RunFolder(tmp_path), CONFIG, experiment, (8, 8, 1), class_spec(10), {}, 7, ONE_DEVICE
    )


@pytest.fixture
def picture(tmp_path):
    """A gray image file of 8 x 8 pixels with 64 different levels."""
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(tmp_path / "gray.png")
    return tmp_path / "gray.png"


def image_size(file):
    with Image.open(file) as image:
        return image.size


@pytest.mark.slow
def test_round_trips_recover_the_test_images(run):
    result = invert_run(run, SETTINGS)
    coarse, fine, adaptive = result.round_trips
    assert [trip.num_steps for trip in result.round_trips] == [4, 64, None]
    # RK4 costs four evaluations per step in each direction.
    assert (coarse.nfe, fine.nfe) == (2 * 4 * 4, 2 * 4 * 64)
    assert fine.worst_rmse is not None
    assert adaptive.worst_rmse is not None
    assert adaptive.noise_rms is not None
    assert coarse.mean_rmse is not None
    assert coarse.mean_rmse > 10 * fine.worst_rmse
    assert max(fine.worst_rmse, adaptive.worst_rmse) < 1e-3
    assert [trip.num_failed for trip in result.round_trips] == [0, 0, 0]
    # The exact flow map is x1 = mean + STD x0.
    examples = chosen_images(load(DigitsData(), "test"), 4)
    x0 = (examples.x - mean_of(examples.labels)) / STD
    np.testing.assert_allclose(adaptive.noise_rms, np.sqrt(np.mean(x0**2)), rtol=1e-3)
    document = json.loads(run.folder.inversion.read_text())
    assert (document["step"], document["num_images"]) == (7, 4)
    assert document["round_trips"] == [trip._asdict() for trip in result.round_trips]
    assert document["edits"][0]["rmse"] == 0.0
    # A row has two images and three between them; a cell is 56 pixels and a gap of 4.
    width, height = image_size(run.folder.samples / "interpolation.png")
    assert width > 5 * 60 > width - 60
    assert 60 < height < 2 * 60, "one pair of three images"
    assert image_size(run.folder.samples / "edits.png")[1] > 3 * 60


def test_pairs_of_test_images_share_their_class():
    test = load(DigitsData(), "test")
    examples = chosen_images(test, 24)
    two_of_each = np.repeat(np.arange(10), 2)
    np.testing.assert_array_equal(examples.labels, [*two_of_each, 0, 0, 1, 1])
    threes = test.points(np.flatnonzero(test.labels == 3)[:2])
    np.testing.assert_array_equal(examples.x[6:8], threes)
    np.testing.assert_array_equal(chosen_images(test.unconditional(), 3).x, test.points(slice(3)))


def test_edits_are_samples_of_the_target_class(run):
    images = Examples(np.broadcast_to(mean_of(np.array([2, 2])), (2, 8, 8, 1)), np.array([2, 2]))
    images = Examples(images.x.astype(np.float32), images.labels)
    same_class, _ = edit_all(run, SETTINGS, images)
    target_class, _ = edit_all(run, dataclasses.replace(SETTINGS, target_class=7), images)
    # New samples differ by STD and by the distance of the class means. The mean square of 128
    # pixels has a relative standard error of 0.125, and the rms has half of that.
    assert same_class[1].rmse == pytest.approx(STD, rel=0.25)
    assert target_class[1].rmse == pytest.approx(np.hypot(STD, 0.5), rel=0.15)
    assert same_class[0].rmse == target_class[0].rmse == 0.0


def test_single_image_is_not_interpolated(run, picture):
    interpolation = run.folder.samples / "interpolation.png"
    interpolation.parent.mkdir()
    interpolation.write_text("old interpolation")
    config = dataclasses.replace(
        SETTINGS, classes=(3,), fixed_solvers=(), adaptive_solvers=(), strengths=(0.5,)
    )
    invert_run(run, config, (picture,))
    assert [file.name for file in interpolation.parent.iterdir()] == ["edits.png"]


def test_command_line_takes_files_before_options(run, monkeypatch):
    calls = []
    monkeypatch.setattr(run_folder, "open_run", lambda path: run)
    monkeypatch.setattr(run_folder, "read_config", lambda path: CONFIG)
    monkeypatch.setattr(invert, "invert_run", lambda *args, progress: calls.append(args))
    for arguments in (["a.png", "b.png", "--classes", "3", "4"], ["--target-class", "2"]):
        with pytest.raises(SystemExit) as exit_info:
            cli.main(["invert", "anywhere", *arguments])
        assert exit_info.value.code == 0
    files = (Path("a.png"), Path("b.png"))
    assert calls[0] == (run, InvertConfig(classes=(3, 4)), files)
    assert calls[1] == (run, InvertConfig(target_class=2), ())


def test_gray_and_color_files_are_scaled_to_minus_one_to_one(picture, tmp_path):
    x = read_image(picture, (8, 8, 1))
    assert (x.shape, x.dtype) == ((8, 8, 1), np.float32)
    np.testing.assert_allclose(x.ravel(), np.arange(64) * 4 / 127.5 - 1, atol=1e-6)
    Image.new("RGB", (3, 2), (255, 0, 51)).save(tmp_path / "color.png")
    color = read_image(tmp_path / "color.png", (2, 3, 3))
    np.testing.assert_allclose(color[1, 2], [1.0, -1.0, -0.6], atol=1e-6)
    # Rec. 601 luma: 0.299 x 255 + 0.114 x 51 = 82.
    gray = read_image(tmp_path / "color.png", (2, 3, 1))
    np.testing.assert_allclose(gray, 82 / 127.5 - 1, atol=0.01)


def test_invalid_image_files_are_refused(picture, tmp_path):
    with pytest.raises(ValueError, match="gray.png must be 28 x 28 pixels, the size of the model"):
        read_image(picture, (28, 28, 1))
    with pytest.raises(ValueError, match=r"gray.png must have mode RGB, got L"):
        read_image(picture, (8, 8, 3))
    Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    with pytest.raises(ValueError, match="clear.png must have mode L or 1 or RGB, got RGBA"):
        read_image(tmp_path / "clear.png", (8, 8, 1))
    picture.write_bytes(picture.read_bytes()[:45])
    with pytest.raises(ValueError, match="gray.png must be a valid image file, got"):
        read_image(picture, (8, 8, 1))
    picture.write_text("no image")
    with pytest.raises(ValueError, match="gray.png must be a valid image file, got"):
        read_image(picture, (8, 8, 1))
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.png", (8, 8, 1))


def test_over_devices_accepts_any_number_of_examples(run):
    mapped = over_devices(run._replace(mesh=make_mesh()), lambda params, x, labels, y: (x * y, x))
    x = np.arange(11.0, dtype=np.float32).reshape(11, 1)
    product, same = mapped(Examples(x, None), np.float32(2.0))
    np.testing.assert_array_equal(product, 2 * x)
    np.testing.assert_array_equal(same, x)


@pytest.mark.parametrize(
    ("setting", "images", "message"),
    [
        ({"classes": (1,)}, 0, r"classes must be left out without image files, got \(1,\)"),
        ({}, 1, r"classes must have one class for each of the 1 images, got"),
        ({"classes": (1, 2)}, 1, "classes must have one class for each of the 1 images"),
        ({"classes": (10,)}, 1, r"classes must be between 0 and 9, got 10"),
        ({"target_class": -1}, 0, r"target_class must be between 0 and 9, got -1"),
    ],
)
def test_invalid_classes_are_refused(run, picture, setting, images, message):
    with pytest.raises(ValueError, match=message):
        invert_run(run, dataclasses.replace(SETTINGS, **setting), (picture,) * images)


def test_models_without_classes_or_images_are_refused(run, picture):
    unconditional = run._replace(conditions=None)
    with pytest.raises(ValueError, match="target_class must be left out for a model without"):
        invert_run(unconditional, dataclasses.replace(SETTINGS, target_class=1))
    with pytest.raises(ValueError, match="classes must be left out for a model without classes"):
        invert_run(unconditional, dataclasses.replace(SETTINGS, classes=(1,)), (picture,))
    with pytest.raises(ValueError, match=r"run must have images with 1 or 3 .*event shape \(2,\)"):
        invert_run(run._replace(event_shape=(2,)), SETTINGS)
    without_null = run._replace(
        experiment=run.experiment._replace(model=run.model._replace(null_cond=None))
    )
    with pytest.raises(ValueError, match="guidance must be 1 for a model without classes"):
        invert_run(without_null, dataclasses.replace(SETTINGS, guidance=2.0))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_images": 0}, "num_images must be at least 1, got 0"),
        ({"num_between": 1}, "num_between must be at least 2, got 1"),
        ({"fixed_solvers": ("hein",)}, r"fixed_solvers must be one of .*did you mean 'heun'"),
        ({"adaptive_solvers": ("rk4",)}, "adaptive_solvers must be one of"),
        ({"solver": "euler"}, "solver must be one of"),
        ({"num_steps": (0,)}, "num_steps must lie in .1, 16777216., got 0"),
        ({"tolerances": (0.0,)}, "tolerance must be positive, got 0.0"),
        ({"strengths": ()}, "strengths must hold at least one"),
        ({"strengths": (1.5,)}, r"strength must lie in \[0.0, 1.0\], got 1.5"),
        ({"guidance": -1.0}, "guidance must be at least 0"),
    ],
)
def test_invalid_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        InvertConfig(**setting)


def test_round_trip_summary_names_failed_solves():
    trip = RoundTrip("heun", 8, None, 32.0, 1e-3, 2e-3, 1.0, 2)
    assert summarize_round_trip(trip).endswith("rms of the noise 1.000; 2 solves failed")
    all_failed = trip._replace(mean_rmse=None, worst_rmse=None, noise_rms=None)
    assert (
        summarize_round_trip(all_failed)
        == "heun, 8 steps, 32 network evaluations: all solves failed"
    )
