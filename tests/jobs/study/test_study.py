"""A small study from end to end: what it leaves, what it keeps, what it refuses."""

import dataclasses
import json

import numpy as np
import pytest

from fmjax.config import (
    Config,
    EvaluationConfig,
    ReflowConfig,
    SamplingConfig,
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
        SamplingConfig(solver="euler", num_steps=2, grid="calibrated", batch_size=24),
        SamplingConfig(solver="euler_maruyama", num_steps=2, batch_size=24),
    ),
    num_samples=24,
    num_trajectories=8,
)


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "rows").iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    run_study(STUDY, folder)
    return folder


def test_there_is_a_row_for_every_model_and_sampling(folder):
    found = read_json(folder / "comparison.json")
    rows = [(run.model, run.solver, run.family, run.steps) for run in found.runs]
    assert rows == [
        (model, solver, family, 2)
        for model in ("first", "second")
        for solver, family in (
            ("Euler, calibrated grid", "fixed"),
            ("Euler-Maruyama", "stochastic"),
        )
    ]
    assert found.higher_is_better == ("Precision", "Recall", "Recognised")
    for run in found.runs:
        assert run.nfe_mean == 2
        assert np.isnan(run.rmse_mean)
        assert 0 < run.metrics["Frechet distance"] < np.inf
        assert all(0 <= run.metrics[name] <= 1 for name in found.higher_is_better)
    # Real digits that it was not trained on are like the others.
    assert found.floors["Recognised"] > 0.9
    assert found.floors["Precision"] > 0.5


def test_the_gallery_shows_one_sample_of_each_class(folder):
    entries = read_gallery(folder / "gallery.npz")
    assert [entry.model for entry in entries] == ["first"] * 2 + ["second"] * 2
    assert all(entry.images.shape == (10, 8, 8, 1) for entry in entries)


def test_what_is_there_is_kept_and_what_is_damaged_is_drawn_again(folder):
    before, table = stamps(folder), (folder / "comparison.json").read_bytes()
    run_study(STUDY, folder)
    assert stamps(folder) == before
    damaged = next(path for path in before if path.suffix == ".json" and "maruyama" in path.name)
    damaged.write_text(damaged.read_text()[:20])
    run_study(STUDY, folder)
    assert {path for path, stamp in stamps(folder).items() if stamp != before[path]} == {
        damaged,
        damaged.with_suffix(".npz"),
    }
    again, first = (json.loads(text) for text in ((folder / "comparison.json").read_bytes(), table))
    for row in (*again["runs"], *first["runs"]):
        row["seconds"] = 0.0  # The time is another; the samples are the same.
    assert again == first


def test_a_calibrated_grid_is_kept_for_its_weights_and_guidance(folder):
    run = open_run(folder / "first")
    kept = json.loads(run.folder.grid.read_text())
    assert (kept["step"], kept["guidance"]) == (2, 1.0)
    before = run.folder.grid.stat().st_mtime_ns
    plain = run_grid(run, SamplingConfig())
    assert plain.density == tuple(kept["density"])
    assert run.folder.grid.stat().st_mtime_ns == before
    guided = run_grid(run, SamplingConfig(guidance=2.0))
    assert guided != plain
    run.folder.grid.write_text("{}")
    assert run_grid(run, SamplingConfig()) == plain


def test_a_study_has_a_page(folder):
    page = report_study(STUDY, folder).read_text()
    assert "second" in page
    assert "Euler-Maruyama" in page


def test_data_without_classes_and_too_many_samples_are_refused(folder, tmp_path):
    toy = Config(
        name="toy",
        data=ToyData("moons", num_examples=64),
        network=MLPConfig(width=8),
        training=TrainingConfig(num_steps=1, batch_size=8),
        loss=dataclasses.replace(FIRST.loss, label_drop=0.0),
    )
    with pytest.raises(ValueError, match="study data must be images with classes and a test set"):
        run_study(StudyConfig("toy", (toy,), STUDY.samplings, 16), tmp_path)
    many = dataclasses.replace(STUDY, num_samples=400)
    with pytest.raises(ValueError, match="num_samples must be at most 355, the number of .*, got"):
        run_study(many, folder)
    bare = dataclasses.replace(FIRST, evaluation=EvaluationConfig(classifier=False))
    message = "evaluation.classifier of first must be True in a study, .*, got False"
    with pytest.raises(ValueError, match=message):
        run_study(dataclasses.replace(STUDY, runs=(bare,)), tmp_path)


def test_a_run_may_learn_from_another_of_the_study_and_have_ways_of_its_own(folder):
    # In the same folder: what is there of the first is kept.
    pairs = ReflowConfig(
        "first", num_pairs=32, sampling=SamplingConfig(solver="euler", num_steps=1)
    )
    student = dataclasses.replace(FIRST, name="student", reflow=pairs)
    one = (SamplingConfig(solver="euler", num_steps=1, batch_size=24),)
    study = dataclasses.replace(
        STUDY,
        runs=(FIRST, student),
        samplings=STUDY.samplings[1:],
        samplings_by_run={"student": one},
    )
    before = stamps(folder)
    found = run_study(study, folder)
    assert [(run.model, run.solver) for run in found.runs] == [
        ("first", "Euler-Maruyama"),
        ("student", "Euler"),
    ]
    assert before.items() <= stamps(folder).items()
    assert open_run(folder / "student").config.reflow.teacher == str(folder / "first")
    assert len(open_pairs(folder / "first" / "pairs", (8, 8, 1), 10)) == 32
    paths = read_straightness(folder / "student" / "straightness.json")
    assert paths.step == 2
    assert paths.s > 0
    assert len(paths.deviation) == len(paths.times)
    assert 0 < found.runs[0].metrics["High frequencies"] < 1
    wrong = SamplingConfig(solver="flow_map", num_steps=1)
    with pytest.raises(ValueError, match="solver 'flow_map' needs a flow-map model"):
        run_study(dataclasses.replace(study, samplings=(wrong,)), folder)


