"""Runs on captions, from a folder of images to prompts and back."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fmjax._arrays import TokenShape
from fmjax.cli import main
from fmjax.config import SamplingConfig
from fmjax.data import (
    CaptionedClasses,
    Dataset,
    IdxData,
    TokenizerConfig,
    read_word_tokenizer,
    train_tokenizer,
)
from fmjax.jobs.evaluate import evaluate
from fmjax.jobs.evaluate.evaluate import read_evaluation
from fmjax.jobs.train.train import train_folder
from fmjax.runs import real_data
from fmjax.runs.folder import open_run, read_captions, read_config, read_model
from fmjax.runs.sampling.conditions import data_conditions, network_conditions, requested_conditions
from fmjax.runs.sampling.files import (
    read_samples,
    sample_grid,
    settings_name,
)

pytestmark = pytest.mark.slow

CONFIG = """
from fmjax.config import *
from fmjax.data import CaptionedImages, TokenizerConfig
from fmjax.networks import MMDiTConfig, TextEncoderConfig

def get_config():
    return Config(
        name="words", data=CaptionedImages({folder!r}, size=4, tokenizer=TokenizerConfig(4, 16)),
        network=MMDiTConfig(2, 2, 8, 1, qk_norm=True), text_encoder=TextEncoderConfig(8, 1, 2),
        training=TrainingConfig(num_steps=3, batch_size=8, log_every=1),
        sampling=SamplingConfig(num_samples=8, solver="euler", num_steps=2, guidance=2.0,
                                prompts=("a red picture", "blue")),
        compare=CompareConfig(num_samples=8, fixed_solvers=("euler",), num_steps=(2,),
                              adaptive_solvers=(), tolerances=()),
        evaluation=EvaluationConfig(num_samples=16, num_projections=8, num_trajectories=8),
    )
"""
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def fmjax(*arguments):
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    return end.value.code


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the config `words.py`, and the run `run` that it trained."""
    folder = tmp_path_factory.mktemp("words")
    for number in range(24):
        name = list(COLOURS)[number % 3]
        for split in ("train", "test"):
            (folder / "images" / split).mkdir(parents=True, exist_ok=True)
            stem = folder / "images" / split / str(number)
            Image.new("RGB", (6, 5), COLOURS[name]).save(stem.with_suffix(".png"))
            stem.with_suffix(".txt").write_text(f"a {name} picture")
    (folder / "words.py").write_text(CONFIG.format(folder=str(folder / "images")))
    assert fmjax("train", folder / "words.py", "--run", folder / "run") == 0
    return folder


@pytest.fixture
def run(trained):
    return open_run(trained / "run")


def test_training_leaves_all_that_prompts_need(trained, run):
    assert read_model(trained / "run") == ((4, 4, 3), TokenShape(4, 16))
    captions = ("a red picture", "a green picture", "a blue picture")
    assert read_captions(trained / "run") == captions
    assert run.num_classes is None
    assert run.tokenizer.decode(run.tokenizer.encode(captions)) == [
        f"{name} picture" for name in COLOURS
    ]
    for name in ("report.html", "evaluation.json", "comparison.json", "samples/grid.png"):
        assert (trained / "run" / name).is_file()
    assert "One row per prompt." in (trained / "run" / "report.html").read_text()


def test_the_samples_are_of_the_prompts_of_the_config_in_rows(trained):
    drawn, step = read_samples(trained / "run" / "samples" / "grid.npz")
    assert step == 3
    assert drawn.prompts == ("a red picture", "blue")
    np.testing.assert_array_equal(drawn.labels, [0] * 4 + [1] * 4)
    images, columns, names = sample_grid(drawn)
    assert (len(images), columns, names) == (8, 4, ("a red picture", "blue"))


