"""Tests of the HTML reports of runs and studies."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.config import Config, Sampling, StudyConfig, build
from fmjax.data import ToyData
from fmjax.jobs.evaluate.likelihood import LikelihoodResult
from fmjax.jobs.invert.invert import RoundTrip
from fmjax.jobs.report.report import report_run, report_study
from fmjax.networks import MLPConfig
from fmjax.report.comparison import write_json
from fmjax.report.gallery import GalleryEntry, write_gallery
from fmjax.report.images import image_bytes, image_grid
from fmjax.runs.folder import Run, RunFolder
from fmjax.sharding import make_mesh
from tests.report.made_up import comparison, example, run

CONFIG = Config(name="toy", data=ToyData(num_examples=16), network=MLPConfig(width=8))
LIKELIHOOD = LikelihoodResult(7, 20, 1, -93.5, 0.5, 2.345, 0.012, 0.125, 520.0, "rk4 with 8 steps")
ROUND_TRIPS = [
    RoundTrip("heun", 8, None, 32.0, 0.015, 0.0161, 0.687, 0),
    RoundTrip("tsit5", None, 1e-3, 90.0, None, None, None, 3),
]


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "toy")


def report_html(folder):
    params = {"weight": jnp.zeros(3)}
    opened = Run(folder, CONFIG, build(CONFIG, (2,), None), (2,), None, params, 7, make_mesh())
    return report_run(opened).read_text(encoding="utf-8")


def write(file, document):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))


def test_missing_results_have_no_section(folder):
    page = report_html(folder)
    assert "<h1>toy</h1>" in page
    for title in ("Samples", "Likelihood", "Round trips to noise", "Edits", "same noise"):
        assert f"{title}</h2>" not in page


def test_likelihood_has_a_table(folder):
    write(folder.root / "likelihood.json", LIKELIHOOD._asdict())
    page = report_html(folder)
    assert "Mean over 19 test examples by rk4 with 8 steps; 520 network evaluations each." in page
    assert '<td>bits per dimension</td><td data-value="2.345">2.345</td>' in page
    assert '<td>nats per example</td><td data-value="-93.5">-93.5</td>' in page
    no_bits = LIKELIHOOD._replace(bits_per_dim=None, bits_error=None, bin_width=None)
    write(folder.root / "likelihood.json", no_bits._asdict())
    assert "bits per dimension" not in report_html(folder)


def test_round_trips_have_a_table_and_pictures_have_sections(folder):
    trips = [trip._asdict() for trip in ROUND_TRIPS]
    write(folder.inversion, {"step": 7, "num_images": 3, "round_trips": trips, "edits": []})
    folder.samples.mkdir()
    grid = image_bytes(image_grid(np.zeros((2, 4, 4, 1)), 2))
    (folder.samples / "edits.png").write_bytes(grid)
    page = report_html(folder)
    assert '<td class="fixed">Heun</td><td data-value="8">8 steps</td>' in page
    assert '<td class="adaptive">Tsit5</td><td data-value="1000.0">tolerance 1e-3</td>' in page
    assert '<td data-value="nan">–</td>' in page
    assert '<td class="bad" data-value="0">0 of 3</td>' in page
    assert "<h2>Edits</h2>" in page
    assert "<h2>Interpolation between two images</h2>" not in page


@pytest.mark.parametrize("name", ["likelihood", "inversion"])
@pytest.mark.parametrize("document", [[], {"what": "else"}])
def test_invalid_result_files_are_refused(folder, name, document):
    write(folder.root / f"{name}.json", document)
    with pytest.raises(ValueError, match=rf"{name}\.json must hold (an object|a value at step)"):
        report_html(folder)


@pytest.mark.slow
def test_report_shows_the_samples_of_a_comparison(folder):
    write_json(example(), folder.comparison)
    entries = [GalleryEntry.of(row, np.zeros((2, 4, 4, 1))) for row in example().runs]
    write_gallery(entries, folder.gallery)
    page = report_html(folder)
    assert "Samples from the same noise at equal cost" in page
    assert page.count('<figure class="strip"') == len(entries)


def test_study_report_covers_all_models(tmp_path):
    study = StudyConfig(
        "study", (CONFIG,), (Sampling.of(), Sampling.of(solver="heun", num_steps=2))
    )
    messages = []

    class RecordingProgress:
        def say(self, text):
            messages.append(text)

        def task(self, name, total):
            raise AssertionError(name)

        part_done = task

    with pytest.raises(ValueError, match=r"study folder .* must hold comparison\.json, got no"):
        report_study(study, tmp_path)
    rows = [
        run("Heun", 2, 4, worst, 0.1)._replace(model=model)
        for model, worst in (("a", 0.1), ("b", 0.2))
    ]
    write_json(comparison(*rows, reference=None), tmp_path / "comparison.json")
    file = report_study(study, tmp_path, progress=RecordingProgress())
    page = file.read_text(encoding="utf-8")
    assert "1 model trained on the same data, 2 sampling runs with 2,000 samples each." in page
    assert "<h2>Models and solvers</h2>" in page
    assert 'data-chart="metric-1"' in page
    assert 'data-chart="error"' not in page
    assert messages[0].startswith(
        "With at most 4 evaluations, the best sliced Wasserstein is 0.15, from a · Heun"
    )
    assert messages[-1] == f"wrote {file}"
