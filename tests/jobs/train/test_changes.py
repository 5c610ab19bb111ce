"""Tests of config changes on an existing run, of more steps, and of starting from other weights."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fmjax import cli
from fmjax.config import (
    CompareConfig,
    Config,
    EvaluationConfig,
    LossConfig,
    ReflowConfig,
    Sampling,
    TrainingConfig,
    build,
    serialize,
)
from fmjax.data import ToyData
from fmjax.jobs.report.report import report_run
from fmjax.jobs.train.changes import changes
from fmjax.jobs.train.prepare import lock_run, prepare
from fmjax.jobs.train.train import train
from fmjax.networks import MLPConfig
from fmjax.runs.extensions import Extension, add_extension, read_extensions
from fmjax.runs.folder import RunFolder, open_run, read_config, read_model
from fmjax.sharding import MeshConfig, make_mesh
from fmjax.training import (
    Checkpoints,
    OptimizerConfig,
    abstract_state,
    learning_rate_at,
    read_metrics,
)

CONFIG = Config(
    name="tiny",
    data=ToyData("eight_gaussians", num_examples=256),
    network=MLPConfig(width=8, num_layers=1),
    loss=LossConfig(label_drop=0.0),
    optimizer=OptimizerConfig(warmup_steps=2),
    training=TrainingConfig(
        num_steps=5, batch_size=16, log_every=1, checkpoint_every=4, preview_samples=False
    ),
    sampling=Sampling.of(num_samples=12, solver="euler", num_steps=2),
    compare=CompareConfig(
        num_samples=8, fixed_solvers=("euler",), num_steps=(1,), tolerances=(1e-1,)
    ),
    evaluation=EvaluationConfig(num_samples=24, num_projections=8),
)


def changed(config, **options):
    """Return a config with other options, such as `training={"num_steps": 9}`."""
    parts = {
        name: dataclasses.replace(getattr(config, name), **value)
        if isinstance(value, dict)
        else value
        for name, value in options.items()
    }
    return dataclasses.replace(config, **parts)


def saved_state(folder):
    """Read the complete training state of the newest checkpoint of a run."""
    files = RunFolder(folder)
    config = read_config(folder)
    experiment = build(config, *read_model(folder))
    like = abstract_state(experiment.model.net, experiment.optimizer, make_mesh(config.mesh))
    with Checkpoints(files.checkpoints) as checkpoints:
        return checkpoints.restore(like)


def assert_equal_bits(tree, other):
    def check(a, b):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)

    jax.tree.map(check, tree, other)


@pytest.fixture
def prepared(tmp_path):
    """The folder of a run of five steps, of which three were trained."""
    folder = RunFolder(tmp_path / "run")
    prepare(folder, CONFIG, (2,), None)
    (folder.checkpoints / "3").mkdir(parents=True)
    return folder


def test_changes_name_the_option_with_both_values():
    old = {"a": {"type": "A", "x": 1}, "b": [1, 2]}
    new = {"a": {"type": "B", "y": 2}, "b": [1, 2]}
    assert [str(change) for change in changes(new, old)] == [
        "a.type: 'A' -> 'B'",
        "a.y: None -> 2",
        "a.x: 1 -> None",
    ]


def test_options_that_do_not_change_the_training_are_rewritten(prepared):
    config = changed(
        CONFIG,
        sampling=CONFIG.sampling.with_names(solver="heun", seed=3),
        compare={"bfloat16": True},
        evaluation={"num_samples": 30},
        training={"log_every": 2, "checkpoint_every": 3, "checkpoints_kept": 1},
        mesh=MeshConfig(data=2, fsdp=4),
    )
    assert prepare(prepared, config, (2,), None) == [
        "training.log_every: 1 -> 2",
        "training.checkpoint_every: 4 -> 3",
        "training.checkpoints_kept: 2 -> 1",
        "sampling.solver: 'euler' -> 'heun'",
        "sampling.seed: 0 -> 3",
        "compare.bfloat16: False -> True",
        "evaluation.num_samples: 24 -> 30",
    ]
    assert read_config(prepared.root) == dataclasses.replace(config, mesh=CONFIG.mesh)
    assert prepare(prepared, config, (2,), None) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": {"width": 16}}, r"different network\.width \(8 -> 16\)"),
        ({"data": {"num_examples": 64}}, r"different data\.num_examples \(256 -> 64\)"),
        ({"loss": {"stratified": True}}, r"different loss\.stratified \(False -> True\)"),
        ({"optimizer": {"learning_rate": 0.5}}, r"optimizer\.learning_rate \(0\.001 -> 0\.5\)"),
        ({"training": {"batch_size": 8}}, r"different training\.batch_size \(16 -> 8\)"),
        ({"training": {"ema_decay": 0.5}}, r"different training\.ema_decay \(0\.999 -> 0\.5\)"),
        ({"training": {"accumulation_steps": 2}}, r"training\.accumulation_steps \(1 -> 2\)"),
        ({"start_from": "runs/other"}, r"different start_from \(None -> 'runs/other'\)"),
        (
            {"name": "other", "training": {"seed": 1, "num_steps": 9}},
            r"got different name \('tiny' -> 'other'\), training\.seed \(0 -> 1\) \(choose another "
            r"folder with --run, replace the run with --overwrite, or .* with --start-from\)$",
        ),
    ],
)
def test_options_that_change_the_training_are_refused(prepared, options, message):
    before = prepared.config.read_bytes()
    with pytest.raises(ValueError, match=message) as error:
        prepare(prepared, changed(CONFIG, **options), (2,), None)
    assert "\n" not in str(error.value)
    assert prepared.config.read_bytes() == before


@pytest.mark.parametrize("num_steps", [9, 4, 3])
def test_another_number_of_steps_is_recorded(prepared, num_steps):
    config = changed(CONFIG, training={"num_steps": num_steps})
    (line,) = prepare(prepared, config, (2,), None)
    rates = "" if num_steps == 3 else " (learning rate of step 4: 0.001 -> 0.001)"
    assert line == f"training.num_steps: 5 -> {num_steps}{rates}"
    assert read_extensions(prepared, num_steps) == (Extension(3, 5, num_steps),)
    assert read_config(prepared.root).training.num_steps == num_steps


def test_fewer_steps_than_trained_are_refused(prepared):
    config = changed(CONFIG, training={"num_steps": 2})
    message = (
        r"training\.num_steps must be at least 3, the steps already trained .*, got 2 \(choose"
    )
    for check in (
        lambda: prepare(prepared, config, (2,), None),
        lambda: lock_run(prepared.root, config).__enter__(),
    ):
        with pytest.raises(ValueError, match=message):
            check()
    assert not prepared.extensions.exists()


@dataclasses.dataclass(frozen=True)
class Sign:
    """An optimizer without a known learning rate."""

    def make(self, num_steps):
        return optax.sign_sgd(1e-3)


def test_more_steps_with_an_unknown_learning_rate_print_none(tmp_path, monkeypatch):
    monkeypatch.setattr(serialize, "_user_classes", {"Sign": Sign})
    folder, config = RunFolder(tmp_path), changed(CONFIG, optimizer=Sign())
    prepare(folder, config, (2,), None)
    (folder.checkpoints / "3").mkdir(parents=True)
    longer = changed(config, training={"num_steps": 9})
    assert prepare(folder, longer, (2,), None) == ["training.num_steps: 5 -> 9"]


def test_a_run_without_trained_steps_is_not_marked_as_extended(tmp_path):
    folder = RunFolder(tmp_path)
    prepare(folder, CONFIG, (2,), None)
    lines = prepare(folder, changed(CONFIG, training={"num_steps": 9}), (2,), None)
    assert lines == ["training.num_steps: 5 -> 9"]
    assert read_extensions(folder, 9) == ()


def test_an_interrupted_extension_does_not_count(tmp_path):
    folder = RunFolder(tmp_path)
    add_extension(folder, Extension(5, 5, 9))
    add_extension(folder, Extension(9, 9, 20))  # Interrupted before the config was written.
    assert read_extensions(folder, 9) == (Extension(5, 5, 9),)
    add_extension(folder, Extension(9, 9, 12))
    assert read_extensions(folder, 12) == (Extension(5, 5, 9), Extension(9, 9, 12))
    folder.extensions.write_text('{"extensions": [{"step": -1}]}')
    with pytest.raises(ValueError, match=r"extensions\.json must hold"):
        read_extensions(folder, 12)


@pytest.mark.parametrize(
    ("options", "outdated"),
    [
        ({"sampling": {"num_samples": 9}}, ["grid.npz", "evaluation.json"]),
        ({"evaluation": {"num_projections": 4}}, ["evaluation.json"]),
        ({"evaluation": {"classifier": False}}, ["evaluation.json", "comparison.json"]),
        ({"compare": {"seed": 1}}, ["comparison.json"]),
        ({"training": {"log_every": 2}}, []),
        # The results of an unfinished run belong to another step.
        ({"sampling": {"num_samples": 9}, "training": {"num_steps": 6}}, []),
    ],
)
def test_results_of_other_settings_are_removed(prepared, options, outdated):
    (prepared.checkpoints / "5").mkdir()
    prepared.samples.mkdir()
    files = [prepared.sample_grid, prepared.evaluation, prepared.comparison]
    for file in files:
        file.write_text("")
    prepare(prepared, changed(CONFIG, **options), (2,), None)
    assert [file.name for file in files if not file.exists()] == outdated


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A finished run of five steps."""
    return train(CONFIG, tmp_path_factory.mktemp("runs") / "short")


