"""Tests of training, evaluating, comparing and sampling one run on class-conditional images."""

import dataclasses
import json
import os
import shutil
import signal
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

import fmjax
from fmjax._specs import class_spec
from fmjax.config import (
    CompareConfig,
    Config,
    EvaluationConfig,
    Sampling,
    TrainingConfig,
    to_json,
)
from fmjax.data import ArrayData, DigitsData
from fmjax.jobs.compare.compare_run import compare_run
from fmjax.jobs.evaluate.evaluate import (
    Evaluation,
    _References,
    evaluate_run,
    read_evaluation,
    summarize_evaluation,
)
from fmjax.jobs.report.report import report_run
from fmjax.jobs.report.results import make_results
from fmjax.jobs.sample.sample import sample_run
from fmjax.jobs.train.prepare import prepare
from fmjax.jobs.train.train import train
from fmjax.networks import DiTConfig
from fmjax.runs.folder import RunFolder, open_run, read_class_names, read_config, read_model
from fmjax.runs.load_config import load_config
from fmjax.runs.sample_set import SampleSet
from fmjax.runs.sampling.conditions import chosen_labels
from fmjax.runs.sampling.files import describe_sampling, read_samples, sample_grid
from fmjax.sharding import MeshConfig
from fmjax.training import OptimizerConfig

README = Path(__file__).parents[2] / "README.md"
CONFIG = Config(
    name="tiny",
    data=DigitsData(),
    network=DiTConfig(width=16, num_layers=1, num_heads=2, patch_size=4),
    optimizer=OptimizerConfig(warmup_steps=1),
    training=TrainingConfig(num_steps=3, batch_size=16, log_every=1),
    sampling=Sampling.of(num_samples=20, solver="euler", num_steps=2, guidance=1.5, batch_size=24),
    compare=CompareConfig(
        num_samples=8,
        fixed_solvers=("euler", "adams_bashforth_2"),
        num_steps=(1, 2),
        adaptive_solvers=("tsit5",),
        tolerances=(1e-1,),
    ),
    evaluation=EvaluationConfig(num_samples=24, num_projections=8),
)
DIGITS = ((8, 8, 1), class_spec(10))


def file_contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = train(CONFIG, tmp_path_factory.mktemp("runs") / "tiny")
    make_results(run)
    return run


@pytest.fixture
def prepared(tmp_path):
    """The folder of a run before training."""
    folder = RunFolder(tmp_path / "run")
    prepare(folder, CONFIG, *DIGITS)
    return folder


def test_run_matches_the_config(run):
    assert (run.config, run.step, run.event_shape, run.conditions) == (CONFIG, 3, *DIGITS)


@pytest.mark.slow
def test_readme_example_opens_a_run(run):
    text = README.read_text()
    lines = text[text.index("    run = fmjax.open_run(") :].split("\n\n")[0]
    scope = {"fmjax": fmjax, "jax": jax}
    exec(textwrap.dedent(lines).replace("runs/digits", str(run.folder.root)), scope)  # noqa: S102
    assert scope["samples"].x1.shape == (10, 8, 8, 1)
    assert scope["samples"].succeeded.all()


def test_evaluation_of_class_samples_uses_the_classifier(run):
    result = read_evaluation(run.folder.evaluation)
    assert (result.num_samples, result.num_failed, result.num_examples) == (24, 0, 1442)
    # Two Euler steps, each with two network evaluations because of guidance.
    assert (result.solver, result.nfe) == ("euler with 2 steps and guidance 1.5", 4)
    assert result.frechet > result.frechet_test > 0, "noise must be farther away than real digits"
    assert (result.num_half, result.num_test, result.step) == (721, 24, 3)
    assert result.frechet_halves > 0
    assert result.wasserstein > result.wasserstein_halves > 0
    # There are as many test examples as samples, but fewer samples than half of the real data.
    assert (result.frechet_as_test, result.wasserstein_as_test) == (
        result.frechet,
        result.wasserstein,
    )
    assert result.frechet_as_half is result.wasserstein_as_half is None
    pair = f"24 samples: {result.frechet:.3g}, 24 real test examples: {result.frechet_test:.3g}"
    assert pair in run.folder.report.read_text()
    assert 0 <= result.accuracy <= 1
    assert result.classifier_accuracy > 0.9


