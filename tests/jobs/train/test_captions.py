"""End-to-end tests of runs trained on captioned images."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fmjax._specs import class_spec, token_spec
from fmjax.cli import main
from fmjax.config import Sampling
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
from fmjax.runs.sampling.files import read_samples, sample_grid, settings_name

pytestmark = pytest.mark.slow

CONFIG = """
from fmjax._specs import class_spec
from fmjax.config import *
from fmjax.data import CaptionedImages, TokenizerConfig
from fmjax.networks import MMDiTConfig, TextEncoderConfig

def get_config():
    return Config(
        name="words", data=CaptionedImages({folder!r}, size=4, tokenizer=TokenizerConfig(4, 16)),
        network=MMDiTConfig(2, 2, 8, 1, qk_norm=True), text_encoder=TextEncoderConfig(8, 1, 2),
        training=TrainingConfig(num_steps=3, batch_size=8, log_every=1),
        sampling=Sampling.of(num_samples=8, solver="euler", num_steps=2, guidance=2.0,
                                prompts=("a red picture", "blue")),
        compare=CompareConfig(num_samples=8, fixed_solvers=("euler",), num_steps=(2,),
                              adaptive_solvers=(), tolerances=()),
        evaluation=EvaluationConfig(num_samples=16, num_projections=8, num_trajectories=8),
    )
"""
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def run_command(*arguments):
    """Run a command and return its exit code."""
    with pytest.raises(SystemExit) as exit_info:
        main(list(map(str, arguments)))
    return exit_info.value.code


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the config `words.py` and its trained run `run`."""
    folder = tmp_path_factory.mktemp("words")
    for number in range(24):
        name = list(COLORS)[number % 3]
        for split in ("train", "test"):
            (folder / "images" / split).mkdir(parents=True, exist_ok=True)
            stem = folder / "images" / split / str(number)
            Image.new("RGB", (6, 5), COLORS[name]).save(stem.with_suffix(".png"))
            stem.with_suffix(".txt").write_text(f"a {name} picture")
    (folder / "words.py").write_text(CONFIG.format(folder=str(folder / "images")))
    assert run_command("train", folder / "words.py", "--run", folder / "run") == 0
    return folder


@pytest.fixture
def run(trained):
    return open_run(trained / "run")


def test_training_saves_captions_tokenizer_and_report(trained, run):
    assert read_model(trained / "run") == ((4, 4, 3), token_spec(4, 16))
    captions = ("a red picture", "a green picture", "a blue picture")
    assert read_captions(trained / "run") == captions
    assert run.num_classes is None
    assert run.tokenizer.decode(run.tokenizer.encode(captions)) == [
        f"{name} picture" for name in COLORS
    ]
    for name in ("report.html", "evaluation.json", "comparison.json", "samples/grid.png"):
        assert (trained / "run" / name).is_file()
    assert "One row per prompt." in (trained / "run" / "report.html").read_text()


def test_samples_follow_the_prompts_of_the_config(trained):
    samples, step = read_samples(trained / "run" / "samples" / "grid.npz")
    assert step == 3
    assert samples.prompts == ("a red picture", "blue")
    np.testing.assert_array_equal(samples.labels, [0] * 4 + [1] * 4)
    images, columns, names = sample_grid(samples)
    assert (len(images), columns, names) == (8, 4, ("a red picture", "blue"))


def test_sample_command_accepts_prompts(trained, capsys):
    arguments = ("--prompts", "a green picture", "a purple blue", "--num-samples", "6")
    assert run_command("sample", trained / "run", *arguments, "--output", trained / "prompted") == 0
    assert "words that are not in the training captions: purple" in capsys.readouterr().out
    samples, _ = read_samples(trained / "prompted.npz")
    assert samples.prompts == ("a green picture", "a purple blue")
    assert (trained / "prompted.png").is_file()


def test_default_prompts_are_training_captions(run):
    conditions = requested_conditions(run, 6)
    assert conditions.prompts == run.captions
    np.testing.assert_array_equal(conditions.labels, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(
        conditions.cond, run.tokenizer.encode(run.captions)[conditions.labels]
    )


def test_data_conditions_are_encoded_captions(run):
    train = run.config.data.load("train")
    conditions = data_conditions(run, train, 50, seed=0)
    assert conditions.cond.shape == (50, 4)
    counts = np.unique(conditions.cond, axis=0, return_counts=True)[1]
    assert sorted(counts) == [16, 17, 17] or sum(counts) == 50
    assert conditions.labels is None
    indices = np.array([0, 3])
    np.testing.assert_array_equal(network_conditions(run, train, indices), train.conds(indices))


def test_resuming_with_other_captions_is_refused(trained, capsys):
    command = ("train", trained / "words.py", "--run", trained / "run")
    assert run_command(*command) == 0
    caption_file = trained / "images" / "train" / "0.txt"
    original = caption_file.read_text()
    caption_file.write_text("a yellow picture")
    try:
        assert run_command(*command) == 2
    finally:
        caption_file.write_text(original)
    assert "other words: the captions have changed" in capsys.readouterr().err


def test_resumed_run_keeps_the_rule_of_its_tokenizer(trained, tmp_path):
    texts = [f"a {name} picture {sign}" for name in COLORS for sign in ("か", "が", "!")]
    texts = (texts * 3)[:24]
    new, old = (train_tokenizer(texts, TokenizerConfig(4, 16), rule=rule) for rule in (2, 1))
    assert new.to_json() != old.to_json()
    shutil.copytree(trained, tmp_path / "copy")
    images, run = tmp_path / "copy" / "images", tmp_path / "copy" / "run"
    for index, text in enumerate(texts):
        (images / "train" / f"{index}.txt").write_text(text)
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace(str(trained / "images"), str(images)))
    old.write(run / "tokenizer.json")
    train_folder(read_config(run), run)
    assert read_word_tokenizer(run / "tokenizer.json").to_json() == old.to_json()


