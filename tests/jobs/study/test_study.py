"""End-to-end tests of a small study."""

import dataclasses
import json

import numpy as np
import pytest

from fmjax.config import (
    Config,
    EvaluationConfig,
    ReflowConfig,
    Sampling,
    StudyConfig,
    TrainingConfig,
)
from fmjax.data import DigitsData, ToyData, open_pairs
from fmjax.jobs.evaluate.straightness import measure_straightness, read_straightness
from fmjax.jobs.report.report import report_study
from fmjax.jobs.study.seeds import mean_row
from fmjax.jobs.study.study import run_study
from fmjax.networks import DiTConfig, MLPConfig
from fmjax.paths import Prediction
from fmjax.report.comparison import SolverRun, read_json
from fmjax.report.gallery import read_gallery
from fmjax.runs.folder import open_run
from fmjax.runs.sampling.calibrated_grid import run_grid
from fmjax.training import OptimizerConfig

pytestmark = pytest.mark.slow

FIRST = Config(
    name="first",
    data=DigitsData(),
    network=DiTConfig(width=16, num_layers=1, num_heads=2, patch_size=4),
    optimizer=OptimizerConfig(warmup_steps=1),
    training=TrainingConfig(num_steps=2, batch_size=16, log_every=1),
)
SECOND = dataclasses.replace(
    FIRST, name="second", loss=dataclasses.replace(FIRST.loss, prediction=Prediction.X1)
)
STUDY = StudyConfig(
    name="small",
    runs=(FIRST, SECOND),
    samplings=(
        Sampling.of(solver="euler", num_steps=2, grid="calibrated", batch_size=24),
        Sampling.of(solver="euler_maruyama", num_steps=2, batch_size=24),
    ),
    num_samples=24,
    num_trajectories=8,
)


