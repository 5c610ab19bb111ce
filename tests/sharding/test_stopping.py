"""Tests of SIGTERM and Ctrl-C in all phases of `fmjax train`, and of resuming."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.progress import Progress, TextColumn

from fmjax import _signals
from fmjax._progress import COMPILING, Silent
from fmjax._signals import SIGNALS, stoppable
from fmjax.cli.console import _Bars, _Lines
from fmjax.runs.folder import open_run
from fmjax.sharding import Interrupted
from fmjax.sharding.stopping import Agreement, StopSignals, decide
from fmjax.training import Checkpoints, read_metrics
from tests.tiny_run import command, environment, write_config
from tests.training.child import run as train_tiny

NUM_STEPS = 400
# Functions of the run's folder and the output that return whether a phase has begun.
TRAINING_PHASES = {
    "compilation": lambda run, output: "training 0/400 compiling" in output,
    "steps": lambda run, output: (
        (run / "metrics.jsonl").exists() and len(read_metrics(run / "metrics.jsonl")) > 3
    ),
    "last save": lambda run, output: any((run / "checkpoints").glob(f"{NUM_STEPS}.*")),
}
RESULT_PHASES = {
    "sampling": lambda run, output: "sampling 0/" in output,
    "evaluation": lambda run, output: output.count("sampling 0/") == 2,
    "comparison": lambda run, output: "comparing solvers 0/" in output,
    "report": lambda run, output: (run / "comparison.json").exists(),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("configs"), NUM_STEPS, 10, 100)


@pytest.fixture(scope="module")
def reference_run(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("reference") / "run"
    code, _, error = run_command(config, run)
    assert code == 0, error
    return run


def run_command(config, run, has_begun=None, **variables):
    """Send SIGTERM as soon as `has_begun`; return exit code, output and errors."""
    output_file = run.parent / "out.txt"
    with (
        output_file.open("w") as file,
        subprocess.Popen(
            command(config, run),
            env=environment(**variables),
            text=True,
            stdout=file,
            stderr=subprocess.PIPE,
        ) as child,
    ):
        try:
            while has_begun is not None and not has_begun(run, output_file.read_text()):
                assert child.poll() is None, (output_file.read_text(), child.communicate())
                time.sleep(0.002)
            if has_begun is not None:
                child.send_signal(signal.SIGTERM)
            _, error = child.communicate(timeout=60 if has_begun else 180)
        finally:
            child.kill()
    return child.returncode, output_file.read_text(), error


def checkpoint_times(run):
    return {folder.name: folder.stat().st_mtime_ns for folder in (run / "checkpoints").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("phase", [*TRAINING_PHASES, *RESULT_PHASES])
def test_sigterm_ends_every_phase_and_the_same_command_resumes(
    config, reference_run, tmp_path, phase
):
    run, variables = tmp_path / "run", {}
    if phase in RESULT_PHASES:
        shutil.copytree(reference_run / "checkpoints", run / "checkpoints")
        for name in ("config.json", "model.json", "metrics.jsonl"):
            shutil.copy2(reference_run / name, run)
    if phase == "compilation":  # The cache is empty.
        variables["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "compiled")
    code, _, error = run_command(config, run, (TRAINING_PHASES | RESULT_PHASES)[phase], **variables)
    assert code == 128 + signal.SIGTERM, error
    assert error.startswith("fmjax: stopped by SIGTERM")
    assert error.endswith("; run the same command again to resume\n")
    assert error.count("\n") == 1
    partial = [file for file in run.rglob("*") if file.name.startswith(".") or "tmp" in file.name]
    assert not partial
    assert not (run / "report.html").exists()
    saved = checkpoint_times(run)
    last = max(map(int, saved), default=0)
    assert (last == NUM_STEPS) == (phase not in ("compilation", "steps"))
    assert (last == 0) == (phase == "compilation")  # There is nothing to save.

    code, output, error = run_command(config, run)
    assert code == 0, error
    assert (f"resumed from step {last}\n" in output) == (last > 0)
    if last == NUM_STEPS:
        assert "training 0/" not in output
        assert checkpoint_times(run) == saved
    assert (run / "report.html").is_file()
    assert losses(run) == losses(reference_run)
    jax.tree.map(
        np.testing.assert_array_equal, open_run(run).params, open_run(reference_run).params
    )


def losses(run):
    lines = read_metrics(run / "metrics.jsonl")
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_imports_is_reported_in_one_line(config, tmp_path, number):
    child = subprocess.Popen(
        command(config, tmp_path / "run"),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    # An exception in NumPy's C code would be printed and replaced by another one.
    while "numpy" not in Path(f"/proc/{child.pid}/maps").read_text():
        assert child.poll() is None, child.communicate()
        time.sleep(0.002)
    child.send_signal(number)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    name = signal.Signals(number).name
    assert error == f"fmjax: stopped by {name}; run the same command again to resume\n"
    assert not (tmp_path / "run").exists()


BLOCKING_CODE = {
    "a callback of JAX": """
        import jax, jax.numpy as jnp
        def callback(x):
            print("begun", flush=True)
            time.sleep(60)
        jax.jit(lambda x: jax.debug.callback(callback, x))(jnp.ones(3))
        jax.effects_barrier()
    """,
    "a finalizer": """
        class Slow:
            def __del__(self):
                print("begun", flush=True)
                time.sleep(60)
        Slow()
    """,
    "C code that does not return": """
        import threading
        print("begun", flush=True)
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    """,
    "a thread which the main thread joins": """
        import threading
        def work():
            print("begun", flush=True)
            time.sleep(60)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    """,
    "the end of the interpreter": """
        import atexit
        def exit_function():
            print("begun", flush=True)
            time.sleep(60)
        atexit.register(exit_function)
        sys.exit(0)
    """,
}


def run_with_signals(body, number=signal.SIGTERM, *later_numbers, wait=0.0):
    """Send signals to code that prints "begun"; return code, output, errors and seconds."""
    code = "import sys, time\nfrom fmjax import _signals\n_signals.install('start over')\n"
    child = subprocess.Popen(
        [sys.executable, "-c", code + textwrap.dedent(body)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    line = child.stdout.readline()
    start = time.monotonic()
    for signal_number in (number, *later_numbers):
        child.send_signal(signal_number)
        time.sleep(wait)
    output, error = child.communicate(timeout=50)
    return child.returncode, line + output, error, time.monotonic() - start


@pytest.mark.parametrize("name", BLOCKING_CODE)
def test_signals_end_blocking_code(name):
    number = signal.SIGTERM if len(name) % 2 else signal.SIGINT  # Either signal ends it.
    code, output, error, seconds = run_with_signals(BLOCKING_CODE[name], number)
    assert output.startswith("begun")
    assert error == f"fmjax: stopped by {number.name}; run the same command again to start over\n"
    assert code == 128 + number
    assert seconds < 20  # The code sleeps for 60 seconds.


DEFERRED = """
    deferral = _signals.Deferral()
    deferral.enter()
    print("begun", flush=True)
    {work}
    deferral.leave()
    print("left by", deferral.cause)