@pytest.mark.parametrize(
    ("samples", "test", "expected"),
    [
        (9, 4, {"": (9, 7), "_test": (4, 7), "_as_test": (4, 7), "_as_half": (3, 4)}),
        (3, 0, {"": (3, 7), "_as_half": (3, 4)}),
        (2, 2, {"": (2, 7), "_test": (2, 7), "_as_test": (2, 7)}),
    ],
)
def test_reference_distances_compare_equal_numbers_of_samples(samples, test, expected):
    """`expected` maps each distance to the sizes of the two sets it compares."""
    sizes = {}

    def distance(x, y):
        sizes[len(sizes)] = (len(x), len(y))
        return float(len(sizes) - 1)

    halves = (np.arange(3), np.arange(3, 7))
    references = _References(np.zeros((7, 2)), halves, np.zeros((test, 2)))
    result = references.distances("d", distance, np.zeros((samples, 2)))
    by_name = {name.removeprefix("d"): sizes[index] for name, index in result.items()}
    assert by_name == expected | {"_halves": (3, 4)}


def test_summary_lists_real_distances_and_same_size_distances():
    evaluation = Evaluation(
        step=1,
        num_samples=900,
        num_failed=0,
        num_examples=1_442,
        solver="heun",
        nfe=4.0,
        num_half=721,
        num_test=355,
        wasserstein=0.5,
        wasserstein_halves=0.25,
        wasserstein_as_half=0.75,
        frechet=3.0,
        frechet_halves=5.0,
        frechet_as_half=6.0,
        frechet_test=4.0,
        frechet_as_test=7.0,
    )
    halves = "to half of the training examples, 721 samples"
    assert summarize_evaluation(evaluation)[1:] == [
        f"  sliced Wasserstein distance 0.5000 ({halves}: 0.7500, the other half: 0.2500)",
        "  Frechet distance 3.000 (355 samples: 7.000, 355 real test examples: 4.000; "
        f"{halves}: 6.000, the other half: 5.000)",
    ]
    partial = evaluation._replace(wasserstein_as_half=None, frechet=None)
    assert summarize_evaluation(partial)[1:] == ["  sliced Wasserstein distance 0.5000"]


def test_evaluation_refuses_test_data_of_another_shape(run, tmp_path):
    digits = DigitsData().load("train")
    x, labels = digits.points(slice(40)), digits.labels[:40]
    np.savez(tmp_path / "train.npz", x=x, labels=labels)
    np.savez(tmp_path / "test.npz", x=x[:, :4], labels=labels)
    data = ArrayData(str(tmp_path), num_classes=10)
    other_run = run._replace(
        config=dataclasses.replace(CONFIG, data=data), folder=RunFolder(tmp_path / "run")
    )
    message = r"test data must have shape \(8, 8, 1\), got \(4, 8, 1\)"
    with pytest.raises(ValueError, match=message):
        evaluate_run(other_run, CONFIG.evaluation, CONFIG.sampling)


