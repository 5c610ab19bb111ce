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
from tests.training.child import LEFT_CLEANLY, run
from tests.training.tiny import Points, make_net, make_objective

NUM_STEPS = 12


def lines(folder):
    """Lines of metrics without their speed, which no two runs share."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "examples_per_second"} for line in found]


def assert_same_run(folder, state, unbroken):
    """The state bit for bit, and the same lines of metrics."""
    expected_folder, expected = unbroken
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    assert lines(folder) == lines(expected_folder)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run(folder, NUM_STEPS)


class Stops(Points):
    """Sends this process signals while it makes the batch at `position`."""

    def __init__(self, position, *numbers):
        super().__init__(before_batch=lambda now: now == position and self.send(numbers))

    def send(self, numbers):
        for number in numbers:
            signal.raise_signal(number)


def test_lines_come_after_the_first_step_every_few_and_at_the_end(unbroken):
    assert [line["step"] for line in lines(unbroken[0])] == [1, 3, 6, 9, 12]
    first, *others = map(json.loads, (unbroken[0] / "metrics.jsonl").read_text().splitlines())
    assert "examples_per_second" not in first
    assert all(line["examples_per_second"] > 0 for line in others)
    assert sorted(path.name for path in (unbroken[0] / "checkpoints").iterdir()) == ["12", "8"]


def test_a_line_is_the_mean_since_the_one_before(tmp_path, unbroken):
    run(tmp_path, NUM_STEPS, log_every=1)
    each, means = lines(tmp_path), lines(unbroken[0])
    for name in ("loss", "grad_norm"):
        expected = np.mean([line[name] for line in each[3:6]])
        np.testing.assert_allclose(means[2][name], expected, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(4,), (5,), (4, 7, 8, 11)])
def test_stopped_and_resumed_is_never_stopped(tmp_path, unbroken, stops):
    """At a checkpoint, between two, between two lines; the iterator is always one ahead."""
    for stop in stops:
        # The batch of step n + 1 is made while step n runs: position n.
        with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step {stop}; its"):
            run(tmp_path, NUM_STEPS, batches=Stops(stop, signal.SIGTERM))
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            assert checkpoints.latest_step() == stop
    assert_same_run(tmp_path, run(tmp_path, NUM_STEPS), unbroken)


def test_a_function_is_called_at_each_checkpoint_but_the_last_and_again_after_a_stop(tmp_path):
    calls = []

    def call(state):
        calls.append(int(state.step))

    run(tmp_path / "unbroken", NUM_STEPS, on_checkpoint=call)
    assert calls == [4, 8]
    calls.clear()
    for stop, expected in ((4, []), (5, [4]), (8, []), (NUM_STEPS, [8])):
        with contextlib.suppress(Interrupted):
            batches = Stops(stop, signal.SIGTERM)
            run(tmp_path / "stopped", NUM_STEPS, on_checkpoint=call, batches=batches)
        assert calls == expected
        calls.clear()


def test_a_signal_during_the_last_save_is_not_lost(tmp_path, unbroken, monkeypatch):
    wait = Checkpoints.wait

    def interrupted_wait(self):
        signal.raise_signal(signal.SIGTERM)
        wait(self)

    monkeypatch.setattr(Checkpoints, "wait", interrupted_wait)
    with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step {NUM_STEPS}; its"):
        run(tmp_path, NUM_STEPS)
    monkeypatch.undo()
    assert_same_run(tmp_path, run(tmp_path, NUM_STEPS), unbroken)


@pytest.mark.slow
def test_after_damage_a_run_goes_on_from_the_checkpoint_before(tmp_path, unbroken):
    class Heard(Silent):
        lines: list[str] = []  # noqa: RUF012

        def say(self, line):
            self.lines.append(line)

    run(tmp_path, 8)
    damaged = next((tmp_path / "checkpoints" / "8" / "ema_params").rglob("d/*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    state = run(tmp_path, NUM_STEPS, progress=Heard())
    assert "checkpoint of step 8" in Heard.lines[0]
    assert "resumed from step 4" in Heard.lines[1]
    assert_same_run(tmp_path, state, unbroken)


@pytest.mark.slow
def test_a_run_may_be_made_longer(tmp_path, unbroken):
    state = run(tmp_path, 6)
    assert int(state.step) == 6
    assert_same_run(tmp_path, run(tmp_path, NUM_STEPS), unbroken)


@pytest.mark.slow
def test_a_finished_run_is_given_back_as_it_is(tmp_path, unbroken):
    run(tmp_path, NUM_STEPS)

    def fail(position):
        raise AssertionError("a batch was read")

    again = run(tmp_path, NUM_STEPS, batches=Points(before_batch=fail))
    assert_same_run(tmp_path, again, unbroken)


@pytest.mark.slow
def test_lines_after_the_checkpoint_are_written_again_once(tmp_path, unbroken):
    class Crash(Exception):
        pass

    def crash(position):
        if position == 10:
            raise Crash

    with pytest.raises(Crash):
        run(tmp_path, NUM_STEPS, batches=Points(before_batch=crash), log_every=3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 3, 6, 9]
    assert_same_run(tmp_path, run(tmp_path, NUM_STEPS), unbroken)


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
def test_a_process_told_to_stop_saves_and_leaves_cleanly(tmp_path, unbroken):
    numbers = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
    children = {name: start_child(tmp_path / name) for name in numbers}
    for name, child in children.items():
        metrics = tmp_path / name / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not metrics.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(numbers[name])
    for name, child in children.items():
        said, errors = child.communicate(timeout=60)
        assert (child.returncode, errors) == (LEFT_CLEANLY, "")
        assert said.startswith(f"stopped by {name} after step ")
        assert said.endswith("its checkpoint is saved")
        assert len(lines(tmp_path / name)) < len(lines(unbroken[0]))
        assert_same_run(tmp_path / name, run(tmp_path / name, NUM_STEPS), unbroken)


def test_a_second_ctrl_c_interrupts_at_once(tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, NUM_STEPS, batches=Stops(2, signal.SIGINT, signal.SIGINT))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() is None
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_a_second_sigterm_changes_nothing(tmp_path):
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 2"):
        run(tmp_path, NUM_STEPS, batches=Stops(2, signal.SIGTERM, signal.SIGTERM))


def test_without_checkpoints_a_stop_says_that_nothing_is_saved():
    with pytest.raises(Interrupted, match="after step 2; nothing is saved") as interrupted:
        bare_fit(batches=Stops(2, signal.SIGTERM))
    assert (interrupted.value.step, interrupted.value.saved) == (2, False)


def test_outside_the_main_thread_it_trains_too():
    results = []
    thread = threading.Thread(target=lambda: results.append(bare_fit()))
    thread.start()
    thread.join()
    assert int(results[0].step) == 5


class Poisoned(Points):
    """A NaN in the batch of one step (from 1)."""

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
def test_a_step_that_is_not_finite_is_named_and_never_saved(tmp_path, unbroken, bad, last_good):
    message = f"got loss nan and gradient norm nan in step {bad}; .* is that of step {last_good}"
    with pytest.raises(NonFiniteLoss, match=message) as error:
        run(tmp_path, NUM_STEPS, batches=Poisoned(bad))
    assert (error.value.step, error.value.last_good_step) == (bad, last_good)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == last_good
    # The checkpoint that is left is good: from it the run ends as one without the NaN.
    assert_same_run(tmp_path, run(tmp_path, NUM_STEPS), unbroken)


def test_without_a_checkpoint_it_says_so():
    with pytest.raises(NonFiniteLoss, match="in step 2; there is no checkpoint"):
        bare_fit(batches=Poisoned(2))


def bare_fit(objective=None, batches=None, **settings):
    mesh, net, optimizer = make_mesh(devices=jax.devices()[:1]), make_net(), optax.sgd(1e-3)
    objective = make_objective(net) if objective is None else objective
    state, sharding = init_state(net, optimizer, jax.random.key(0), mesh)
    step = make_train_step(objective, optimizer, mesh=mesh, state_sharding=sharding)
    batches = Points() if batches is None else batches
    return fit(state, step, batches, mesh=mesh, **{"num_steps": 5, **settings})


def test_the_whole_loop_traces_the_step_once():
    objective, traces = make_objective(make_net()), []

    def counted_loss(params, examples):
        traces.append(None)
        return objective.loss(params, examples)

    bare_fit(objective._replace(loss=counted_loss), num_steps=9, log_every=2)
    assert len(traces) == 1


class Listener(Silent):
    def __init__(self):
        self.said, self.advanced, self.notes, self.total = [], 0, [], None

    def say(self, line):
        self.said.append(line)

    @contextlib.contextmanager
    def task(self, description, total):
        self.total = total

        def advance(n=1, note=""):
            self.advanced += n
            self.notes.append(note)

        yield advance


def test_progress_hears_every_step_and_where_a_run_goes_on(tmp_path):
    first, second = Listener(), Listener()
    run(tmp_path, 4, progress=first)
    assert (first.total, first.advanced, first.said) == (4, 4, [])
    assert first.notes[-1].startswith("loss ")
    run(tmp_path, 6, progress=second)
    assert (second.total, second.advanced, second.said) == (6, 6, ["resumed from step 4"])


@pytest.mark.slow
def test_the_learning_rate_of_the_step_is_logged(tmp_path):
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4)
    run(tmp_path, 6, learning_rate=lambda n: learning_rate_at(config, 6, n))
    assert [line["learning_rate"] for line in lines(tmp_path)] == [0.25, 0.75, 1.0]


class Few(Points):
    def __next__(self):
        if self.position == 3:
            raise StopIteration
        return super().__next__()


def test_batches_that_end_early_are_refused():
    with pytest.raises(ValueError, match="batches must yield 5 batches, got 3"):
        bare_fit(batches=Few())


@pytest.mark.parametrize("name", ["num_steps", "log_every", "checkpoint_every"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        bare_fit(**{name: 0})