def test_prompts_are_asked_for_at_the_command_line(trained, capsys):
    arguments = ("--prompts", "a green picture", "a purple blue", "--num-samples", "6")
    assert fmjax("sample", trained / "run", *arguments, "--output", trained / "asked") == 0
    assert "words that are not in the training captions: purple" in capsys.readouterr().out
    drawn, _ = read_samples(trained / "asked.npz")
    assert drawn.prompts == ("a green picture", "a purple blue")
    assert (trained / "asked.png").is_file()


def test_without_prompts_some_captions_of_the_training_are_asked_for(run):
    asked = requested_conditions(run, 6)
    assert asked.prompts == run.captions
    np.testing.assert_array_equal(asked.labels, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(asked.cond, run.tokenizer.encode(run.captions)[asked.labels])


def test_data_are_asked_for_in_the_words_that_the_run_knows(run):
    train = run.config.data.load("train")
    asked = data_conditions(run, train, 50, seed=0)
    assert asked.cond.shape == (50, 4)
    counts = np.unique(asked.cond, axis=0, return_counts=True)[1]
    assert sorted(counts) == [16, 17, 17] or sum(counts) == 50
    assert asked.labels is None
    which = np.array([0, 3])
    np.testing.assert_array_equal(network_conditions(run, train, which), train.conds(which))


def test_a_run_goes_on_only_with_the_captions_that_it_was_trained_on(trained, capsys):
    command = ("train", trained / "words.py", "--run", trained / "run")
    assert fmjax(*command) == 0
    caption = trained / "images" / "train" / "0.txt"
    text = caption.read_text()
    caption.write_text("a yellow picture")
    try:
        assert fmjax(*command) == 2
    finally:
        caption.write_text(text)
    assert "other words: the captions have changed" in capsys.readouterr().err


def test_a_run_goes_on_by_the_rule_that_its_words_were_split_by(trained, tmp_path):
    texts = [f"a {name} picture {sign}" for name in COLOURS for sign in ("か", "が", "!")]
    texts = (texts * 3)[:24]
    new, old = (train_tokenizer(texts, TokenizerConfig(4, 16), rule=rule) for rule in (2, 1))
    assert new.to_json() != old.to_json()
    shutil.copytree(trained, tmp_path / "copy")
    images, run = tmp_path / "copy" / "images", tmp_path / "copy" / "run"
    for place, text in enumerate(texts):
        (images / "train" / f"{place}.txt").write_text(text)
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace(str(trained / "images"), str(images)))
    old.write(run / "tokenizer.json")
    train_folder(read_config(run), run)
    assert read_word_tokenizer(run / "tokenizer.json").to_json() == old.to_json()


def test_captions_and_prompts_without_a_known_word_are_named(trained, run, heard, tmp_path, capsys):
    requested_conditions(run, 3, (), ("red 🎉", "🎉", "!"), progress=heard)
    assert heard.lines[1] == "warning: prompts without any word of the training captions: '🎉', '!'"
    shutil.copytree(trained / "images", tmp_path / "images")
    for place, text in enumerate(("...", "?", "the")):
        (tmp_path / "images" / "train" / f"{place}.txt").write_text(text)
    options = ("--data.folder", tmp_path / "images", "--training.batch-size", "7")
    assert fmjax("train", trained / "words.py", "--run", trained / "other", *options) == 2
    said = "3 of 24 captions have no word of the vocabulary and count as empty; the first is"
    assert f"{said} '...'" in capsys.readouterr().out


