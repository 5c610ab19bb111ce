"""A whole run on images with classes: what it leaves, what it refuses, what may be drawn of it."""

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
from fmjax.config import (
    CompareConfig,
    Config,
    EvaluationConfig,
    SamplingConfig,
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
from fmjax.jobs.sample.sample import (
    sample_run,
)
from fmjax.jobs.train.prepare import prepare
from fmjax.jobs.train.train import train
from fmjax.networks import DiTConfig
from fmjax.runs.folder import RunFolder, open_run, read_config
from fmjax.runs.load_config import load_config
from fmjax.runs.sampling.batches import SampleSet
from fmjax.runs.sampling.conditions import chosen_labels
from fmjax.runs.sampling.files import (
    describe_sampling,
    read_samples,
    sample_grid,
)
from fmjax.sharding import MeshConfig
from fmjax.training import OptimizerConfig

README = Path(__file__).parents[2] / "README.md"
CONFIG = Config(
    name="tiny",
    data=DigitsData(),
    network=DiTConfig(width=16, num_layers=1, num_heads=2, patch_size=4),
    optimizer=OptimizerConfig(warmup_steps=1),
    training=TrainingConfig(num_steps=3, batch_size=16, log_every=1),
    sampling=SamplingConfig(
        num_samples=20, solver="euler", num_steps=2, guidance=1.5, batch_size=24
    ),
    compare=CompareConfig(
        num_samples=8,
        fixed_solvers=("euler", "adams_bashforth_2"),
        num_steps=(1, 2),
        adaptive_solvers=("tsit5",),
        tolerances=(1e-1,),
    ),
    evaluation=EvaluationConfig(num_samples=24, num_projections=8),
)
DIGITS = ((8, 8, 1), 10)


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = train(CONFIG, tmp_path_factory.mktemp("runs") / "tiny")
    make_results(run)
    return run


@pytest.fixture
def prepared(tmp_path):
    """A run of which nothing is trained yet."""
    folder = RunFolder(tmp_path / "run")
    prepare(folder, CONFIG, *DIGITS)
    return folder


def test_the_run_is_what_the_config_asked_for(run):
    assert (run.config, run.step, run.event_shape, run.num_classes) == (CONFIG, 3, *DIGITS)


@pytest.mark.slow
def test_a_run_opens_in_python_as_the_readme_says(run):
    text = README.read_text()
    lines = text[text.index("    run = fmjax.open_run(") :].split("\n\n")[0]
    names = {"fmjax": fmjax, "jax": jax}
    exec(textwrap.dedent(lines).replace("runs/digits", str(run.folder.root)), names)  # noqa: S102
    assert names["samples"].x1.shape == (10, 8, 8, 1)
    assert names["samples"].succeeded.all()


def test_samples_of_classes_are_measured_by_the_classifier(run):
    found = read_evaluation(run.folder.evaluation)
    assert (found.num_samples, found.num_failed, found.num_examples) == (24, 0, 1442)
    # Two Euler steps, and guidance asks the network twice.
    assert (found.solver, found.nfe) == ("euler with 2 steps and guidance 1.5", 4)
    assert found.frechet > found.frechet_test > 0, "noise is farther off than real digits"
    assert (found.num_half, found.num_test, found.step) == (721, 24, 3)
    assert found.frechet_halves > 0
    assert found.wasserstein > found.wasserstein_halves > 0
    # As many test examples as samples; but samples are too few for a half of the real data.
    assert (found.frechet_as_test, found.wasserstein_as_test) == (found.frechet, found.wasserstein)
    assert found.frechet_as_half is found.wasserstein_as_half is None
    pair = f"24 samples: {found.frechet:.3g}, 24 real test examples: {found.frechet_test:.3g}"
    assert pair in run.folder.report.read_text()
    assert 0 <= found.accuracy <= 1
    assert found.classifier_accuracy > 0.9


@pytest.mark.parametrize(
    ("samples", "test", "expected"),
    [
        (9, 4, {"": (9, 7), "_test": (4, 7), "_as_test": (4, 7), "_as_half": (3, 4)}),
        (3, 0, {"": (3, 7), "_as_half": (3, 4)}),
        (2, 2, {"": (2, 7), "_test": (2, 7), "_as_test": (2, 7)}),
    ],
)
def test_real_examples_are_compared_with_as_many_samples(samples, test, expected):
    """What is compared with what, by the numbers of both."""
    sizes = {}

    def distance(x, y):
        sizes[len(sizes)] = (len(x), len(y))
        return float(len(sizes) - 1)

    halves = (np.arange(3), np.arange(3, 7))
    references = _References(np.zeros((7, 2)), halves, np.zeros((test, 2)))
    found = references.distances("d", distance, np.zeros((samples, 2)))
    by_name = {name.removeprefix("d"): sizes[number] for name, number in found.items()}
    assert by_name == expected | {"_halves": (3, 4)}


def test_distances_of_real_examples_are_printed_with_those_of_as_many_samples():
    numbers = Evaluation(
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
    assert summarize_evaluation(numbers)[1:] == [
        f"  sliced Wasserstein distance 0.5000 ({halves}: 0.7500, the other half: 0.2500)",
        "  Frechet distance 3.000 (355 samples: 7.000, 355 real test examples: 4.000; "
        f"{halves}: 6.000, the other half: 5.000)",
    ]
    fewer = numbers._replace(wasserstein_as_half=None, frechet=None)
    assert summarize_evaluation(fewer)[1:] == ["  sliced Wasserstein distance 0.5000"]


def test_test_data_of_another_shape_are_refused(run, tmp_path):
    digits = DigitsData().load("train")
    x, labels = digits.points(slice(40)), digits.labels[:40]
    np.savez(tmp_path / "train.npz", x=x, labels=labels)
    np.savez(tmp_path / "test.npz", x=x[:, :4], labels=labels)
    data = ArrayData(str(tmp_path), num_classes=10)
    other = run._replace(
        config=dataclasses.replace(CONFIG, data=data), folder=RunFolder(tmp_path / "run")
    )
    message = r"test data must have shape \(8, 8, 1\), got \(4, 8, 1\)"
    with pytest.raises(ValueError, match=message):
        evaluate_run(other, CONFIG.evaluation, CONFIG.sampling)


@pytest.mark.slow
def test_without_a_classifier_the_rest_is_measured_and_shown(run, tmp_path, monkeypatch):
    """No Frechet distance, precision, recall or recognized samples, and no training for them."""

    def refuse(*_, **__):
        raise AssertionError("no classifier may be trained")

    monkeypatch.setattr("fmjax.runs.real_data.trained_classifier", refuse)
    evaluation = dataclasses.replace(CONFIG.evaluation, classifier=False)
    config = dataclasses.replace(CONFIG, evaluation=evaluation)
    shutil.copytree(run.folder.root, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(to_json(config))
    bare = open_run(tmp_path / "run")
    found = evaluate_run(bare, evaluation, CONFIG.sampling)
    with_it = read_evaluation(run.folder.evaluation)
    assert found.wasserstein == with_it.wasserstein
    assert found.wasserstein_as_test == with_it.wasserstein_as_test
    missing = (found.frechet, found.frechet_test, found.accuracy, found.classifier_accuracy)
    assert missing == (None,) * 4
    assert not any(
        "Frechet" in line or "recognized" in line for line in summarize_evaluation(found)
    )
    comparison = compare_run(bare, CONFIG.compare)
    assert {name for row in comparison.runs for name in row.metrics} == {
        "sliced Wasserstein distance"
    }
    page = report_run(bare).read_text()
    assert "Sliced Wasserstein" in page
    assert "Frechet" not in page


def test_the_comparison_has_both_distances_for_every_row(run):
    comparison = json.loads(run.folder.comparison.read_text())
    rows = [(row["solver"], row["steps"] or row["tolerance"]) for row in comparison["runs"]]
    fixed = [(name, n) for name in ("Euler", "Adams-Bashforth 2") for n in (1, 2)]
    assert rows == [*fixed, ("Tsit5", 0.1)]
    text = json.dumps(comparison)
    assert "sliced Wasserstein distance" in text
    assert "Frechet distance" in text
    assert run.folder.comparison.with_suffix(".csv").stat().st_size > 0


def test_the_grid_of_a_run_has_a_row_for_every_class(run):
    drawn, _ = read_samples(run.folder.samples / "grid.npz")
    np.testing.assert_array_equal(drawn.labels, np.repeat(np.arange(10), 2))
    images, columns, names = sample_grid(drawn)
    assert (columns, names) == (2, tuple("0123456789"))
    np.testing.assert_array_equal(images, drawn.x1)


def test_a_row_of_the_grid_that_is_short_ends_blank():
    x1 = np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1) * np.ones((1, 2, 2, 1), np.float32)
    drawn = SampleSet(x1, np.array([7, 7, 4]), np.ones(3, int), np.ones(3, bool))
    images, columns, names = sample_grid(drawn)
    assert (columns, names) == (2, ("7", "4"))
    np.testing.assert_array_equal(images[:, 0, 0, 0], [0, 1, 2, np.nan])


def test_what_starts_from_images_is_shown_below_them():
    x1 = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1)
    drawn = SampleSet(x1, None, np.ones(5, int), np.ones(5, bool), x0=-x1)
    images, columns, names = sample_grid(drawn)
    assert (columns, names) == (2, ("from", "to") * 3)
    pairs = [0, 1, 2, 3, 4, np.nan]
    rows = np.concatenate([[-np.array(two), two] for two in np.split(np.array(pairs), 3)])
    np.testing.assert_array_equal(images[:, 0, 0, 0], rows.ravel())
    labels = np.array([7, 7, 4, 4, 4])
    images, columns, names = sample_grid(drawn._replace(labels=labels))
    assert (columns, names) == (3, ("from", "7", "from", "4"))
    np.testing.assert_array_equal(images[:3, 0, 0, 0], [0, -1, np.nan])
    np.testing.assert_array_equal(images[9:, 0, 0, 0], [2, 3, 4])


def test_only_the_chosen_classes_are_drawn(run, tmp_path):
    drawn = sample_run(run, CONFIG.sampling, classes=(3, 1), output=tmp_path / "two")
    np.testing.assert_array_equal(drawn.labels, [3] * 10 + [1] * 10)
    assert drawn.x1.shape == (20, 8, 8, 1)
    assert (tmp_path / "two.png").stat().st_size > 0
    # The network was told: the same noises as other classes give other images.
    other = sample_run(run, CONFIG.sampling, classes=(5,), output=tmp_path / "one")
    assert np.abs(drawn.x1 - other.x1).max(axis=(1, 2, 3)).min() > 0


def test_weights_are_sampled_from_in_the_layout_they_were_trained_in(run, tmp_path):
    folder = tmp_path / "split"
    shutil.copytree(run.folder.root, folder)
    split = dataclasses.replace(CONFIG, mesh=MeshConfig(data=1, fsdp=8))
    (folder / "config.json").write_text(to_json(split))
    other = open_run(folder)
    assert any("fsdp" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(other.params))
    found, want = (
        sample_run(each, CONFIG.sampling, output=tmp_path / "out").x1 for each in (other, run)
    )
    np.testing.assert_allclose(found, want, atol=1e-5)
    # On other devices than it was trained on, a copy on each of them.
    elsewhere = dataclasses.replace(CONFIG, mesh=MeshConfig(data=1, fsdp=3))
    (folder / "config.json").write_text(to_json(elsewhere))
    assert open_run(folder).mesh.shape == {"data": 8, "fsdp": 1, "tensor": 1}


@pytest.mark.slow
def test_without_test_data_the_rest_is_measured(run, tmp_path):
    digits = DigitsData().load("train")
    np.savez(tmp_path / "train.npz", x=digits.points(slice(200)), labels=digits.labels[:200])
    data = ArrayData(str(tmp_path), num_classes=10)
    blind = run._replace(
        config=dataclasses.replace(CONFIG, data=data), folder=RunFolder(tmp_path / "run")
    )
    found = evaluate_run(blind, CONFIG.evaluation, CONFIG.sampling)
    assert found.wasserstein > 0
    assert (found.frechet, found.accuracy) == (None, None)
    # Test data that are damaged are not the same as none.
    (tmp_path / "test.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"test\.npz must be a valid \.npz file"):
        evaluate_run(blind, CONFIG.evaluation, CONFIG.sampling)
    (tmp_path / "test.npz").unlink()
    # Somebody's own features need no classifier.
    found = evaluate_run(
        blind,
        CONFIG.evaluation,
        CONFIG.sampling,
        extractor=lambda images: np.asarray(images).reshape(len(images), -1)[:, :8],
    )
    assert found.frechet > 0
    assert (found.frechet_test, found.num_test) == (None, 0)


def test_a_comparison_that_the_data_are_too_few_for_is_refused_before_training(tmp_path):
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
def test_labels_are_even_and_only_of_the_chosen_classes(num, classes, expected):
    np.testing.assert_array_equal(chosen_labels(num, 10, classes), expected)


@pytest.mark.parametrize("label", [10, -1])
def test_a_class_that_there_is_not_is_refused(label):
    with pytest.raises(ValueError, match=rf"^class must be between 0 and 9, got {label}$"):
        chosen_labels(4, 10, (0, label))


def test_without_classes_there_are_no_labels_to_choose():
    assert chosen_labels(4, None, ()) is None
    with pytest.raises(ValueError, match="classes must be left out for a model without classes"):
        chosen_labels(4, None, (1,))


@pytest.mark.slow
def test_an_unconditional_model_of_labelled_images_is_measured_by_their_classifier(tmp_path):
    sampling = dataclasses.replace(CONFIG.sampling, guidance=1.0)
    config = dataclasses.replace(CONFIG, name="blind", conditional=False, sampling=sampling)
    run = train(config, tmp_path / "blind")
    assert run.num_classes is None
    assert "label" not in str(run.params.keys()).lower()
    found = evaluate_run(run, config.evaluation, config.sampling)
    assert found.frechet > found.frechet_halves > 0
    assert found.accuracy is None


@pytest.mark.slow
def test_a_finished_run_is_not_made_again(run):
    before = content(run.folder.root)
    make_results(train(CONFIG, run.folder.root))
    after = content(run.folder.root)
    made = [run.folder.evaluation, run.folder.comparison, run.folder.samples / "grid.npz"]
    assert [after[path] for path in [*made, run.folder.metrics]] == [
        before[path] for path in [*made, run.folder.metrics]
    ]


@pytest.mark.slow
def test_results_of_other_weights_and_damaged_ones_are_made_again(run):
    folder = run.folder
    found = json.loads(folder.evaluation.read_text())
    folder.evaluation.write_text(json.dumps({**found, "step": 2, "num_samples": 5}))
    grid = folder.samples / "grid.npz"
    whole, compared = grid.read_bytes(), folder.comparison.read_bytes()
    grid.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"grid\.npz must hold samples that fmjax wrote, got"):
        read_samples(grid)
    make_results(run)
    assert json.loads(folder.evaluation.read_text()) == found
    drawn, step = read_samples(grid)
    assert (len(drawn.x1), step) == (20, 3)
    assert folder.comparison.read_bytes() == compared


def test_another_config_is_refused_by_the_field_that_differs(prepared):
    other = dataclasses.replace(
        CONFIG, training=dataclasses.replace(CONFIG.training, seed=1), name="other"
    )
    before = content(prepared.root)
    with pytest.raises(ValueError, match=r"got different name, training\.seed \(choose"):
        prepare(prepared, other, *DIGITS)
    assert content(prepared.root) == before


def test_a_run_may_go_on_over_another_mesh(prepared):
    before = content(prepared.root)
    prepare(prepared, dataclasses.replace(CONFIG, mesh=MeshConfig(data=2, fsdp=4)), *DIGITS)
    assert content(prepared.root) == before


def test_overwrite_replaces_the_run(prepared):
    old = prepared.samples / "grid.npz"
    old.parent.mkdir()
    old.write_text("old")
    other = dataclasses.replace(CONFIG, name="other")
    prepare(prepared, other, *DIGITS, overwrite=True)
    assert read_config(prepared.root) == other
    assert not old.exists()


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
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, files, overwrite):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = content(tmp_path)
    with pytest.raises(ValueError, match=r"run folder .* must be new, empty or contain a run, got"):
        prepare(RunFolder(tmp_path), CONFIG, *DIGITS, overwrite=overwrite)
    assert content(tmp_path) == before


