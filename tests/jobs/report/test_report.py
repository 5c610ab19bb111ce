"""The page of a run from what its folder holds, and that of a study."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.config import Config, SamplingConfig, StudyConfig, build
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
TRIPS = [
    RoundTrip("heun", 8, None, 32.0, 0.015, 0.0161, 0.687, 0),
    RoundTrip("tsit5", None, 1e-3, 90.0, None, None, None, 3),
]


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "toy")


def page_of_run(folder):
    params = {"weight": jnp.zeros(3)}
    made = Run(folder, CONFIG, build(CONFIG, (2,), None), (2,), None, params, 7, make_mesh())
    return report_run(made).read_text(encoding="utf-8")


def write(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def test_what_has_not_been_made_is_left_out(folder):
    page = page_of_run(folder)
    assert "<h1>toy</h1>" in page
    for title in ("Samples", "Likelihood", "Round trips to noise", "Edits", "same noise"):
        assert f"{title}</h2>" not in page


def test_likelihood_has_its_table(folder):
    write(folder.root / "likelihood.json", LIKELIHOOD._asdict())
    page = page_of_run(folder)
    assert "Mean over 19 test examples by rk4 with 8 steps; 520 network evaluations each." in page
    assert '<td>bits per dimension</td><td data-value="2.345">2.345</td>' in page
    assert '<td>nats per example</td><td data-value="-93.5">-93.5</td>' in page
    points = LIKELIHOOD._replace(bits_per_dim=None, bits_error=None, bin_width=None)
    write(folder.root / "likelihood.json", points._asdict())
    assert "bits per dimension" not in page_of_run(folder)


def test_round_trips_have_their_table_and_pictures_their_sections(folder):
    trips = [trip._asdict() for trip in TRIPS]
    write(folder.inversion, {"step": 7, "num_images": 3, "round_trips": trips, "edits": []})
    folder.samples.mkdir()
    grid = image_bytes(image_grid(np.zeros((2, 4, 4, 1)), 2))
    (folder.samples / "edits.png").write_bytes(grid)
    page = page_of_run(folder)
    assert '<td class="fixed">Heun</td><td data-value="8">8 steps</td>' in page
    assert '<td class="adaptive">Tsit5</td><td data-value="1000.0">tolerance 1e-3</td>' in page
    assert '<td data-value="nan">–</td>' in page
    assert '<td class="bad" data-value="0">0 of 3</td>' in page
    assert "<h2>Edits</h2>" in page
    assert "<h2>Interpolation between two images</h2>" not in page


@pytest.mark.parametrize("name", ["likelihood", "inversion"])
@pytest.mark.parametrize("document", [[], {"what": "else"}])
def test_foreign_files_are_refused(folder, name, document):
    write(folder.root / f"{name}.json", document)
    with pytest.raises(ValueError, match=rf"{name}\.json must hold (an object|a value at step)"):
        page_of_run(folder)


@pytest.mark.slow
def test_the_samples_of_a_comparison_stand_beside_it(folder):
    write_json(example(), folder.comparison)
    entries = [GalleryEntry.of(row, np.zeros((2, 4, 4, 1))) for row in example().runs]
    write_gallery(entries, folder.gallery)
    page = page_of_run(folder)
    assert "Samples from the same noise at equal cost" in page
    assert page.count('<figure class="strip"') == len(entries)


def test_a_study_has_a_page_of_all_its_models(tmp_path):
    study = StudyConfig(
        "study", (CONFIG,), (SamplingConfig(), SamplingConfig(solver="heun", num_steps=2))
    )
    said = []

    class Hears:
        def say(self, text):
            said.append(text)

        def task(self, name, total):
            raise AssertionError(name)

        part_done = task

    with pytest.raises(ValueError, match=r"study folder .* must hold comparison\.json, got no"):
        report_study(study, tmp_path)
    rows = [
        run("Heun", 2, 4, worst, 0.1)._replace(model=m) for m, worst in (("a", 0.1), ("b", 0.2))
    ]
    write_json(comparison(*rows, reference=None), tmp_path / "comparison.json")
    path = report_study(study, tmp_path, progress=Hears())
    page = path.read_text(encoding="utf-8")
    assert "1 model trained on the same data, 2 sampling runs with 2,000 samples each." in page
    assert "<h2>Models and solvers</h2>" in page
    assert 'data-chart="metric-1"' in page
    assert 'data-chart="error"' not in page
    assert said[0].startswith(
        "With at most 4 evaluations, the best sliced Wasserstein is 0.15, from a · Heun"
    )
    assert said[-1] == f"wrote {path}"