def test_prompts_that_are_no_unicode_are_refused(run):
    with pytest.raises(ValueError, match=r"prompts must be text in UTF-8, got 'caf\\udce9'"):
        requested_conditions(run, 1, (), ("caf\udce9",))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ("sample", "--classes", "1"),
            "classes must be left out for a model conditioned on",
        ),
        (("sample", "--prompts", "a", "b", "--num-samples", "1"), "num_samples must be at least 2"),
        (("invert",), "run must be unconditional or conditioned on classes to be inverted, got"),
        (("reflow",), "be unconditional or conditioned on classes to generate pairs, got captions"),
    ],
)
def test_what_a_run_on_captions_cannot_do_is_refused_in_one_line(
    trained, command, message, capsys, monkeypatch
):
    monkeypatch.chdir(trained)
    assert fmjax(command[0], "run", *command[1:]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_is_cut_of_the_captions_is_said_before_the_training(trained, capsys):
    options = ("--data.tokenizer.num-tokens", "1", "--training.batch-size", "7")
    assert fmjax("train", trained / "words.py", "--run", trained / "other", *options) == 2
    assert "3 captions are longer than tokenizer.num_tokens (1) and" in capsys.readouterr().out


def test_prompts_that_are_too_long_are_cut_with_a_warning(run, heard):
    long = "a red blue red blue red"
    asked = requested_conditions(run, 1, (), (long,), progress=heard)
    np.testing.assert_array_equal(asked.cond, run.tokenizer.encode(["red blue red blue"]))
    assert heard.lines == [f"warning: prompt {long!r} is cut to 4 words"]


def test_prompts_are_refused_of_a_model_without_captions(trained, run, capsys):
    plain = run._replace(conditions=3)
    with pytest.raises(ValueError, match="prompts must be left out for a model that was not"):
        requested_conditions(plain, 4, (), ("red",))
    options = ("--no-conditional", "--sampling.guidance", "1")
    assert fmjax("train", trained / "words.py", "--run", trained / "other", *options) == 2
    assert "sampling.prompts must be left out for data without captions" in capsys.readouterr().err


def test_names_of_samples_tell_their_prompts_apart():
    names = {settings_name(SamplingConfig(prompts=p)) for p in [(), ("a",), ("b",), ("a", "b")]}
    assert len(names) == 4
    assert all(name.replace("-", "").replace(".", "").isalnum() for name in names)


def test_of_classes_in_words_it_is_measured_whether_the_prompts_were_met(
    run, tmp_path, monkeypatch
):
    """With a classifier that finds every sample to be of class 1."""

    class Classifier:
        test_accuracy = 0.9

        def accuracy(self, images, labels):
            return float(np.mean(labels == 1))

        def features(self, images):
            return np.asarray(images).reshape(len(images), -1)[:, :3]

    data = run.config.data.load("train")
    labels = np.arange(len(data)) % 4

    def load(source, split, *, progress):
        return Dataset(data.points(), labels, 4, captions=data.captions)

    monkeypatch.setattr(type(run.config.data), "load", load)
    monkeypatch.setattr(evaluate, "data_classifier", lambda data, **_: Classifier())
    evaluation = dataclasses.replace(run.config.evaluation, num_samples=24)
    found = evaluate.evaluate_run(run, evaluation, run.config.sampling)
    assert found.prompted
    assert found.accuracy == 0.25
    assert any(
        "recognized as the class named in the prompt: 25.00 %" in line
        for line in evaluate.described(found)
    )
    assert read_evaluation(run.folder.evaluation) == found


def test_the_judge_of_classes_in_words_is_that_of_the_classes(monkeypatch):
    asked = []

    def load(self, split, *, progress):
        asked.append((self, split))
        return Dataset(np.zeros((4, 28, 28, 1), np.uint8), np.arange(4), 10)

    monkeypatch.setattr(IdxData, "load", load)
    monkeypatch.setattr(real_data, "trained_classifier", lambda train, test, **_: None)
    data = CaptionedClasses(IdxData("fashion_mnist", classes=(3,)))
    real_data.data_classifier(data)
    assert asked == [(IdxData("fashion_mnist"), split) for split in ("train", "test")]


def test_a_file_without_captions_gives_none(trained):
    model = trained / "run" / "model.json"
    text = model.read_text()
    try:
        model.write_text(json.dumps({"event_shape": [2], "num_classes": None}))
        assert read_captions(trained / "run") == ()
        model.write_text("[]")
        with pytest.raises(ValueError, match=r"model\.json must hold an object, got"):
            read_captions(trained / "run")
    finally:
        model.write_text(text)
