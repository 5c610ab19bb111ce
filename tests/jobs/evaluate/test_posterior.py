"""Tests of the checks of posteriors: ranks, coverage, files and the page."""

import dataclasses
import json

import numpy as np
import pytest

import fmjax
from fmjax.config import EvaluationConfig
from fmjax.data import NoSuchSplit
from fmjax.jobs.evaluate import posterior as module
from fmjax.jobs.evaluate.posterior import (
    check_posterior,
    has_posterior,
    read_posterior,
    read_posterior_samples,
)
from fmjax.jobs.report.report import report_run
from tests.exact_posterior import SIMULATOR, Simulations, exact_run

NUM = 200


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return exact_run(tmp_path_factory.mktemp("exact"))


@pytest.fixture(scope="module")
def result(run):
    return check_posterior(run, NUM)


@pytest.mark.slow
def test_an_exact_posterior_is_calibrated(run, result):
    assert (result.step, result.num_simulations, result.num_failed) == (7, NUM, 0)
    # The seeds are fixed. Each p-value is below 0.01 with probability 0.01.
    assert min(result.p_values) > 0.01
    # Standard errors of coverages over 200 simulations: 0.035 and 0.021.
    assert abs(result.coverage_50 - 0.5) < 0.1
    assert abs(result.coverage_90 - 0.9) < 0.06
    assert read_posterior(run.folder.posterior) == result


@pytest.mark.slow
def test_the_log_density_of_true_parameters_equals_the_closed_form(run, result):
    test = Simulations().load("test", progress=None)
    exact = SIMULATOR.log_density(test.x[:, None], test.conds())[:, 0]
    samples = read_posterior_samples(run.folder)
    np.testing.assert_allclose(samples.log_prob, exact, atol=5e-3)
    np.testing.assert_allclose(result.log_prob, exact.mean(), atol=5e-3)
    np.testing.assert_allclose(result.log_prob_error, exact.std(ddof=1) / np.sqrt(NUM), atol=5e-3)


@pytest.mark.slow
def test_too_narrow_and_too_wide_posteriors_are_detected(tmp_path):
    narrow = check_posterior(exact_run(tmp_path / "narrow", spread=0.6), NUM)
    assert max(narrow.p_values) < 1e-3
    assert narrow.coverage_90 < 0.75
    wide = check_posterior(exact_run(tmp_path / "wide", spread=1.7), NUM)
    assert max(wide.p_values) < 1e-3
    assert wide.coverage_50 > 0.65


@pytest.mark.slow
def test_the_page_shows_corner_plots_ranks_and_coverage(run, result, recorder):
    page = report_run(run, progress=recorder).read_text()
    for name in ("corner-1", "corner-2", "ranks", "coverage"):
        assert (run.folder.root / "figures" / f"{name}.png").is_file()
    assert "Log-density of true parameters" in page
    assert f"{100 * result.coverage_90:.1f} %" in page


@pytest.mark.slow
def test_evaluate_checks_the_posterior(tmp_path, recorder):
    run = exact_run(tmp_path)
    few = dataclasses.replace(run.config.evaluation, num_simulations=20)
    fmjax.evaluate(run, few, progress=recorder)
    assert read_posterior(run.folder.posterior).num_simulations == 20
    assert any("true parameters" in line for line in recorder.lines)


def test_data_without_a_test_split_are_reported(run, tmp_path, recorder, monkeypatch):
    def load(self, split, *, progress):
        raise NoSuchSplit("no test split")

    monkeypatch.setattr(Simulations, "load", load)
    other = run._replace(folder=type(run.folder)(tmp_path))
    assert check_posterior(other, NUM, progress=recorder) is None
    assert recorder.lines == ["posteriors are not checked, because the data have no test split"]
    assert not other.folder.posterior.exists()


def test_only_posteriors_of_few_parameters_given_a_vector_are_checked(run):
    assert has_posterior(run)
    assert not has_posterior(run._replace(event_shape=(9,)))
    assert not has_posterior(run._replace(event_shape=(3, 1)))
    assert not has_posterior(run._replace(conditions=None))


@pytest.mark.slow
def test_a_damaged_file_is_refused(run, result, tmp_path):
    folder = type(run.folder)(tmp_path)
    assert read_posterior_samples(folder) is None
    folder.samples.mkdir()
    np.savez(folder.posterior_samples, step=1)
    with pytest.raises(ValueError, match="posterior.npz must hold 'ranks', got step"):
        read_posterior_samples(folder)
    values = json.loads(run.folder.posterior.read_text()) | {"coverage_50": 2.0}
    folder.posterior.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="coverage_50"):
        read_posterior(folder.posterior)


def test_the_number_of_simulations_is_checked():
    with pytest.raises(ValueError, match="evaluation.num_simulations must be at least 2, got 1"):
        EvaluationConfig(num_simulations=1)
    assert module.NUM_DRAWS + 1 == 64  # A power of 2, so that bins hold equal numbers of ranks.
