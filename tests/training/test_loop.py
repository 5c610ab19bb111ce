"""Tests of the training loop: logs, checkpoints, signals and errors."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from fmjax._progress import Silent
from fmjax.sharding import Interrupted, make_mesh
from fmjax.training import (
    Checkpoints,
    NonFiniteLoss,
    OptimizerConfig,
    fit,
    init_state,
    learning_rate_at,
    make_train_step,
)
from tests.training.child import INTERRUPTED_EXIT_CODE, run
from tests.training.tiny import Points, make_net, make_objective

NUM_STEPS = 12


def lines(folder):
    """Read the metrics without the speed, which differs between runs."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "examples_per_second"} for line in metrics]


def assert_same_run(folder, state, uninterrupted):
    """Check that states are equal bit for bit and that metrics are equal."""
    expected_folder, expected = uninterrupted
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    assert lines(folder) == lines(expected_folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, run(folder, NUM_STEPS)


class SignalingPoints(Points):
    """Send signals to this process while making the batch at `position`."""

    def __init__(self, position, *numbers):
        super().__init__(before_batch=lambda current: current == position and self.send(numbers))

    def send(self, numbers):
        for number in numbers:
            signal.raise_signal(number)


def test_metrics_are_logged_at_the_first_step_and_at_intervals(uninterrupted):
    assert [line["step"] for line in lines(uninterrupted[0])] == [1, 3, 6, 9, 12]
    first, *others = map(json.loads, (uninterrupted[0] / "metrics.jsonl").read_text().splitlines())
    assert "examples_per_second" not in first
    assert all(line["examples_per_second"] > 0 for line in others)
    assert sorted(file.name for file in (uninterrupted[0] / "checkpoints").iterdir()) == ["12", "8"]


def test_logged_metrics_are_means_since_the_previous_line(tmp_path, uninterrupted):
    run(tmp_path, NUM_STEPS, log_every=1)
    metrics, means = lines(tmp_path), lines(uninterrupted[0])
    for name in ("loss", "grad_norm"):
        expected = np.mean([line[name] for line in metrics[3:6]])
        np.testing.assert_allclose(means[2][name], expected, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(4,), (5,), (4, 7, 8, 11)])
def test_resumed_run_matches_uninterrupted_run(tmp_path, uninterrupted, stops):
    """Stop at checkpoints and between them; the iterator is always one batch ahead."""
    for stop in stops:
        # Batch n, which is the batch of step n + 1, is made while step n runs.
        with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step {stop}; its"):
            run(tmp_path, NUM_STEPS, batches=SignalingPoints(stop, signal.SIGTERM))
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            assert checkpoints.latest_step() == stop
    assert_same_run(tmp_path, run(tmp_path, NUM_STEPS), uninterrupted)


def test_on_checkpoint_is_called_at_each_checkpoint_but_the_last(tmp_path):
    calls = []

    def call(state):
        calls.append(int(state.step))

    run(tmp_path / "uninterrupted", NUM_STEPS, on_checkpoint=call)
    assert calls == [4, 8]
    calls.clear()
    for stop, expected in ((4, []), (5, [4]), (8, []), (NUM_STEPS, [8])):
        with contextlib.suppress(Interrupted):
            batches = SignalingPoints(stop, signal.SIGTERM)
            run(tmp_path / "stopped", NUM_STEPS, on_checkpoint=call, batches=batches)
        assert calls == expected
        calls.clear()


def test_signal_during_the_last_save_is_handled(tmp_path, uninterrupted, monkeypatch):
    wait = Checkpoints.wait

    def interrupted_wait(self):
        signal.raise_signal(signal.SIGTERM)
        wait(self)

    monkeypatch.setattr(Checkpoints, "wait", interrupted_wait)
    with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step {NUM_STEPS}; its"):
        run(tmp_path, NUM_STEPS)
    monkeypatch.undo()
    assert_same_run(tmp_path, run(tmp_path, NUM_STEPS), uninterrupted)