@pytest.mark.slow
def test_an_extended_run_equals_a_long_run_bit_for_bit(short, tmp_path, recorder):
    folder = tmp_path / "extended"
    shutil.copytree(short.folder.root, folder)
    config = changed(CONFIG, training={"num_steps": 11})
    train(config, folder, progress=recorder)
    train(config, tmp_path / "long")
    rates = "(learning rate of step 6: 0.001 -> 0.001)"
    assert recorder.lines[0] == f"training.num_steps: 5 -> 11 {rates}"
    assert "resumed from step 5" in recorder.lines
    extended, long = saved_state(folder), saved_state(tmp_path / "long")
    assert int(extended.state.step) == 11
    assert_equal_bits(extended.state, long.state)
    assert extended.extra["batches"] == long.extra["batches"] == {"next_batch": 11}
    losses = [
        {line["step"]: line["loss"] for line in read_metrics(RunFolder(run).metrics)}
        for run in (folder, tmp_path / "long")
    ]
    assert losses[0] == losses[1]
    assert list(losses[0]) == list(range(1, 12))
    report_run(open_run(folder))
    assert "Extended from 5 to 11 steps after 5 steps." in RunFolder(folder).report.read_text()


@pytest.mark.slow
def test_after_an_extension_the_schedule_has_the_new_length(tmp_path, recorder, monkeypatch):
    config = changed(CONFIG, optimizer={"schedule": "cosine", "warmup_steps": 7})
    config = changed(config, training={"num_steps": 8})
    train(config, tmp_path / "run")
    long_config = changed(config, training={"num_steps": 13})
    train(long_config, tmp_path / "run", progress=recorder)
    rates = [
        float(learning_rate_at(config.optimizer, 8 if step < 8 else 13, step)) for step in range(13)
    ]
    old, new = float(learning_rate_at(config.optimizer, 8, 8)), rates[8]
    assert (old, new > 5e-4) == (0.0, True)
    line = f"training.num_steps: 8 -> 13 (learning rate of step 9: {old:.4g} -> {new:.4g})"
    assert recorder.lines[0] == line
    logged = [line["learning_rate"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    np.testing.assert_allclose(logged, rates, rtol=1e-6)

    def both(optimizer, num_steps, step):
        step = jnp.asarray(step)
        first, last = (learning_rate_at(optimizer, n, step) for n in (8, 13))
        return jnp.where(step < 8, first, last)

    # The optimizer uses these rates, too: a run with both schedules has the same weights.
    monkeypatch.setattr("fmjax.training.optimizer.learning_rate_at", both)
    train(long_config, tmp_path / "both")
    extended, expected = (saved_state(tmp_path / name).state for name in ("run", "both"))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7),
        (extended.params, extended.ema_params),
        (expected.params, expected.ema_params),
    )


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another_run(short, tmp_path, recorder):
    optimizer = {"learning_rate": 1e-12, "warmup_steps": 0}
    config = changed(
        CONFIG,
        name="next",
        start_from=str(short.folder.root),
        optimizer=optimizer,
        training={"num_steps": 1, "seed": 1, "ema_decay": 0.5},
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),  # The other run has eight shares of data.
    )
    run = train(config, tmp_path / "next", progress=recorder)
    line = f"starting from the averaged weights of step 5 of run {short.folder.root}"
    assert line in recorder.lines
    state = saved_state(tmp_path / "next").state
    for params in (state.params, state.ema_params):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), params, short.params)
    assert run.config.start_from == str(short.folder.root)
    # A resumed run continues from its checkpoint, and does not need the other run.
    document = json.loads(run.folder.config.read_text())
    document["start_from"] = str(tmp_path / "gone")
    run.folder.config.write_text(json.dumps(document))
    recorder.lines.clear()
    resumed = changed(config, start_from=str(tmp_path / "gone"), training={"num_steps": 3})
    assert train(resumed, tmp_path / "next", progress=recorder).step == 3
    assert not [line for line in recorder.lines if line.startswith("starting from")]
    report_run(open_run(tmp_path / "next"))
    assert "Started from run" in run.folder.report.read_text()