def test_a_start_that_was_killed_between_its_two_files_can_be_made_again(prepared):
    prepared.config.unlink()
    prepare(prepared, CONFIG, *DIGITS)
    assert read_config(prepared.root) == CONFIG


@pytest.mark.parametrize("text", ["not json", "[]", '{"num_samples": 4, "fid": 3.0}'])
def test_an_evaluation_that_is_none_is_refused(tmp_path, text):
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
            "from fmjax.config import Config, SamplingConfig\n"
            "def get_config():\n    return Config('x', sampling=SamplingConfig(control='mine'))",
            "config.sampling.control must be a ErrorControl, got 'mine'",
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
def test_a_file_that_gives_no_config_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(path)


@pytest.mark.usefixtures("unchecked")
def test_whole_numbers_may_be_written_as_powers_of_ten(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from fmjax.config import Config, TrainingConfig\n"
        "def get_config():\n    return Config('x', training=TrainingConfig(num_steps=1e3))"
    )
    num_steps = load_config(path).training.num_steps
    assert type(num_steps) is int
    assert num_steps == 1000


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingConfig(), "tsit5 at tolerance 0.0001"),
        (SamplingConfig(solver="heun", num_steps=1), "heun with 1 step"),
        (
            SamplingConfig(solver="rk4", num_steps=8, grid="edm", guidance=1.5),
            "rk4 with 8 edm steps and guidance 1.5",
        ),
    ],
)
def test_how_samples_are_drawn_is_said_in_words(sampling, expected):
    assert describe_sampling(sampling) == expected


def test_a_config_does_not_change_where_the_command_works_and_who_gets_its_signals(
    tmp_path, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import os, signal\nfrom fmjax.config import Config\nos.chdir('elsewhere')\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.signal(signal.SIGINT, print)\n"
        "signal.set_wakeup_fd(-1)\ndef get_config():\n    return Config('x')"
    )
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    old = signal.set_wakeup_fd(writer)
    try:
        load_config(Path("mine.py"))
        assert signal.set_wakeup_fd(old) == writer
    finally:
        signal.set_wakeup_fd(old)
        os.close(reader)
        os.close(writer)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert Path.cwd() == tmp_path


def test_a_missing_config_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="config must exist, got"):
        load_config(tmp_path / "absent.py")