"""


def test_deferred_signal_is_found_by_polling():
    work = "\n    ".join(["while not deferral.look():", "    time.sleep(0.01)"])
    code, output, error, _ = run_with_signals(DEFERRED.format(work=work))
    assert (code, output, error) == (0, "begun\nleft by SIGTERM\n", "")


def test_two_immediate_signals_count_as_one():
    """The command `timeout` sends its signal to the process and to its group."""
    work = "\n    ".join(["while not deferral.look():", "    time.sleep(0.01)"])
    code, output, error, _ = run_with_signals(
        DEFERRED.format(work=work), signal.SIGTERM, signal.SIGTERM
    )
    assert (code, output, error) == (0, "begun\nleft by SIGTERM\n", "")


@pytest.mark.parametrize(
    ("exception", "message"),
    [
        ("ValueError('x')", "fmjax: error: x\n"),
        (
            "sharding.Interrupted('SIGINT', 3, True)",
            "fmjax: stopped by SIGINT after step 3; its checkpoint is saved; run the same "
            "command again to resume\n",
        ),
    ],
)
def test_signal_after_the_last_line_adds_no_line(exception, message):
    code, _, error, _ = run_with_signals(f"""
        from fmjax import sharding
        from fmjax.cli import commands
        from fmjax.cli.main import _run
        def work(arguments):
            raise {exception}
        commands.COMMANDS["train"] = work
        _run(["train"])
        print("begun", flush=True)
        time.sleep(60)
    """)
    assert (code, error) == (128 + signal.SIGTERM, message)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_always_ends_the_process(second):
    code, output, error, seconds = run_with_signals(
        DEFERRED.format(work="time.sleep(60)"), signal.SIGINT, second, wait=0.3
    )
    assert (code, output) == (128 + second, "begun\n")
    assert error == f"fmjax: stopped by {second.name}; run the same command again to start over\n"
    assert seconds < 20


def test_signal_removes_temporary_files(tmp_path):
    code, _, _, _ = run_with_signals(f"""
        from pathlib import Path
        from fmjax._files import write_atomically
        with write_atomically(Path({str(tmp_path)!r}) / "a.json") as temporary:
            temporary.write_text("half")
            print("begun", flush=True)
            time.sleep(60)
    """)
    assert code == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_signal_to_a_forked_child_does_not_stop_the_command():
    code, output, error, _ = run_with_signals("""
        import os, signal
        ready, forked = os.pipe()
        child = os.fork()
        if not child:
            os.write(forked, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        print("child", os.waitpid(child, 0)[1], flush=True)
        time.sleep(60)
    """)
    assert output == f"child {int(signal.SIGTERM)}\n"
    assert (code, error.count("\n")) == (128 + signal.SIGTERM, 1)


@pytest.mark.parametrize(("end", "code"), [("return 0", 0), ("return 2", 2), ("1 / 0", 1)])
def test_finished_command_joins_no_thread_and_runs_no_finalizer(end, code):
    script = f"""
import atexit, sys, threading, time
from fmjax.cli import commands, main
class Finalized:
    def __del__(self):
        print("finalized")
def work(arguments):
    main.kept = Finalized()
    atexit.register(print, "exit function")
    threading.Thread(target=time.sleep, args=(3600,)).start()
    {end}
commands.COMMANDS["train"] = work
sys.argv = ["fmjax", "train"]
main()
"""
    completed = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (completed.returncode, completed.stdout) == (code, "exit function\n")
    assert completed.stderr.endswith("ZeroDivisionError: division by zero\n" if code == 1 else "")
    assert bool(completed.stderr) == (code == 1)


def test_signal_handlers_of_another_program_are_restored():
    before = [signal.getsignal(number) for number in SIGNALS]
    with stoppable("start over"):
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        (["before", "before"], "now"),
        (["before", "1"], "2"),
        (["before", "0"], "1"),
        (["7", "5", "6"], "8"),
        (["7", "after"], "after"),
        (["after", "after"], "after"),
    ],
)
def test_decision_follows_from_the_positions(positions, expected):
    assert decide(positions) == expected


class InMemoryStore:
    """Key-value store like that of JAX's coordinator."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self.changed:
            if key in self.values:
                raise RuntimeError("ALREADY_EXISTS")
            self.values[key] = value
            self.changed.notify_all()

    def key_value_try_get(self, key):
        return self.blocking_key_value_get(key, 0)

    def blocking_key_value_get(self, key, timeout_in_ms):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, timeout_in_ms / 1000):
                raise RuntimeError("DEADLINE_EXCEEDED")
            return self.values[key]


