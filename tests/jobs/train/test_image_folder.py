"""Tests of the commands on a folder of images: data, train and sample, with class names."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmjax import cli
from fmjax.report.images import image_grid
from fmjax.runs.folder import open_run
from fmjax.runs.sampling.files import read_samples

CONFIG = Path(__file__).parents[3] / "configs" / "image_folder.py"
SHADES = {"dark": 40, "light": 220}
SMALL = shlex.split(
    """
    --network.width 16 --network.num-layers 1 --network.num-heads 2 --network.patch-size 16
    --training.num-steps 4 --training.batch-size 8 --training.checkpoint-every 2
    --training.log-every 1 --optimizer.warmup-steps 1
    --sampling.num-samples 4 --sampling.batch-size 4 --sampling.num-steps 2
    """
)


def run(*arguments):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([str(argument) for argument in arguments])
    return exit_info.value.code


def write_jpegs(folder, num=24, side=64):
    """Write JPEG images of mixed modes, each of random shades around that of its class."""
    rng = np.random.default_rng(0)
    for name, shade in SHADES.items():
        (folder / name).mkdir(parents=True)
        for number in range(num):
            pixels = np.clip(rng.normal(shade, 10, (side, side, 3)), 0, 255).astype(np.uint8)
            image = Image.fromarray(pixels).convert(("RGB", "L", "CMYK")[number % 3])
            image.save(folder / name / f"{number}.jpg")


@pytest.mark.slow
def test_a_class_folder_is_shown_trained_and_sampled_by_commands(tmp_path, monkeypatch, capsys):
    # Other tests cover the evaluation and the comparison of runs of images.
    for job in ("evaluate_run", "compare_run"):
        monkeypatch.setattr(f"fmjax.jobs.report.results.{job}", lambda *_, progress: None)
    monkeypatch.chdir(tmp_path)
    write_jpegs(tmp_path / "images")
    (tmp_path / "images" / "dark" / "0.jpg").write_bytes(b"")
    assert run("data", CONFIG) == 0
    shown = capsys.readouterr().out
    assert "skipped 1 of 48 images in images, which cannot be read: dark/0.jpg (an empty" in shown
    assert "wrote runs/image_folder-data.png" in shown
    assert run("train", CONFIG, *SMALL) == 0
    folder = tmp_path / "runs" / "image_folder"
    assert json.loads((folder / "model.json").read_text())["class_names"] == ["dark", "light"]
    assert (folder / "samples" / "step2.png").is_file()
    assert run("sample", folder, "--num-samples", 4, "--output", tmp_path / "mine") == 0
    samples, step = read_samples(tmp_path / "mine.npz")
    assert step == 4
    assert samples.x1.shape == (4, 64, 64, 3)
    expected = np.asarray(image_grid(samples.x1, 2, row_labels=("dark", "light")))
    with Image.open(tmp_path / "mine.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected)
    with Image.open(folder / "figures" / "samples.png") as picture:
        on_page = np.asarray(picture.convert("RGB"))
    grid, _ = read_samples(folder / "samples" / "grid.npz")
    expected = np.asarray(image_grid(grid.x1, 2, row_labels=("dark", "light")))
    np.testing.assert_array_equal(on_page, expected)
    assert open_run(folder).class_names == ("dark", "light")
    (tmp_path / "images" / "dark").rename(tmp_path / "images" / "night")
    assert run("train", CONFIG, *SMALL) == 2
    error = capsys.readouterr().err
    assert "must have the class names of the data (replace the run with --overwrite), got" in error