def test_seeds_give_means_and_their_spread(folder):
    # In the same folder: the first seed's trainings and rows are kept.
    pairs = ReflowConfig(
        "first", num_pairs=32, sampling=SamplingConfig(solver="euler", num_steps=1)
    )
    student = dataclasses.replace(FIRST, name="pupil", reflow=pairs)
    way = (SamplingConfig(solver="euler", num_steps=1, batch_size=24),)
    study = dataclasses.replace(STUDY, runs=(FIRST, student), samplings=way, num_seeds=2)
    one = run_study(dataclasses.replace(study, num_seeds=1), folder)
    assert all(not row.spread for row in one.runs)
    before = stamps(folder)
    found = run_study(study, folder)
    assert before.items() <= stamps(folder).items()
    assert [row.model for row in found.runs] == ["first", "pupil"]
    for both, alone in zip(found.runs, one.runs, strict=True):
        for name, mean in both.metrics.items():
            # Of two numbers: the mean of both, and their distance over the root of two.
            distance = 2 * abs(mean - alone.metrics[name])
            assert both.spread[name] == pytest.approx(distance / 2**0.5, abs=1e-9)
        assert both.spread["Frechet distance"] > 0
    other = open_run(folder / "pupil_seed1")
    assert other.config.training.seed == FIRST.training.seed + 1
    assert other.config.reflow.teacher == str(folder / "first_seed1")
    assert other.config.reflow.sampling.seed == 1
    kept = read_json(folder / "comparison.json")
    assert [row.spread for row in kept.runs] == [row.spread for row in found.runs]
    header = (folder / "comparison.csv").read_text().splitlines()[0]
    assert "Frechet distance, spread" in header
    page = report_study(study, folder).read_text()
    assert f"{found.runs[0].metrics['Recall']:.3g} ± {found.runs[0].spread['Recall']:.2g}" in page
    assert "first_seed1" in page
    assert "4 models" in page
    assert "means over 2 seeds" in page
    kept = read_straightness(folder / "first" / "straightness.json")
    assert f"{kept.cost:.3g}" in page


def test_the_spread_of_what_is_not_finite_is_not_known():
    row = SolverRun("Euler", 2, None, 2.0, 2, np.nan, np.nan, 1.0, metrics={"Recall": 0.5})
    found = mean_row([row, row._replace(metrics={"Recall": np.inf}, nfe_max=4, seconds=2.0)])
    assert np.isnan(found.spread["Recall"])
    assert found.metrics["Recall"] == np.inf
    assert (found.nfe_max, found.seconds) == (4, 1.5)


def test_figures_that_one_seed_lacks_are_not_known():
    row = SolverRun("Euler", 2, None, 2.0, 2, np.nan, np.nan, 1.0, metrics={"Recall": 0.5})
    for rows in ([row, row._replace(metrics={})], [row._replace(metrics={}), row]):
        found = mean_row(rows)
        assert np.isnan(found.metrics["Recall"])
        assert np.isnan(found.spread["Recall"])


def test_paths_are_followed_again_if_others_are_asked_for(folder):
    few = dataclasses.replace(STUDY, runs=(FIRST,), num_trajectories=4)
    run_study(few, folder)
    assert read_straightness(folder / "first" / "straightness.json").num_trajectories == 4
    measure_straightness(open_run(folder / "first"), SamplingConfig(guidance=2.0), 4)
    run_study(few, folder)
    assert read_straightness(folder / "first" / "straightness.json").guidance == 1.0


def test_the_seeds_of_a_student_have_pairs_and_teachers_of_their_own():
    def student(teacher, pairs=None):
        return dataclasses.replace(FIRST, name="pupil", reflow=ReflowConfig(teacher, pairs))

    own, outside = (
        dataclasses.replace(STUDY, runs=runs, num_seeds=2)
        for runs in ((FIRST, student("first", "made")), (student("elsewhere"),))
    )
    last = own.all_trainings[-1].reflow
    assert (last.teacher, last.pairs, last.sampling.seed) == ("first_seed1", "made_seed1", 1)
    last = outside.all_trainings[-1].reflow
    assert (last.teacher, last.pairs) == ("elsewhere", "elsewhere/pairs_seed1")
    late = dataclasses.replace(FIRST, name="late")
    with pytest.raises(ValueError, match="runs must list teachers before their students"):
        dataclasses.replace(STUDY, runs=(student("late_seed1"), late), num_seeds=2)


def test_trainings_of_seeds_must_have_names_of_their_own():
    taken = dataclasses.replace(FIRST, name="first_seed1")
    with pytest.raises(ValueError, match="runs must have distinct names, got"):
        dataclasses.replace(STUDY, runs=(FIRST, taken), num_seeds=2)
    with pytest.raises(ValueError, match="num_seeds must lie in .1, 1000., got 0"):
        dataclasses.replace(STUDY, num_seeds=0)
