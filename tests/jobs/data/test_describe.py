"""Tests of `fmjax data`: the summary of each split and the picture of examples."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from fmjax import cli
from fmjax.config import Config, MLPConfig
from fmjax.data import ArrayData, Dataset, IdxData, ImageFolder, ToyData, load
from fmjax.jobs.data import describe
from fmjax.jobs.data.describe import describe_data, example_picture, summarize_data
from tests.data.sources.test_captions import captioned_images, write_images
from tests.data.sources.test_image_folder import write_classes
from tests.data.sources.test_mnist import write_idx_files


def config_of(data, **settings):
    return Config("mine", data=data, network=MLPConfig(), **settings)


def numbers_in(line):
    """Return the range, mean and standard deviation in a line of a split."""
    found = re.search(r"values (\S+) to (\S+), mean (\S+), std (\S+?)(?: |$)", line)
    return [float(number) for number in found.groups()]


@pytest.mark.parametrize("chunk", [7, 1_024])
def test_values_are_those_of_all_examples_in_memory(chunk, monkeypatch):
    monkeypatch.setattr(describe, "_CHUNK", chunk)
    rng = np.random.default_rng(0)
    train, test = (
        Dataset(rng.normal(3, 2, (num, 4, 4, 1)), np.arange(num) % 3, num_classes=3)
        for num in (1_440, 25)
    )
    lines = list(summarize_data(train, test))
    assert lines[0] == "images of shape (4, 4, 1), float64"
    for line, dataset in zip(lines[1:3], (train, test), strict=True):
        expected = [function(dataset.x) for function in (np.min, np.max, np.mean, np.std)]
        # The mean and the standard deviation are printed with three digits.
        np.testing.assert_allclose(numbers_in(line), expected, rtol=5e-3)
    assert lines[1].startswith("train: 1,440 examples, ")
    assert lines[2].startswith("test: 25 examples, ")
    assert lines[3:5] == ["3 classes:", "  label  train  test"]
    assert [line.split() for line in lines[5:]] == [
        ["0", "480", "9"],
        ["1", "480", "8"],
        ["2", "480", "8"],
    ]


def test_classes_of_a_folder_are_listed_by_name(tmp_path, recorder):
    for split, num in (("train", 12), ("test", 3)):
        write_classes(tmp_path / "images" / split, num)
    data = ImageFolder(str(tmp_path / "images"), size=4)
    output = tmp_path / "examples.png"
    assert describe_data(config_of(data), output, progress=recorder)
    table = [line.split() for line in recorder.lines[3:8]]
    names = ("blue", "green", "red")
    assert table[:2] == [["3", "classes:"], ["label", "name", "train", "test"]]
    assert table[2:] == [[str(label), name, "12", "3"] for label, name in enumerate(names)]
    assert recorder.lines[-1] == f"wrote {output}"
    with Image.open(output) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    centers = pixels[4 + 28 : len(pixels) : 60, -30]  # Cells of 56 pixels and gaps of 4.
    np.testing.assert_array_equal(centers, [(0, 0, 255), (0, 255, 0), (255, 0, 0)])


def test_only_some_images_of_files_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(describe, "_MAX_READ", 3)
    write_classes(tmp_path, 4)
    train = load(ImageFolder(str(tmp_path), size=4, test_every=10**6))
    lines = list(summarize_data(train, None))
    assert lines[0] == "images of shape (4, 4, 3), uint8 pixels, scaled to [-1, 1]"
    assert lines[1].endswith(" (of 3 examples)")
    assert lines[1].startswith("train: 12 examples, values -1 to 1, mean -0.333, ")
    assert lines[3].split() == ["label", "name", "train"]


def test_many_classes_are_shortened_and_empty_ones_reported():
    labels = np.repeat(np.arange(99), 2)[1:]
    data = Dataset(np.zeros((len(labels), 2), np.float32), labels, num_classes=100)
    lines = list(summarize_data(data, None))
    assert lines[2] == "100 classes:"
    assert len(lines) == 3 + 1 + 20 + 2
    assert lines[-2] == "  and 80 more; each class has 0 to 2 in train"
    assert lines[-1] == "warning: 1 of the classes have no training example"


def test_captions_are_summarized_with_their_vocabulary(tmp_path, recorder):
    write_images(tmp_path / "train", 6)
    write_images(tmp_path / "test", 3)
    (tmp_path / "test" / "0.txt").write_text("a purple\npicture")
    data = captioned_images(tmp_path)
    assert describe_data(config_of(data), tmp_path.parent / "x.png", progress=recorder)
    # Padding, unknown, and the words red, green, blue and picture.
    assert recorder.lines[3:7] == [
        "captions: 3 different in train, vocabulary of 6 tokens (at most 16), 4 tokens per caption",
        "  'a red picture'",
        "  'a green picture'",
        "  'a blue picture'",
    ]
    assert recorder.lines[7] == "words of test captions that are not in the vocabulary: 1 (purple)"
    indices, rows, prompts = describe._choose_examples(load(data))
    assert prompts == ("a red picture", "a green picture", "a blue picture")
    np.testing.assert_array_equal(indices, [0, 3, 1, 4, 2, 5])
    np.testing.assert_array_equal(rows, [0, 0, 1, 1, 2, 2])
    assert example_picture(load(data, "test")) is not None  # A caption of two lines.


@pytest.mark.slow
def test_points_in_the_plane_are_plotted_in_the_color_of_their_class(tmp_path, recorder):
    data = ToyData("moons", num_examples=100)
    config = config_of(data, source=ToyData("eight_gaussians", num_examples=50))
    assert describe_data(config, tmp_path / "x.png", progress=recorder)
    assert recorder.lines[0] == "points of shape (2,), float32"
    assert recorder.lines[3] == "no conditions: the model is unconditional"
    assert recorder.lines[5].startswith("source: train: 50 examples, ")
    plain, colored = (
        example_picture(load(dataclasses.replace(data, conditional=conditional)))
        for conditional in (False, True)
    )
    assert plain == (tmp_path / "x.png").read_bytes() != colored


def test_other_shapes_have_no_picture_and_the_test_split_may_be_missing(tmp_path, recorder):
    np.savez(tmp_path / "train.npz", x=np.ones((5, 3, 3, 4), np.float32))
    assert not describe_data(
        config_of(ArrayData(str(tmp_path))), tmp_path / "x.png", progress=recorder
    )
    assert recorder.lines[0].startswith("data without a test split: data.folder must hold test.npz")
    assert recorder.lines[2] == "train: 5 examples, values 1 to 1, mean 1, std 0"
    assert recorder.lines[-1] == "no picture: examples of shape (3, 3, 4) are not shown"
    assert not (tmp_path / "x.png").exists()


def test_classes_that_a_config_does_not_use_are_left_out(tmp_path, recorder):
    write_idx_files(tmp_path)
    data = IdxData("fashion_mnist", folder=str(tmp_path))
    assert load(data).class_names[9] == "Ankle boot"
    describe_data(config_of(data, conditional=False), tmp_path / "x.png", progress=recorder)
    assert recorder.lines[3] == "no conditions: the model is unconditional"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("x.jpg", "output must end in .png, got"),
        ("images/x.png", "output must be outside .*images, got"),
        ("images", "output must end in .png, got"),
    ],
)
def test_outputs_among_the_images_or_of_another_format_are_refused(tmp_path, output, message):
    write_classes(tmp_path / "images", 1)
    data = ImageFolder(str(tmp_path / "images"), size=4)
    with pytest.raises(ValueError, match=message):
        describe_data(config_of(data), tmp_path / output)


def test_the_command_writes_next_to_the_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.py").write_text(
        "from fmjax.config import *\n"
        "def get_config():\n"
        "    return Config('toy', data=ArrayData('none'), network=MLPConfig())\n"
    )
    for split, num in (("train", 8), ("test", 2)):
        np.savez(tmp_path / f"{split}.npz", x=np.zeros((num, 2, 2, 1), np.uint8))
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["data", "toy.py", "--data.folder", "."])
    assert exit_info.value.code == 0
    assert "train: 8 examples" in capsys.readouterr().out
    assert (tmp_path / "runs" / "toy-data.png").is_file()
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["data", "toy.py"])
    assert exit_info.value.code == 2
    assert "data.folder must hold train.npz" in capsys.readouterr().err


def test_moments_of_standardized_data_are_reported(tmp_path, recorder):
    config = config_of(ToyData("moons", num_examples=64), standardize=True)
    describe_data(config, tmp_path / "examples.png", progress=recorder)
    (line,) = (line for line in recorder.lines if line.startswith("standardized"))
    x = load(ToyData("moons", num_examples=64)).x
    stds = " to ".join(f"{std:.4g}" for std in sorted(x.std(axis=0, dtype=np.float64)))
    assert line.endswith(f", divide by {stds}")