@pytest.mark.slow
def test_without_classifier_only_wasserstein_is_reported(run, tmp_path, monkeypatch):
    """No classifier is trained, and its metrics are omitted."""

    def refuse(*_, **__):
        raise AssertionError("no classifier must be trained")

    monkeypatch.setattr("fmjax.runs.real_data.trained_classifier", refuse)
    evaluation = dataclasses.replace(CONFIG.evaluation, classifier=False)
    config = dataclasses.replace(CONFIG, evaluation=evaluation)
    shutil.copytree(run.folder.root, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(to_json(config))
    opened = open_run(tmp_path / "run")
    result = evaluate_run(opened, evaluation, CONFIG.sampling)
    with_classifier = read_evaluation(run.folder.evaluation)
    assert result.wasserstein == with_classifier.wasserstein
    assert result.wasserstein_as_test == with_classifier.wasserstein_as_test
    classifier_metrics = (
        result.frechet,
        result.frechet_test,
        result.accuracy,
        result.classifier_accuracy,
    )
    assert classifier_metrics == (None,) * 4
    assert not any(
        "Frechet" in line or "recognized" in line for line in summarize_evaluation(result)
    )
    comparison = compare_run(opened, CONFIG.compare)
    assert {name for row in comparison.runs for name in row.metrics} == {
        "sliced Wasserstein distance"
    }
    page = report_run(opened).read_text()
    assert "Sliced Wasserstein" in page
    assert "Frechet" not in page


def test_comparison_has_both_distances_and_all_settings(run):
    comparison = json.loads(run.folder.comparison.read_text())
    rows = [(row["solver"], row["steps"] or row["tolerance"]) for row in comparison["runs"]]
    fixed = [(name, n) for name in ("Euler", "Adams-Bashforth 2") for n in (1, 2)]
    assert rows == [*fixed, ("Tsit5", 0.1)]
    text = json.dumps(comparison)
    assert "sliced Wasserstein distance" in text
    assert "Frechet distance" in text
    assert run.folder.comparison.with_suffix(".csv").stat().st_size > 0


def test_sample_grid_has_one_row_per_class(run):
    samples, _ = read_samples(run.folder.samples / "grid.npz")
    np.testing.assert_array_equal(samples.labels, np.repeat(np.arange(10), 2))
    images, columns, names = sample_grid(samples)
    assert (columns, names) == (2, tuple("0123456789"))
    np.testing.assert_array_equal(images, samples.x1)
    letters = tuple("abcdefghij")
    assert sample_grid(samples, letters)[2] == letters


def test_class_names_are_stored_with_the_model(run, tmp_path):
    assert run.class_names == tuple("0123456789")
    folder = RunFolder(tmp_path / "new")
    names = tuple("abcdefghij")
    prepare(folder, CONFIG, *DIGITS, class_names=names)
    prepare(folder, CONFIG, *DIGITS, class_names=names)
    assert read_class_names(folder.root) == names
    message = r"model.json must have the class names of the data .*, got other names: the classes"
    with pytest.raises(ValueError, match=message):
        prepare(folder, CONFIG, *DIGITS, class_names=names[::-1])
    assert read_model(folder.root) == DIGITS
    model = json.loads(folder.model.read_text())
    folder.model.write_text(json.dumps(model | {"class_names": ["a"]}))
    with pytest.raises(ValueError, match="must hold a name for each of 10 classes, got 1"):
        read_class_names(folder.root)


def test_runs_without_class_names_can_be_read_and_resumed(tmp_path):
    """Older versions did not store names."""
    folder = RunFolder(tmp_path / "old")
    prepare(folder, CONFIG, *DIGITS)
    assert "class_names" not in json.loads(folder.model.read_text())
    assert read_class_names(folder.root) == ()
    prepare(folder, CONFIG, *DIGITS, class_names=tuple("abcdefghij"))
    assert read_class_names(folder.root) == ()


def test_sample_grid_pads_short_rows_with_nan():
    x1 = np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1) * np.ones((1, 2, 2, 1), np.float32)
    samples = SampleSet(x1, np.array([7, 7, 4]), np.ones(3, int), np.ones(3, bool))
    images, columns, names = sample_grid(samples)
    assert (columns, names) == (2, ("7", "4"))
    np.testing.assert_array_equal(images[:, 0, 0, 0], [0, 1, 2, np.nan])


def test_sample_grid_shows_start_images_above_samples():
    x1 = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1)
    samples = SampleSet(x1, None, np.ones(5, int), np.ones(5, bool), x0=-x1)
    images, columns, names = sample_grid(samples)
    assert (columns, names) == (2, ("from", "to") * 3)
    pairs = [0, 1, 2, 3, 4, np.nan]
    rows = np.concatenate([[-np.array(pair), pair] for pair in np.split(np.array(pairs), 3)])
    np.testing.assert_array_equal(images[:, 0, 0, 0], rows.ravel())
    labels = np.array([7, 7, 4, 4, 4])
    images, columns, names = sample_grid(samples._replace(labels=labels))
    assert (columns, names) == (3, ("from", "7", "from", "4"))
    np.testing.assert_array_equal(images[:3, 0, 0, 0], [0, -1, np.nan])
    np.testing.assert_array_equal(images[9:, 0, 0, 0], [2, 3, 4])


def test_samples_are_of_the_chosen_classes_only(run, tmp_path):
    samples = sample_run(run, CONFIG.sampling, classes=(3, 1), output=tmp_path / "two")
    np.testing.assert_array_equal(samples.labels, [3] * 10 + [1] * 10)
    assert samples.x1.shape == (20, 8, 8, 1)
    assert (tmp_path / "two.png").stat().st_size > 0
    # Other classes give other images from the same noise.
    other_class = sample_run(run, CONFIG.sampling, classes=(5,), output=tmp_path / "one")
    assert np.abs(samples.x1 - other_class.x1).max(axis=(1, 2, 3)).min() > 0