def test_start_from_names_the_first_parameter_of_another_shape(tmp_path):
    source = RunFolder(tmp_path / "source")
    prepare(source, CONFIG, (2,), None)
    (source.checkpoints / "3").mkdir(parents=True)
    config = changed(CONFIG, start_from=str(source.root), network={"width": 16})
    message = (
        r"start_from must be a run with the same network sizes and conditions, got \S+: "
        r"float32\[.*8.*\] in .*source, float32\[.*16.*\] in this config$"
    )
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["missing", "untrained", "itself", "reflow"])
def test_runs_that_cannot_be_started_from_are_refused(tmp_path, kind):
    folder = RunFolder(tmp_path / "source")
    prepare(folder, CONFIG, (2,), None)
    reflow = ReflowConfig(str(folder.root)) if kind == "reflow" else None
    start_from = str(tmp_path / "sourc") if kind == "missing" else str(folder.root)
    target = folder.root if kind == "itself" else tmp_path / "run"
    message = {
        "missing": r"run folder must exist, got .*sourc \(did you mean",
        "untrained": r"start_from must be a run with a checkpoint, got .*source",
        "itself": r"start_from must be outside .*source",
        "reflow": "start_from must be left out unless reflow.warm_start is off",
    }[kind]
    with pytest.raises(ValueError, match=message):
        train(changed(CONFIG, start_from=start_from, reflow=reflow), target)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_commands_change_extend_and_start_from_a_run(short, tmp_path, capsys, monkeypatch):
    made = []
    monkeypatch.setattr(
        "fmjax.jobs.report.results.make_results", lambda run, progress: made.append(run.step)
    )
    config = tmp_path / "tiny.py"
    config.write_text(
        "from tests.jobs.train.test_changes import CONFIG\n\ndef get_config():\n    return CONFIG\n"
    )

    def run(*options):
        with pytest.raises(SystemExit) as exit_info:
            cli.main(["train", str(config), *options])
        return exit_info.value.code, capsys.readouterr()

    folder = str(tmp_path / "run")
    shutil.copytree(short.folder.root, folder)
    code, output = run("--run", folder, "--training.num-steps", "7", "--sampling.seed", "1")
    assert code == 0
    assert "sampling.seed: 0 -> 1\n" in output.out
    assert "training.num_steps: 5 -> 7 (learning rate of step 6:" in output.out
    code, output = run("--run", folder, "--training.num-steps", "3", "--sampling.seed", "1")
    assert (code, output.err.count("\n")) == (2, 1)
    assert "training.num_steps must be at least 7, the steps already trained" in output.err
    code, output = run("--run", str(tmp_path / "next"), "--start-from", folder)
    assert code == 0
    assert f"starting from the averaged weights of step 7 of run {folder}\n" in output.out
    assert made == [7, 5]
