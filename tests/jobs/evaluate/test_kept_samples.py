"""Tests of the samples that an evaluation keeps in the run folder."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from fmjax._files import read_npz
from fmjax.config import Config, OptimizerConfig, Sampling, TrainingConfig, build
from fmjax.data import ToyData
from fmjax.jobs.evaluate.kept_samples import evaluation_samples
from fmjax.networks import MLPConfig
from fmjax.paths import AffinePath, Cosine
from fmjax.runs.folder import Run, RunFolder
from fmjax.runs.sampling.batches import SampleSet
from fmjax.runs.sampling.conditions import SampleConditions
from fmjax.sharding import MeshConfig, make_mesh

CONFIG = Config(
    name="tiny",
    data=ToyData("eight_gaussians"),
    network=MLPConfig(width=8, num_layers=1),
    sampling=Sampling.of(num_samples=6, solver="euler", num_steps=2),
)
LABELS = np.array([0, 1, 2, 0, 1, 2], np.int32)
CONDITIONS = SampleConditions.of_classes(LABELS)


@pytest.fixture
def generated(monkeypatch):
    """The number of times that samples were generated; each time they differ."""
    calls = []

    def sample(run, sampling, conditions, *, progress):
        calls.append(sampling)
        num = sampling.num_samples
        x1 = np.full((num, 2), len(calls), np.float32)
        succeeded = np.arange(num) != 1
        return SampleSet(x1, conditions.labels, np.full(num, 2, np.int32), succeeded, 0.5)

    monkeypatch.setattr("fmjax.jobs.evaluate.kept_samples.sample_from_run", sample)
    return calls


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    params = {"kernel": jnp.arange(6.0).reshape(2, 3), "scale": jnp.ones(())}
    experiment = build(CONFIG, (2,), 8)
    return Run(folder, CONFIG, experiment, (2,), 8, params, 5, make_mesh())


def test_samples_are_kept_and_used_again(run, generated, recorder):
    first = evaluation_samples(run, CONFIG.sampling, CONDITIONS, progress=recorder)
    assert recorder.lines == []
    second = evaluation_samples(run, CONFIG.sampling, CONDITIONS, progress=recorder)
    assert recorder.lines == [f"using the 6 samples in {run.folder.evaluation_samples}"]
    assert len(generated) == 1
    for name in ("x1", "labels", "nfe", "succeeded"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert getattr(first, name).dtype == getattr(second, name).dtype
    assert "origin" in read_npz(run.folder.evaluation_samples)


def with_config(run, **changes):
    return run._replace(config=dataclasses.replace(run.config, **changes))


@pytest.mark.parametrize(
    ("change_run", "change_sampling", "labels"),
    [
        (lambda run: run, {"seed": 1}, LABELS),
        (lambda run: run, {"num_steps": 3}, LABELS),
        (lambda run: run, {"guidance": 1.5}, LABELS),
        (lambda run: run, {"batch_size": 8}, LABELS),
        (lambda run: run, {"num_samples": 4}, LABELS[:4]),
        (lambda run: run, {}, LABELS[::-1]),
        (lambda run: run._replace(step=6), {}, LABELS),
        (lambda run: run._replace(params={**run.params, "scale": jnp.zeros(())}), {}, LABELS),
        (lambda run: with_config(run, path=AffinePath(Cosine())), {}, LABELS),
    ],
    ids=["seed", "steps", "guidance", "batch", "number", "labels", "step", "weights", "path"],
)
def test_other_settings_or_weights_generate_new_samples(
    run, generated, recorder, change_run, change_sampling, labels
):
    evaluation_samples(run, CONFIG.sampling, CONDITIONS, progress=recorder)
    sampling = CONFIG.sampling.with_names(**change_sampling)
    conditions = SampleConditions.of_classes(labels)
    samples = [
        evaluation_samples(change_run(run), sampling, conditions, progress=recorder)
        for _ in range(2)
    ]
    assert len(generated) == 2
    for sample in samples:
        assert (sample.x1 == 2).all()
        assert sample.x1.shape == (sampling.num_samples, 2)


def test_options_that_do_not_affect_samples_keep_them(run, generated, recorder):
    evaluation_samples(run, CONFIG.sampling, CONDITIONS, progress=recorder)
    other = with_config(
        run,
        training=TrainingConfig(num_steps=9, log_every=1),
        optimizer=OptimizerConfig(learning_rate=1.0),
        mesh=MeshConfig(data=2, fsdp=4),
    )
    evaluation_samples(other, CONFIG.sampling, CONDITIONS, progress=recorder)
    assert len(generated) == 1


@pytest.mark.parametrize("damage", ["truncated", "foreign", "shape"])
def test_damaged_samples_are_generated_again(run, generated, recorder, damage):
    file = run.folder.evaluation_samples
    evaluation_samples(run, CONFIG.sampling, CONDITIONS, progress=recorder)
    arrays = read_npz(file)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "foreign":
        np.savez(file, other=np.ones(3))
    else:
        np.savez(file, **{**arrays, "x1": arrays["x1"][:3]})
    samples = evaluation_samples(run, CONFIG.sampling, CONDITIONS, progress=recorder)
    assert len(generated) == 2
    assert samples.x1.shape == (6, 2)