@pytest.mark.parametrize("receiver", [0, 1])
def test_all_processes_stop_after_the_same_step(receiver, monkeypatch):
    noted = []
    monkeypatch.setattr(_signals, "note", noted.append)
    store, stops = InMemoryStore(), {}
    agreements = [Agreement(store, index, 2) for index in range(2)]

    def train(index):
        """Take steps, faster in process 0 than in process 1."""
        for step in range(1, 2000):
            time.sleep(0.002 + 0.001 * index)
            if cause := agreements[index].passed(step):
                stops[index] = (step, cause)
                return

    threads = [threading.Thread(target=train, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    agreements[receiver].request("SIGINT")
    for thread in threads:
        thread.join()
    assert stops[0] == stops[1]
    assert stops[0][1] == "SIGINT"
    assert noted == ["SIGINT"] * 2


def test_process_0_ends_last_if_there_is_nothing_to_save(monkeypatch):
    ended = []
    monkeypatch.setattr(_signals, "note", lambda cause: None)
    monkeypatch.setattr(_signals, "end", lambda cause, *, delay=0.0: ended.append((cause, delay)))
    store = InMemoryStore()
    agreements = [Agreement(store, index, 3) for index in range(3)]
    agreements[2].request("SIGTERM")
    for agreement in agreements:
        agreement._thread.join()
    delays = sorted(delay for _, delay in ended)
    assert delays[:2] == [0.0, 0.0]
    assert delays[2] > 0
    assert {cause for cause, _ in ended} == {"SIGTERM"}


def test_finished_process_ends_while_another_is_saving(monkeypatch):
    ended = []
    monkeypatch.setattr(_signals, "note", lambda cause: None)
    monkeypatch.setattr(_signals, "end", lambda cause, *, delay=0.0: ended.append(delay))
    store = InMemoryStore()
    saving, finished = Agreement(store, 0, 2), Agreement(store, 1, 2)
    assert saving.passed(5) is None
    assert finished.finished() is None
    finished.request("SIGTERM")
    finished._thread.join()
    saving._thread.join()
    assert ended == [0.0]
    assert saving.finished() == "SIGTERM"
    assert ended == [0.0, 0.5]


def test_closed_process_is_not_ended_by_the_decision(monkeypatch):
    ended = []
    monkeypatch.setattr(_signals, "note", lambda cause: None)
    monkeypatch.setattr(_signals, "end", lambda cause, *, delay=0.0: ended.append(cause))
    store = InMemoryStore()
    leaving = Agreement(store, 1, 2)
    assert leaving.finished() is None
    store.key_value_set("fmjax/stop/cause", "SIGTERM")
    store.blocking_key_value_get("fmjax/stop/step/1", 5_000)
    leaving.close()
    store.key_value_set("fmjax/stop/decision", "after")
    leaving._thread.join()
    assert ended == []


def test_process_ends_alone_if_the_coordinator_does_not_answer(monkeypatch):
    ended, answer = threading.Event(), threading.Event()
    monkeypatch.setattr(_signals, "end", lambda cause, **_: ended.set())
    monkeypatch.setattr(_signals, "note", lambda cause: None)

    class UnresponsiveStore(InMemoryStore):
        def key_value_set(self, key, value):
            answer.wait()
            raise RuntimeError("UNAVAILABLE")

        def blocking_key_value_get(self, key, timeout_in_ms):
            raise RuntimeError("UNAVAILABLE")

    agreement = Agreement(UnresponsiveStore(), 1, 2)
    agreement.request("SIGTERM")
    assert ended.wait(2.0)
    # The patch of `end` ends with the test; a thread that still runs would then end pytest.
    answer.set()
    agreement._thread.join()


@pytest.mark.slow
def test_signal_during_restore_is_not_taken_for_damage(tmp_path):
    train_tiny(tmp_path, 8)
    code, output, error, _ = run_with_signals(f"""
        import orbax.checkpoint as ocp
        from pathlib import Path
        from tests.training.child import run
        def slow(*_, **__):
            print("begun", flush=True)
            time.sleep(60)
        ocp.CheckpointManager.restore = slow
        run(Path({str(tmp_path)!r}), 12)
    """)
    assert (code, output) == (128 + signal.SIGTERM, "begun\n"), error
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 8


def test_signal_at_the_end_of_training_is_handled(tmp_path, monkeypatch):
    leave = StopSignals.__exit__

    def interrupted(self, *error):
        signal.raise_signal(signal.SIGTERM)
        leave(self, *error)

    monkeypatch.setattr(StopSignals, "__exit__", interrupted)
    with pytest.raises(Interrupted, match="SIGTERM after step 4"):
        train_tiny(tmp_path, 4)


def test_signal_during_a_progress_bar_restores_the_terminal():
    import pty

    body = """
        from fmjax.cli.console import console
        with console() as progress, progress.task("training", 10) as advance:
            advance(0, "compiling")
            time.sleep(60)
    """
    code = "import sys, time\nfrom fmjax import _signals\n_signals.install('start over')\n"
    parent, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code + textwrap.dedent(body)],
        env=environment(TERM="xterm"),
        stdout=terminal,
        stderr=terminal,
        stdin=terminal,
    ) as child:
        os.close(terminal)
        terminal_output = b""
        while b"compiling" not in terminal_output:
            terminal_output += os.read(parent, 10_000)
        child.send_signal(signal.SIGINT)
        child.wait(50)
        with contextlib.suppress(OSError):  # The terminal is closed.
            while data := os.read(parent, 10_000):
                terminal_output += data
    os.close(parent)
    assert child.returncode == 128 + signal.SIGINT
    end = b"\x1b[?25h\r\nfmjax: stopped by SIGINT; run the same command again to start over\r\n"
    assert terminal_output.endswith(end)


def test_progress_shows_compiling_until_the_first_result(capsys):
    lines = _Lines()
    with lines.task("sampling", 64) as advance:
        advance(0, COMPILING)
        advance(8)
    assert capsys.readouterr().out == "sampling 0/64\nsampling 0/64 compiling\n"
    bars = Progress(TextColumn("{task.fields[note]}"), disable=True)
    with _Bars(bars).task("training", 10) as advance:
        notes = []
        for call in (
            (0, COMPILING),
            (0,),
            (1,),
            (1, "loss 2"),
            (1,),
            (0, COMPILING),
            (1, "loss 1"),
        ):
            advance(*call)
            notes.append(bars.tasks[0].fields["note"])
    assert notes == [COMPILING, COMPILING, "", "loss 2", "loss 2", COMPILING, "loss 1"]


def test_training_reports_compilation(tmp_path):
    tasks = []

    class RecordingProgress(Silent):
        @contextlib.contextmanager
        def task(self, description, total):
            tasks.append((description, []))
            yield lambda n=1, note=None: tasks[-1][1].append(note)

    train_tiny(tmp_path, 4, progress=RecordingProgress())
    assert [description for description, _ in tasks] == ["training"]
    assert tasks[0][1][0] == COMPILING
