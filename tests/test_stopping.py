"""SIGTERM in every phase of `fmjax train`: it ends soon, and the same command goes on."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from fmjax._files import read_npz, write_npz
from fmjax._stopping import Stopped, stoppable
from fmjax.studies.run_folder import open_run
from fmjax.training import Checkpoints, Interrupted, hearing_stops, read_metrics
from fmjax.training.signals import StopSignals
from tests.tiny_run import command, environment, write_config
from tests.training.child import run as train_here

NUM_STEPS = 400
# Whether a phase has begun, by the run's folder and by what the command has said.
TRAINING = {
    "compilation": lambda run, said: "training 0/" in said,
    "steps": lambda run, said: (
        (run / "metrics.jsonl").exists() and len(read_metrics(run / "metrics.jsonl")) > 3
    ),
    "last save": lambda run, said: any((run / "checkpoints").glob(f"{NUM_STEPS}.*")),
}
RESULTS = {
    "sampling": lambda run, said: "sampling 0/" in said,
    "evaluation": lambda run, said: said.count("sampling 0/") == 2,
    "comparison": lambda run, said: "comparing solvers 0/" in said,
    "report": lambda run, said: (run / "comparison.json").exists(),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("configs"), NUM_STEPS, 10, 100)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    code, _, error = train(config, run)
    assert code == 0, error
    return run


def train(config, run, begun=None, **more):
    """Exit code, output, errors; SIGTERM is sent as soon as `begun`."""
    out = run.parent / "out.txt"
    with out.open("w") as file, subprocess.Popen(
        command(config, run), env=environment(**more), text=True, stdout=file,
        stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        try:
            while begun is not None and not begun(run, out.read_text()):
                assert child.poll() is None, (out.read_text(), child.communicate())
                time.sleep(0.002)
            if begun is not None:
                child.send_signal(signal.SIGTERM)
            _, error = child.communicate(timeout=60 if begun else 180)
        finally:
            child.kill()
    return child.returncode, out.read_text(), error


def times_of_checkpoints(run):
    return {path.name: path.stat().st_mtime_ns for path in (run / "checkpoints").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("phase", [*TRAINING, *RESULTS])
def test_sigterm_ends_every_phase_and_the_same_command_goes_on(
    config, undisturbed, tmp_path, phase
):
    run, surroundings = tmp_path / "run", {}
    if phase in RESULTS:
        shutil.copytree(undisturbed / "checkpoints", run / "checkpoints")
        for name in ("config.json", "model.json", "metrics.jsonl"):
            shutil.copy2(undisturbed / name, run)
    if phase == "compilation":  # Nothing is compiled yet.
        surroundings["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "compiled")
    code, _, error = train(config, run, (TRAINING | RESULTS)[phase], **surroundings)
    assert code == 128 + signal.SIGTERM, error
    assert error.startswith("fmjax: stopped by SIGTERM")
    assert error.endswith("; the same command goes on\n")
    assert error.count("\n") == 1
    half = [path for path in run.rglob("*") if path.name.startswith(".") or "tmp" in path.name]
    assert not half
    assert not (run / "report.html").exists()
    saved = times_of_checkpoints(run)
    last = max(map(int, saved))
    assert (last == NUM_STEPS) == (phase not in ("compilation", "steps"))

    code, said, error = train(config, run)
    assert code == 0, error
    assert f"resumed from step {last}\n" in said
    if last == NUM_STEPS:
        assert "training 0/" not in said
        assert times_of_checkpoints(run) == saved
    assert (run / "report.html").is_file()
    assert losses(run) == losses(undisturbed)
    jax.tree.map(np.testing.assert_array_equal, open_run(run).params, open_run(undisturbed).params)


def losses(run):
    lines = read_metrics(run / "metrics.jsonl")
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_command_still_loads_its_parts_is_told_alike(config, tmp_path, number):
    child = subprocess.Popen(
        command(config, tmp_path / "run"), env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    # The worst moment: NumPy's C code prints the exception and raises another.
    while "numpy" not in Path(f"/proc/{child.pid}/maps").read_text():
        assert child.poll() is None, child.communicate()
        time.sleep(0.002)
    child.send_signal(number)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    name = signal.Signals(number).name
    last = error.splitlines()[-1]
    assert last == f"fmjax: stopped by {name}; the same command goes on"
    assert not (tmp_path / "run").exists()


def work_on():
    """Work that comes back to Python now and then."""
    while True:
        time.sleep(0.01)


def test_a_stop_of_another_process_is_one_of_this_process(monkeypatch):
    asked = []

    def reached(step):
        asked.append(step)
        return step == 7

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", reached)
    with pytest.raises(Stopped, match="SIGTERM"), stoppable(), hearing_stops(after_step=5):
        work_on()
    assert asked == [6, 7]
    with stoppable(), hearing_stops(after_step=8):  # Work that ends by itself.
        pass
    assert asked[2:] in ([], [9])


def test_a_signal_while_a_checkpoint_is_read_is_no_damage(tmp_path, monkeypatch):
    train_here(tmp_path, 8)

    def interrupted(*_, **__):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", interrupted)
    with pytest.raises(Stopped, match="SIGTERM"), stoppable():
        train_here(tmp_path, 12)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 8


def test_a_signal_while_numbers_are_read_is_no_damage(tmp_path, monkeypatch):
    write_npz(tmp_path / "a.npz", x=np.ones(3))
    monkeypatch.setattr(np, "load", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped, match="SIGTERM"), stoppable():
        read_npz(tmp_path / "a.npz")


def test_a_signal_as_training_lets_go_of_them_is_not_lost(tmp_path, monkeypatch):
    leave = StopSignals.__exit__

    def interrupted(self, *error):
        signal.raise_signal(signal.SIGTERM)
        leave(self, *error)

    monkeypatch.setattr(StopSignals, "__exit__", interrupted)
    with pytest.raises(Interrupted, match="SIGTERM after step 4"):
        train_here(tmp_path, 4)