def test_open_run_restores_the_training_mesh_layout(run, tmp_path):
    folder = tmp_path / "split"
    shutil.copytree(run.folder.root, folder)
    sharded = dataclasses.replace(CONFIG, mesh=MeshConfig(data=1, fsdp=8))
    (folder / "config.json").write_text(to_json(sharded))
    sharded_run = open_run(folder)
    assert any("fsdp" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(sharded_run.params))
    actual, expected = (
        sample_run(opened, CONFIG.sampling, output=tmp_path / "out").x1
        for opened in (sharded_run, run)
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    # A mesh that does not fit the devices replicates the parameters on each device.
    unavailable = dataclasses.replace(CONFIG, mesh=MeshConfig(data=1, fsdp=3))
    (folder / "config.json").write_text(to_json(unavailable))
    assert open_run(folder).mesh.shape == {"data": 8, "fsdp": 1, "tensor": 1}


@pytest.mark.slow
def test_evaluation_uses_its_samples_again(run, tmp_path, monkeypatch, recorder):
    def refuse(*_, **__):
        raise AssertionError("no samples must be generated")

    folder = tmp_path / "run"
    shutil.copytree(run.folder.root, folder)
    before = read_evaluation(run.folder.evaluation)
    monkeypatch.setattr("fmjax.jobs.evaluate.kept_samples.sample_from_run", refuse)
    on_two_axes = dataclasses.replace(run.config, mesh=MeshConfig(data=2, fsdp=4))
    (folder / "config.json").write_text(to_json(on_two_axes))
    result = evaluate_run(open_run(folder), CONFIG.evaluation, CONFIG.sampling, progress=recorder)
    assert recorder.lines[0] == f"using the 24 samples in {folder / 'samples' / 'evaluation.npz'}"
    assert result == before
    other, opened = CONFIG.sampling.with_names(num_steps=3), open_run(folder)
    with pytest.raises(AssertionError, match="no samples must be generated"):
        evaluate_run(opened, CONFIG.evaluation, other)


@pytest.mark.slow
def test_evaluation_without_test_data_skips_test_metrics(run, tmp_path):
    digits = DigitsData().load("train")
    np.savez(tmp_path / "train.npz", x=digits.points(slice(200)), labels=digits.labels[:200])
    data = ArrayData(str(tmp_path), num_classes=10)
    no_test_run = run._replace(
        config=dataclasses.replace(CONFIG, data=data), folder=RunFolder(tmp_path / "run")
    )
    result = evaluate_run(no_test_run, CONFIG.evaluation, CONFIG.sampling)
    assert result.wasserstein > 0
    assert (result.frechet, result.accuracy) == (None, None)
    # Damaged test data are an error, unlike missing test data.
    (tmp_path / "test.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"test\.npz must be a valid \.npz file"):
        evaluate_run(no_test_run, CONFIG.evaluation, CONFIG.sampling)
    (tmp_path / "test.npz").unlink()
    # A feature extractor of the user needs no classifier.
    result = evaluate_run(
        no_test_run,
        CONFIG.evaluation,
        CONFIG.sampling,
        extractor=lambda images: np.asarray(images).reshape(len(images), -1)[:, :8],
    )
    assert result.frechet > 0
    assert (result.frechet_test, result.num_test) == (None, 0)


def test_train_refuses_comparison_larger_than_half_the_data(tmp_path):
    config = dataclasses.replace(CONFIG, compare=CompareConfig(num_samples=722))
    with pytest.raises(ValueError, match="compare.num_samples must be at most 721, half the"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("num", "classes", "expected"),
    [
        (4, (), [0, 1, 2, 3]),
        (12, (), [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (5, (9, 2), [9, 9, 9, 2, 2]),
        (2, (0,), [0, 0]),
    ],
)
def test_chosen_labels_are_balanced_over_the_chosen_classes(num, classes, expected):
    np.testing.assert_array_equal(chosen_labels(num, 10, classes), expected)


@pytest.mark.parametrize("label", [10, -1])
def test_class_out_of_range_is_refused(label):
    with pytest.raises(ValueError, match=rf"^class must be between 0 and 9, got {label}$"):
        chosen_labels(4, 10, (0, label))


def test_model_without_classes_has_no_labels():
    assert chosen_labels(4, None, ()) is None
    with pytest.raises(ValueError, match="classes must be left out for a model without classes"):
        chosen_labels(4, None, (1,))


@pytest.mark.slow
def test_unconditional_model_of_labeled_images_uses_their_classifier(tmp_path):
    sampling = CONFIG.sampling.with_names(guidance=1.0)
    config = dataclasses.replace(CONFIG, name="blind", conditional=False, sampling=sampling)
    run = train(config, tmp_path / "blind")
    assert run.num_classes is None
    assert "label" not in str(run.params.keys()).lower()
    result = evaluate_run(run, config.evaluation, config.sampling)
    assert result.frechet > result.frechet_halves > 0
    assert result.accuracy is None


@pytest.mark.slow
def test_finished_run_and_its_results_are_kept(run):
    before = file_contents(run.folder.root)
    make_results(train(CONFIG, run.folder.root))
    after = file_contents(run.folder.root)
    results = [run.folder.evaluation, run.folder.comparison, run.folder.samples / "grid.npz"]
    assert [after[file] for file in [*results, run.folder.metrics]] == [
        before[file] for file in [*results, run.folder.metrics]
    ]


@pytest.mark.slow
def test_outdated_and_damaged_results_are_regenerated(run):
    folder = run.folder
    evaluation = json.loads(folder.evaluation.read_text())
    folder.evaluation.write_text(json.dumps({**evaluation, "step": 2, "num_samples": 5}))
    grid = folder.samples / "grid.npz"
    grid_bytes, comparison_bytes = grid.read_bytes(), folder.comparison.read_bytes()
    grid.write_bytes(grid_bytes[: len(grid_bytes) // 2])
    with pytest.raises(ValueError, match=r"grid\.npz must hold samples that fmjax wrote, got"):
        read_samples(grid)
    make_results(run)
    assert json.loads(folder.evaluation.read_text()) == evaluation
    samples, step = read_samples(grid)
    assert (len(samples.x1), step) == (20, 3)
    assert folder.comparison.read_bytes() == comparison_bytes


def test_prepare_names_the_config_fields_that_differ(prepared):
    other = dataclasses.replace(
        CONFIG, training=dataclasses.replace(CONFIG.training, seed=1), name="other"
    )
    before = file_contents(prepared.root)
    message = r"got different name \('tiny' -> 'other'\), training\.seed \(0 -> 1\) \(choose"
    with pytest.raises(ValueError, match=message):
        prepare(prepared, other, *DIGITS)
    assert file_contents(prepared.root) == before


def test_prepare_accepts_another_mesh(prepared):
    before = file_contents(prepared.root)
    prepare(prepared, dataclasses.replace(CONFIG, mesh=MeshConfig(data=2, fsdp=4)), *DIGITS)
    assert file_contents(prepared.root) == before


def test_overwrite_replaces_the_run(prepared):
    old_grid = prepared.samples / "grid.npz"
    old_grid.parent.mkdir()
    old_grid.write_text("old")
    other = dataclasses.replace(CONFIG, name="other")
    prepare(prepared, other, *DIGITS, overwrite=True)
    assert read_config(prepared.root) == other
    assert not old_grid.exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "files",
    [
        {"thesis.tex": "years of work"},
        {"model.json": "{}", "weights.bin": "not ours"},
        {"config.json": '{"port": 8080}'},
        {"config.json": '{"port": 8080}', "model.json": "{}"},
    ],
)
def test_prepare_refuses_folders_that_are_not_runs(tmp_path, files, overwrite):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = file_contents(tmp_path)
    with pytest.raises(ValueError, match=r"run folder .* must be new, empty or contain a run, got"):
        prepare(RunFolder(tmp_path), CONFIG, *DIGITS, overwrite=overwrite)
    assert file_contents(tmp_path) == before


def test_prepare_repeats_an_interrupted_start(prepared):
    prepared.config.unlink()
    prepare(prepared, CONFIG, *DIGITS)
    assert read_config(prepared.root) == CONFIG


@pytest.mark.parametrize("text", ["not json", "[]", '{"num_samples": 4, "fid": 3.0}'])
def test_invalid_evaluation_files_are_refused(tmp_path, text):
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(ValueError, match=r"evaluation\.json must (be JSON|hold)"):
        read_evaluation(tmp_path / "evaluation.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", "must run without errors, got SyntaxError"),
        ("import no_such_module", "must run without errors, got ModuleNotFoundError"),
        (
            "from fmjax.config import LossConfig\n"
            "def get_config():\n    return LossConfig(label_dorp=0.2)",
            r"got TypeError: .*'label_dorp'.*id you mean 'label_drop'\?",
        ),
        ("x = 1", r"must define get_config\(\) -> Config, got None"),
        (
            "def get_config():\n    return {}['name']",
            "must run without errors, got KeyError: 'name'",
        ),
        (
            "from fmjax.config import Config, TrainingConfig\n"
            "def get_config():\n    return Config('x', training=TrainingConfig(batch_size=16.5))",
            r"mine\.py must hold an integer at training\.batch_size, got 16\.5",
        ),
        (
            "from fmjax.config import Config\nfrom fmjax.networks import MLPConfig\n"
            "def get_config():\n    return Config('x', network=MLPConfig)",
            "of fmjax configs: config.network must be a MLPConfig or UNetConfig or DiTConfig",
        ),
        (
            "from fmjax.config import Config, Sampling\n"
            "def get_config():\n    return Config('x', sampling=Sampling.of(control='mine'))",
            "config.sampling.sampler.stepping.control must be a ErrorControl, got 'mine'",
        ),
        (
            "from fmjax.config import Config\nclass Mine: pass\n"
            "def get_config():\n    return Config('x', data=Mine())",
            "config.data must be a DigitsData or ToyData or IdxData or ArrayData or Cifar10Data",
        ),
        ("def get_config():\n    return 3", r"must define get_config\(\) -> Config, got 3"),
        ("import sys\nsys.exit(0)", "mine.py must run without errors, got SystemExit: 0$"),
        ("import sys\nsys.exit()", "mine.py must run without errors, got SystemExit$"),
        (
            "import sys\nsys.exit('no GPU')",
            "mine.py must run without errors, got SystemExit: no GPU$",
        ),
        (
            "def get_config():\n    raise SystemExit(3)",
            "mine.py must run without errors, got SystemExit: 3$",
        ),
        ("raise KeyboardInterrupt", "mine.py must run without errors, got KeyboardInterrupt$"),
        (
            "def get_config():\n    return get_config()",
            "must run without errors, got RecursionError: maximum",
        ),
        (
            "import dataclasses, sys\nfrom fmjax.config import Config\n@dataclasses.dataclass\n"
            "class Mine:\n    def __post_init__(self):\n        sys.exit('part')\n"
            "def get_config():\n    return Config('x', data=Mine())",
            "mine.py must run without errors, got SystemExit: part$",
        ),
        (
            "class Mine:\n    def __repr__(self):\n        raise SystemExit\n"
            "def get_config():\n    return Mine()",
            "mine.py must run without errors, got SystemExit$",
        ),
        (
            "class Mute(Exception):\n    def __str__(self):\n        raise ValueError\nraise Mute",
            "mine.py must run without errors, got Mute$",
        ),
        ("raise GeneratorExit", "mine.py must run without errors, got GeneratorExit$"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_invalid_config_files_are_refused(tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(file)


@pytest.mark.usefixtures("unchecked")
def test_integers_may_be_written_in_scientific_notation(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from fmjax.config import Config, TrainingConfig\n"
        "def get_config():\n    return Config('x', training=TrainingConfig(num_steps=1e3))"
    )
    num_steps = load_config(file).training.num_steps
    assert type(num_steps) is int
    assert num_steps == 1000


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling.of(), "tsit5 at tolerance 0.0001"),
        (Sampling.of(solver="heun", num_steps=1), "heun with 1 step"),
        (
            Sampling.of(solver="rk4", num_steps=8, grid="edm", guidance=1.5),
            "rk4 with 8 edm steps and guidance 1.5",
        ),
    ],
)
def test_describe_sampling_names_solver_steps_and_guidance(sampling, expected):
    assert describe_sampling(sampling) == expected


def test_load_config_restores_working_folder_and_signal_handlers(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import os, signal\nfrom fmjax.config import Config\nos.chdir('elsewhere')\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.signal(signal.SIGINT, print)\n"
        "signal.set_wakeup_fd(-1)\ndef get_config():\n    return Config('x')"
    )
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    handlers = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    old_fd = signal.set_wakeup_fd(writer)
    try:
        load_config(Path("mine.py"))
        assert signal.set_wakeup_fd(old_fd) == writer
    finally:
        signal.set_wakeup_fd(old_fd)
        os.close(reader)
        os.close(writer)
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert Path.cwd() == tmp_path


def test_missing_config_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="config must exist, got"):
        load_config(tmp_path / "absent.py")