def test_warnings_list_texts_without_known_words(trained, run, recorder, tmp_path, capsys):
    requested_conditions(run, 3, (), ("red 🎉", "🎉", "!"), progress=recorder)
    assert (
        recorder.lines[1] == "warning: prompts without any word of the training captions: '🎉', '!'"
    )
    shutil.copytree(trained / "images", tmp_path / "images")
    for index, text in enumerate(("...", "?", "the")):
        (tmp_path / "images" / "train" / f"{index}.txt").write_text(text)
    options = ("--data.folder", tmp_path / "images", "--training.batch-size", "7")
    assert run_command("train", trained / "words.py", "--run", trained / "other", *options) == 2
    warning = "3 of 24 captions have no word of the vocabulary and count as empty; the first is"
    assert f"{warning} '...'" in capsys.readouterr().out


def test_prompts_with_invalid_unicode_are_refused(run):
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
def test_unsupported_commands_are_refused_for_caption_runs(
    trained, command, message, capsys, monkeypatch
):
    monkeypatch.chdir(trained)
    assert run_command(command[0], "run", *command[1:]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_number_of_truncated_captions_is_reported_before_training(trained, capsys):
    options = ("--data.tokenizer.num-tokens", "1", "--training.batch-size", "7")
    assert run_command("train", trained / "words.py", "--run", trained / "other", *options) == 2
    assert "3 captions are longer than tokenizer.num_tokens (1) and" in capsys.readouterr().out


def test_long_prompts_are_truncated_with_a_warning(run, recorder):
    long = "a red blue red blue red"
    conditions = requested_conditions(run, 1, (), (long,), progress=recorder)
    np.testing.assert_array_equal(conditions.cond, run.tokenizer.encode(["red blue red blue"]))
    assert recorder.lines == [f"warning: prompt {long!r} is cut to 4 words"]


def test_prompts_are_refused_for_models_without_captions(trained, run, capsys):
    class_run = run._replace(conditions=class_spec(3))
    with pytest.raises(ValueError, match="prompts must be left out for a model that was not"):
        requested_conditions(class_run, 4, (), ("red",))
    options = ("--no-conditional", "--sampling.guidance", "1")
    assert run_command("train", trained / "words.py", "--run", trained / "other", *options) == 2
    assert "sampling.prompts must be left out for data without captions" in capsys.readouterr().err


def test_settings_names_differ_for_different_prompts():
    names = {settings_name(Sampling.of(prompts=p)) for p in [(), ("a",), ("b",), ("a", "b")]}
    assert len(names) == 4
    assert all(name.replace("-", "").replace(".", "").isalnum() for name in names)


def test_evaluation_measures_whether_samples_match_class_prompts(run, tmp_path, monkeypatch):
    """The fake classifier assigns class 1 to all samples."""

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
    result = evaluate.evaluate_run(run, evaluation, run.config.sampling)
    assert result.prompted
    assert result.accuracy == 0.25
    assert any(
        "recognized as the class named in the prompt: 25.00 %" in line
        for line in evaluate.summarize_evaluation(result)
    )
    assert read_evaluation(run.folder.evaluation) == result


def test_classifier_of_captioned_classes_is_trained_on_all_classes(monkeypatch):
    loaded = []

    def load(self, split, *, progress):
        loaded.append((self, split))
        return Dataset(np.zeros((4, 28, 28, 1), np.uint8), np.arange(4), 10)

    monkeypatch.setattr(IdxData, "load", load)
    monkeypatch.setattr(real_data, "trained_classifier", lambda train, test, **_: None)
    data = CaptionedClasses(IdxData("fashion_mnist", classes=(3,)))
    real_data.data_classifier(data)
    assert loaded == [(IdxData("fashion_mnist"), split) for split in ("train", "test")]


def test_model_file_without_captions_gives_no_captions(trained):
    file = trained / "run" / "model.json"
    original = file.read_text()
    try:
        file.write_text(json.dumps({"event_shape": [2], "num_classes": None}))
        assert read_captions(trained / "run") == ()
        file.write_text("[]")
        with pytest.raises(ValueError, match=r"model\.json must hold an object, got"):
            read_captions(trained / "run")
    finally:
        file.write_text(original)