@pytest.mark.slow
def test_run_resumes_before_a_damaged_checkpoint(tmp_path, uninterrupted):
    run(tmp_path, 8)
    damaged = next((tmp_path / "checkpoints" / "8" / "ema_params").rglob("d/*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    progress = RecordingProgress()
    state = run(tmp_path, NUM_STEPS, progress=progress)
    assert "checkpoint of step 8" in progress.messages[0]
    assert "resumed from step 4" in progress.messages[1]
    assert_same_run(tmp_path, state, uninterrupted)


@pytest.mark.slow
def test_run_can_be_extended(tmp_path, uninterrupted):
    state = run(tmp_path, 6)
    assert int(state.step) == 6
    assert_same_run(tmp_path, run(tmp_path, NUM_STEPS), uninterrupted)


@pytest.mark.slow
def test_finished_run_is_returned_unchanged(tmp_path, uninterrupted):
    run(tmp_path, NUM_STEPS)

    def fail(position):
        raise AssertionError("a batch was read")

    state = run(tmp_path, NUM_STEPS, batches=Points(before_batch=fail))
    assert_same_run(tmp_path, state, uninterrupted)


@pytest.mark.slow
def test_metrics_after_the_checkpoint_are_rewritten_once(tmp_path, uninterrupted):
    class Crash(Exception):
        pass

    def crash(position):
        if position == 10:
            raise Crash

    with pytest.raises(Crash):
        run(tmp_path, NUM_STEPS, batches=Points(before_batch=crash), log_every=3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 3, 6, 9]
    assert_same_run(tmp_path, run(tmp_path, NUM_STEPS), uninterrupted)


def start_child(folder: Path) -> subprocess.Popen:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.child", str(folder), str(NUM_STEPS), "0.4"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_signaled_process_saves_and_exits_cleanly(tmp_path, uninterrupted):
    numbers = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
    children = {name: start_child(tmp_path / name) for name in numbers}
    for name, child in children.items():
        metrics = tmp_path / name / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not metrics.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(numbers[name])
    for name, child in children.items():
        output, errors = child.communicate(timeout=60)
        assert (child.returncode, errors) == (INTERRUPTED_EXIT_CODE, "")
        assert output.startswith(f"stopped by {name} after step ")
        assert output.endswith("its checkpoint is saved")
        assert len(lines(tmp_path / name)) < len(lines(uninterrupted[0]))
        assert_same_run(tmp_path / name, run(tmp_path / name, NUM_STEPS), uninterrupted)


def test_second_ctrl_c_interrupts_immediately(tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, NUM_STEPS, batches=SignalingPoints(2, signal.SIGINT, signal.SIGINT))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() is None
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_second_sigterm_is_ignored(tmp_path):
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 2"):
        run(tmp_path, NUM_STEPS, batches=SignalingPoints(2, signal.SIGTERM, signal.SIGTERM))


def test_stop_without_checkpoints_reports_that_nothing_is_saved():
    with pytest.raises(Interrupted, match="after step 2; nothing is saved") as interrupted:
        fit_tiny(batches=SignalingPoints(2, signal.SIGTERM))
    assert (interrupted.value.step, interrupted.value.saved) == (2, False)


def test_fit_works_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(fit_tiny()))
    thread.start()
    thread.join()
    assert int(results[0].step) == 5


class PointsWithNaN(Points):
    """Put a NaN into the batch of one step, counted from 1."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def __next__(self):
        batch = super().__next__()
        if self.position == self.step:
            batch.x1[3, 0] = np.nan
        return batch


@pytest.mark.slow
@pytest.mark.parametrize(("bad", "last_good"), [(7, 4), (8, 4), (9, 8)])
def test_non_finite_step_is_reported_and_never_saved(tmp_path, uninterrupted, bad, last_good):
    message = f"got loss nan and gradient norm nan in step {bad}; .* is that of step {last_good}"
    with pytest.raises(NonFiniteLoss, match=message) as error:
        run(tmp_path, NUM_STEPS, batches=PointsWithNaN(bad))
    assert (error.value.step, error.value.last_good_step) == (bad, last_good)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == last_good
    # From this checkpoint the run ends like a run without the NaN.
    assert_same_run(tmp_path, run(tmp_path, NUM_STEPS), uninterrupted)


def test_non_finite_step_without_checkpoint_is_reported():
    with pytest.raises(NonFiniteLoss, match="in step 2; there is no checkpoint"):
        fit_tiny(batches=PointsWithNaN(2))


def fit_tiny(objective=None, batches=None, **settings):
    mesh, net, optimizer = make_mesh(devices=jax.devices()[:1]), make_net(), optax.sgd(1e-3)
    objective = make_objective(net) if objective is None else objective
    state, sharding = init_state(net, optimizer, jax.random.key(0), mesh)
    step = make_train_step(objective, optimizer, mesh=mesh, state_sharding=sharding)
    batches = Points() if batches is None else batches
    return fit(state, step, batches, mesh=mesh, **{"num_steps": 5, **settings})


def test_loop_traces_the_step_once():
    objective, traces = make_objective(make_net()), []

    def counting_loss(params, examples):
        traces.append(None)
        return objective.loss(params, examples)

    fit_tiny(objective._replace(loss=counting_loss), num_steps=9, log_every=2)
    assert len(traces) == 1


class RecordingProgress(Silent):
    def __init__(self):
        self.messages, self.advanced, self.notes, self.total = [], 0, [], None

    def say(self, line):
        self.messages.append(line)

    @contextlib.contextmanager
    def task(self, description, total):
        self.total = total

        def advance(n=1, note=""):
            self.advanced += n
            self.notes.append(note)

        yield advance


def test_progress_receives_every_step_and_the_resume_message(tmp_path):
    first, second = RecordingProgress(), RecordingProgress()
    run(tmp_path, 4, progress=first)
    assert (first.total, first.advanced, first.messages) == (4, 4, [])
    assert first.notes[-1].startswith("loss ")
    run(tmp_path, 6, progress=second)
    assert (second.total, second.advanced, second.messages) == (6, 6, ["resumed from step 4"])


@pytest.mark.slow
def test_learning_rate_of_each_step_is_logged(tmp_path):
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4)
    run(tmp_path, 6, learning_rate=lambda n: learning_rate_at(config, 6, n))
    assert [line["learning_rate"] for line in lines(tmp_path)] == [0.25, 0.75, 1.0]


class ThreeBatches(Points):
    def __next__(self):
        if self.position == 3:
            raise StopIteration
        return super().__next__()


def test_too_few_batches_are_rejected():
    with pytest.raises(ValueError, match="each step up to 5, got none for step 4"):
        fit_tiny(batches=ThreeBatches())


@pytest.mark.parametrize("name", ["num_steps", "log_every", "checkpoint_every"])
def test_counts_below_one_are_rejected(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        fit_tiny(**{name: 0})
