"""`fmjax invert` on a field in closed form: what it measures, shows, takes and refuses."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from fmjax import cli
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
ONE = jax.make_mesh(
    (1, 1),
    ("data", "fsdp"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:1],
)
CONFIG = Config("oracle", DigitsData(), network=DiTConfig(width=16, num_layers=1, num_heads=2))
SMALL = InvertConfig(
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
    """Of data N(label / 10, STD^2) in each pixel; without labels, of label 0."""
    return Gaussian(Linear(), 0.0 if labels is None else mean_of(labels), STD).velocity(t, x)


@pytest.fixture
def run(tmp_path):
    experiment = build(CONFIG, (8, 8, 1), 10)._replace(net=VelocityNet(lambda key: {}, velocity))
    return Run(RunFolder(tmp_path), CONFIG, experiment, (8, 8, 1), 10, {}, 7, ONE)


@pytest.fixture
def picture(tmp_path):
    """A grey file of 8 x 8 pixels, each with a level of its own."""
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(tmp_path / "grey.png")
    return tmp_path / "grey.png"


def size_of(path):
    with Image.open(path) as image:
        return image.size


@pytest.mark.slow
def test_test_images_go_to_noise_and_back(run):
    found = invert_run(run, SMALL)
    coarse, fine, adaptive = found.round_trips
    assert [trip.num_steps for trip in found.round_trips] == [4, 64, None]
    # RK4 asks four times a step, in each direction.
    assert (coarse.nfe, fine.nfe) == (2 * 4 * 4, 2 * 4 * 64)
    assert fine.worst_rmse is not None
    assert adaptive.worst_rmse is not None
    assert adaptive.noise_rms is not None
    assert coarse.mean_rmse is not None
    assert coarse.mean_rmse > 10 * fine.worst_rmse
    assert max(fine.worst_rmse, adaptive.worst_rmse) < 1e-3
    assert [trip.num_failed for trip in found.round_trips] == [0, 0, 0]
    # By the flow map x1 = mean + STD x0.
    examples = chosen_images(load(DigitsData(), "test"), 4)
    x0 = (examples.x - mean_of(examples.labels)) / STD
    np.testing.assert_allclose(adaptive.noise_rms, np.sqrt(np.mean(x0**2)), rtol=1e-3)
    document = json.loads(run.folder.inversion.read_text())
    assert (document["step"], document["num_images"]) == (7, 4)
    assert document["round_trips"] == [trip._asdict() for trip in found.round_trips]
    assert document["edits"][0]["rmse"] == 0.0
    # An image, three of the way, and the other: a cell is 56 pixels and 4 of gap.
    width, height = size_of(run.folder.samples / "interpolation.png")
    assert width > 5 * 60 > width - 60
    assert 60 < height < 2 * 60, "one pair of three images"
    assert size_of(run.folder.samples / "edits.png")[1] > 3 * 60


def test_pairs_of_test_images_share_their_class():
    test = load(DigitsData(), "test")
    examples = chosen_images(test, 24)
    two_of_each = np.repeat(np.arange(10), 2)
    np.testing.assert_array_equal(examples.labels, [*two_of_each, 0, 0, 1, 1])
    threes = test.points(np.flatnonzero(test.labels == 3)[:2])
    np.testing.assert_array_equal(examples.x[6:8], threes)
    np.testing.assert_array_equal(chosen_images(test.unconditional(), 3).x, test.points(slice(3)))


def test_edits_ask_for_the_target_class(run):
    images = Examples(np.broadcast_to(mean_of(np.array([2, 2])), (2, 8, 8, 1)), np.array([2, 2]))
    images = Examples(images.x.astype(np.float32), images.labels)
    own, _ = edit_all(run, SMALL, images)
    other, _ = edit_all(run, dataclasses.replace(SMALL, target_class=7), images)
    # Fresh samples differ by their spread, and by how far the classes are apart. Of 128 pixels
    # the mean square has a standard error of 0.125, the rms one of half that.
    assert own[1].rmse == pytest.approx(STD, rel=0.25)
    assert other[1].rmse == pytest.approx(np.hypot(STD, 0.5), rel=0.15)
    assert own[0].rmse == other[0].rmse == 0.0


def test_an_image_without_a_pair_is_not_interpolated(run, picture):
    left = run.folder.samples / "interpolation.png"
    left.parent.mkdir()
    left.write_text("of other images")
    alone = dataclasses.replace(
        SMALL, classes=(3,), fixed_solvers=(), adaptive_solvers=(), strengths=(0.5,)
    )
    invert_run(run, alone, (picture,))
    assert [path.name for path in left.parent.iterdir()] == ["edits.png"]


def test_the_command_line_takes_files_and_then_options(run, monkeypatch):
    asked = []
    monkeypatch.setattr(run_folder, "open_run", lambda path: run)
    monkeypatch.setattr(run_folder, "read_config", lambda path: CONFIG)
    monkeypatch.setattr(invert, "invert_run", lambda *args, progress: asked.append(args))
    for words in (["a.png", "b.png", "--classes", "3", "4"], ["--target-class", "2"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["invert", "anywhere", *words])
        assert stopped.value.code == 0
    files = (Path("a.png"), Path("b.png"))
    assert asked[0] == (run, InvertConfig(classes=(3, 4)), files)
    assert asked[1] == (run, InvertConfig(target_class=2), ())


def test_grey_and_colour_files_become_pixels_from_minus_one_to_one(picture, tmp_path):
    x = read_image(picture, (8, 8, 1))
    assert (x.shape, x.dtype) == ((8, 8, 1), np.float32)
    np.testing.assert_allclose(x.ravel(), np.arange(64) * 4 / 127.5 - 1, atol=1e-6)
    Image.new("RGB", (3, 2), (255, 0, 51)).save(tmp_path / "colour.png")
    colour = read_image(tmp_path / "colour.png", (2, 3, 3))
    np.testing.assert_allclose(colour[1, 2], [1.0, -1.0, -0.6], atol=1e-6)
    # Rec. 601 luma: 0.299 x 255 + 0.114 x 51 = 82.
    grey = read_image(tmp_path / "colour.png", (2, 3, 1))
    np.testing.assert_allclose(grey, 82 / 127.5 - 1, atol=0.01)


def test_files_that_are_not_as_the_model_takes_them_are_refused(picture, tmp_path):
    with pytest.raises(ValueError, match="grey.png must be 28 x 28 pixels, the size of the model"):
        read_image(picture, (28, 28, 1))
    with pytest.raises(ValueError, match=r"grey.png must have mode RGB, got L"):
        read_image(picture, (8, 8, 3))
    Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    with pytest.raises(ValueError, match="clear.png must have mode L or 1 or RGB, got RGBA"):
        read_image(tmp_path / "clear.png", (8, 8, 1))
    picture.write_bytes(picture.read_bytes()[:45])
    with pytest.raises(ValueError, match="grey.png must be a valid image file, got"):
        read_image(picture, (8, 8, 1))
    picture.write_text("no image")
    with pytest.raises(ValueError, match="grey.png must be a valid image file, got"):
        read_image(picture, (8, 8, 1))
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.png", (8, 8, 1))


def test_over_eight_devices_any_number_of_examples_will_do(run):
    spread = over_devices(run._replace(mesh=make_mesh()), lambda params, x, labels, y: (x * y, x))
    x = np.arange(11.0, dtype=np.float32).reshape(11, 1)
    product, same = spread(Examples(x, None), np.float32(2.0))
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
def test_classes_that_do_not_fit_are_refused(run, picture, setting, images, message):
    with pytest.raises(ValueError, match=message):
        invert_run(run, dataclasses.replace(SMALL, **setting), (picture,) * images)


def test_models_without_classes_or_images_are_refused(run, picture):
    plain = run._replace(conditions=None)
    with pytest.raises(ValueError, match="target_class must be left out for a model without"):
        invert_run(plain, dataclasses.replace(SMALL, target_class=1))
    with pytest.raises(ValueError, match="classes must be left out for a model without classes"):
        invert_run(plain, dataclasses.replace(SMALL, classes=(1,)), (picture,))
    with pytest.raises(ValueError, match=r"run must have images with 1 or 3 .*event shape \(2,\)"):
        invert_run(run._replace(event_shape=(2,)), SMALL)
    unguided = run._replace(experiment=run.experiment._replace(null_cond=None))
    with pytest.raises(ValueError, match="guidance must be 1 for a model without classes"):
        invert_run(unguided, dataclasses.replace(SMALL, guidance=2.0))


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
def test_settings_that_mean_nothing_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        InvertConfig(**setting)


def test_images_that_did_not_arrive_are_told():
    trip = RoundTrip("heun", 8, None, 32.0, 1e-3, 2e-3, 1.0, 2)
    assert summarize_round_trip(trip).endswith("rms of the noise 1.000; 2 solves failed")
    none = trip._replace(mean_rmse=None, worst_rmse=None, noise_rms=None)
    assert summarize_round_trip(none) == "heun, 8 steps, 32 network evaluations: all solves failed"