def modification_times(folder):
    return {file: file.stat().st_mtime_ns for file in (folder / "rows").iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    run_study(STUDY, folder)
    return folder


def test_comparison_has_one_row_per_model_and_sampling(folder):
    comparison = read_json(folder / "comparison.json")
    rows = [(run.model, run.solver, run.family, run.steps) for run in comparison.runs]
    assert rows == [
        (model, solver, family, 2)
        for model in ("first", "second")
        for solver, family in (
            ("Euler, calibrated grid", "fixed"),
            ("Euler-Maruyama", "stochastic"),
        )
    ]
    assert comparison.higher_is_better == ("Precision", "Recall", "Recognised")
    for run in comparison.runs:
        assert run.nfe_mean == 2
        assert np.isnan(run.rmse_mean)
        assert 0 < run.metrics["Frechet distance"] < np.inf
        assert all(0 <= run.metrics[name] <= 1 for name in comparison.higher_is_better)
    # Real test digits resemble the training digits.
    assert comparison.floors["Recognised"] > 0.9
    assert comparison.floors["Precision"] > 0.5


def test_the_gallery_shows_one_sample_of_each_class(folder):
    entries = read_gallery(folder / "gallery.npz")
    assert [entry.model for entry in entries] == ["first"] * 2 + ["second"] * 2
    assert all(entry.images.shape == (10, 8, 8, 1) for entry in entries)


def test_existing_rows_are_kept_and_damaged_rows_regenerated(folder):
    before, comparison = modification_times(folder), (folder / "comparison.json").read_bytes()
    run_study(STUDY, folder)
    assert modification_times(folder) == before
    damaged = next(file for file in before if file.suffix == ".json" and "maruyama" in file.name)
    damaged.write_text(damaged.read_text()[:20])
    run_study(STUDY, folder)
    assert {
        file for file, modified in modification_times(folder).items() if modified != before[file]
    } == {
        damaged,
        damaged.with_suffix(".npz"),
    }
    regenerated, original = (
        json.loads(text) for text in ((folder / "comparison.json").read_bytes(), comparison)
    )
    for row in (*regenerated["runs"], *original["runs"]):
        row["seconds"] = 0.0  # Only the times differ.
    assert regenerated == original


def test_calibrated_grid_is_cached_per_weights_and_guidance(folder):
    run = open_run(folder / "first")
    cached = json.loads(run.folder.grid.read_text())
    assert (cached["step"], cached["guidance"]) == (2, 1.0)
    before = run.folder.grid.stat().st_mtime_ns
    plain = run_grid(run, Sampling.of())
    assert plain.density == tuple(cached["density"])
    assert run.folder.grid.stat().st_mtime_ns == before
    guided = run_grid(run, Sampling.of(guidance=2.0))
    assert guided != plain
    run.folder.grid.write_text("{}")
    assert run_grid(run, Sampling.of()) == plain


def test_study_report_names_models_and_solvers(folder):
    page = report_study(STUDY, folder).read_text()
    assert "second" in page
    assert "Euler-Maruyama" in page


def test_unsuitable_data_and_settings_are_refused(folder, tmp_path):
    toy = Config(
        name="toy",
        data=ToyData("moons", num_examples=64),
        network=MLPConfig(width=8),
        training=TrainingConfig(num_steps=1, batch_size=8),
        loss=dataclasses.replace(FIRST.loss, label_drop=0.0),
    )
    with pytest.raises(ValueError, match="study data must be images with classes and a test set"):
        run_study(StudyConfig("toy", (toy,), STUDY.samplings, 16), tmp_path)
    too_many = dataclasses.replace(STUDY, num_samples=400)
    with pytest.raises(ValueError, match="num_samples must be at most 355, the number of .*, got"):
        run_study(too_many, folder)
    without_classifier = dataclasses.replace(FIRST, evaluation=EvaluationConfig(classifier=False))
    message = "evaluation.classifier of first must be True in a study, .*, got False"
    with pytest.raises(ValueError, match=message):
        run_study(dataclasses.replace(STUDY, runs=(without_classifier,)), tmp_path)


def test_student_run_has_a_teacher_and_samplings_in_the_study(folder):
    # The shared folder keeps the results of the first run.
    pairs = ReflowConfig("first", num_pairs=32, sampling=Sampling.of(solver="euler", num_steps=1))
    student = dataclasses.replace(FIRST, name="student", reflow=pairs)
    samplings = (Sampling.of(solver="euler", num_steps=1, batch_size=24),)
    study = dataclasses.replace(
        STUDY,
        runs=(FIRST, student),
        samplings=STUDY.samplings[1:],
        samplings_by_run={"student": samplings},
    )
    before = modification_times(folder)
    comparison = run_study(study, folder)
    assert [(run.model, run.solver) for run in comparison.runs] == [
        ("first", "Euler-Maruyama"),
        ("student", "Euler"),
    ]
    assert before.items() <= modification_times(folder).items()
    assert open_run(folder / "student").config.reflow.teacher == str(folder / "first")
    assert len(open_pairs(folder / "first" / "pairs", (8, 8, 1), 10)) == 32
    straightness = read_straightness(folder / "student" / "straightness.json")
    assert straightness.step == 2
    assert straightness.s > 0
    assert len(straightness.deviation) == len(straightness.times)
    assert 0 < comparison.runs[0].metrics["High frequencies"] < 1
    flow_map = Sampling.of(solver="flow_map", num_steps=1)
    with pytest.raises(ValueError, match="solver 'flow_map' needs a flow-map model"):
        run_study(dataclasses.replace(study, samplings=(flow_map,)), folder)


def test_rows_are_means_over_seeds_with_their_spread(folder):
    # The shared folder keeps the trainings and rows of the first seed.
    pairs = ReflowConfig("first", num_pairs=32, sampling=Sampling.of(solver="euler", num_steps=1))
    student = dataclasses.replace(FIRST, name="pupil", reflow=pairs)
    samplings = (Sampling.of(solver="euler", num_steps=1, batch_size=24),)
    study = dataclasses.replace(STUDY, runs=(FIRST, student), samplings=samplings, num_seeds=2)
    one_seed = run_study(dataclasses.replace(study, num_seeds=1), folder)
    assert all(not row.spread for row in one_seed.runs)
    before = modification_times(folder)
    two_seeds = run_study(study, folder)
    assert before.items() <= modification_times(folder).items()
    assert [row.model for row in two_seeds.runs] == ["first", "pupil"]
    for row, first_seed in zip(two_seeds.runs, one_seed.runs, strict=True):
        for name, mean in row.metrics.items():
            # The standard deviation of two numbers is their distance over the square root of two.
            distance = 2 * abs(mean - first_seed.metrics[name])
            assert row.spread[name] == pytest.approx(distance / 2**0.5, abs=1e-9)
        assert row.spread["Frechet distance"] > 0
    second_student = open_run(folder / "pupil_seed1")
    assert second_student.config.training.seed == FIRST.training.seed + 1
    assert second_student.config.reflow.teacher == str(folder / "first_seed1")
    assert second_student.config.reflow.sampling.seed == 1
    saved = read_json(folder / "comparison.json")
    assert [row.spread for row in saved.runs] == [row.spread for row in two_seeds.runs]
    header = (folder / "comparison.csv").read_text().splitlines()[0]
    assert "Frechet distance, spread" in header
    page = report_study(study, folder).read_text()
    assert (
        f"{two_seeds.runs[0].metrics['Recall']:.3g} ± {two_seeds.runs[0].spread['Recall']:.2g}"
        in page
    )
    assert "first_seed1" in page
    assert "4 models" in page
    assert "means over 2 seeds" in page
    straightness = read_straightness(folder / "first" / "straightness.json")
    assert f"{straightness.cost:.3g}" in page


def test_spread_of_infinite_metrics_is_nan():
    row = SolverRun("Euler", 2, None, 2.0, 2, np.nan, np.nan, 1.0, metrics={"Recall": 0.5})
    mean = mean_row([row, row._replace(metrics={"Recall": np.inf}, nfe_max=4, seconds=2.0)])
    assert np.isnan(mean.spread["Recall"])
    assert mean.metrics["Recall"] == np.inf
    assert (mean.nfe_max, mean.seconds) == (4, 1.5)


def test_metrics_missing_for_one_seed_are_nan():
    row = SolverRun("Euler", 2, None, 2.0, 2, np.nan, np.nan, 1.0, metrics={"Recall": 0.5})
    for rows in ([row, row._replace(metrics={})], [row._replace(metrics={}), row]):
        mean = mean_row(rows)
        assert np.isnan(mean.metrics["Recall"])
        assert np.isnan(mean.spread["Recall"])


def test_straightness_is_recomputed_for_other_settings(folder):
    study = dataclasses.replace(STUDY, runs=(FIRST,), num_trajectories=4)
    run_study(study, folder)
    assert read_straightness(folder / "first" / "straightness.json").num_trajectories == 4
    measure_straightness(open_run(folder / "first"), Sampling.of(guidance=2.0), 4)
    run_study(study, folder)
    assert read_straightness(folder / "first" / "straightness.json").guidance == 1.0


def test_each_seed_of_a_student_has_its_teacher_and_pairs():
    def student(teacher, pairs=None):
        return dataclasses.replace(FIRST, name="pupil", reflow=ReflowConfig(teacher, pairs))

    inside, outside = (
        dataclasses.replace(STUDY, runs=runs, num_seeds=2)
        for runs in ((FIRST, student("first", "made")), (student("elsewhere"),))
    )
    last = inside.all_trainings[-1].reflow
    assert (last.teacher, last.pairs, last.sampling.seed) == ("first_seed1", "made_seed1", 1)
    last = outside.all_trainings[-1].reflow
    assert (last.teacher, last.pairs) == ("elsewhere", "elsewhere/pairs_seed1")
    late = dataclasses.replace(FIRST, name="late")
    with pytest.raises(ValueError, match="runs must list teachers before their students"):
        dataclasses.replace(STUDY, runs=(student("late_seed1"), late), num_seeds=2)


def test_names_of_seed_trainings_must_be_distinct():
    duplicate = dataclasses.replace(FIRST, name="first_seed1")
    with pytest.raises(ValueError, match="runs must have distinct names, got"):
        dataclasses.replace(STUDY, runs=(FIRST, duplicate), num_seeds=2)
    with pytest.raises(ValueError, match="num_seeds must lie in .1, 1000., got 0"):
        dataclasses.replace(STUDY, num_seeds=0)
