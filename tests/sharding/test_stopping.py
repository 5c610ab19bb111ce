"""SIGTERM in every phase of `fmjax train`: it ends soon, and the same command goes on."""

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

from fmjax import _stopping
from fmjax._progress import COMPILING, Silent
from fmjax._stopping import SIGNALS, stoppable
from fmjax.cli.console import _Bars, _Lines
from fmjax.runs.folder import open_run
from fmjax.sharding import Interrupted
from fmjax.sharding.stopping import Agreement, StopSignals, decide
from fmjax.training import Checkpoints, read_metrics
from tests.tiny_run import command, environment, write_config
from tests.training.child import run as train_here

NUM_STEPS = 400
# Whether a phase has begun, by the run's folder and by what the command has said.
TRAINING = {
    "compilation": lambda run, said: "training 0/400 compiling" in said,
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
    with (
        out.open("w") as file,
        subprocess.Popen(
            command(config, run),
            env=environment(**more),
            text=True,
            stdout=file,
            stderr=subprocess.PIPE,
        ) as child,
    ):
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
    assert error.endswith("; run the same command again to resume\n")
    assert error.count("\n") == 1
    half = [path for path in run.rglob("*") if path.name.startswith(".") or "tmp" in path.name]
    assert not half
    assert not (run / "report.html").exists()
    saved = times_of_checkpoints(run)
    last = max(map(int, saved), default=0)
    assert (last == NUM_STEPS) == (phase not in ("compilation", "steps"))
    assert (last == 0) == (phase == "compilation")  # There is nothing to save.

    code, said, error = train(config, run)
    assert code == 0, error
    assert (f"resumed from step {last}\n" in said) == (last > 0)
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
        command(config, tmp_path / "run"),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    # The worst moment: NumPy's C code prints the exception and raises another.
    while "numpy" not in Path(f"/proc/{child.pid}/maps").read_text():
        assert child.poll() is None, child.communicate()
        time.sleep(0.002)
    child.send_signal(number)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    name = signal.Signals(number).name
    assert error == f"fmjax: stopped by {name}; run the same command again to resume\n"
    assert not (tmp_path / "run").exists()


LOST = {
    "a callback of JAX": """
        import jax, jax.numpy as jnp
        def told(x):
            print("begun", flush=True)
            time.sleep(60)
        jax.jit(lambda x: jax.debug.callback(told, x))(jnp.ones(3))
        jax.effects_barrier()
    """,
    "a finalizer": """
        class Slow:
            def __del__(self):
                print("begun", flush=True)
                time.sleep(60)
        Slow()
    """,
    "code of C that does not come back": """
        import threading
        print("begun", flush=True)
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    """,
    "a thread, for which the main one waits": """
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
        def last():
            print("begun", flush=True)
            time.sleep(60)
        atexit.register(last)
        sys.exit(0)
    """,
}


def scene(body, number=signal.SIGTERM, *more, wait=0.0):
    """Exit code, output, errors and seconds of code that gets signals once it says "begun"."""
    code = "import sys, time\nfrom fmjax import _stopping\n_stopping.install('start over')\n"
    child = subprocess.Popen(
        [sys.executable, "-c", code + textwrap.dedent(body)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    line = child.stdout.readline()
    began = time.monotonic()
    for each in (number, *more):
        child.send_signal(each)
        time.sleep(wait)
    out, error = child.communicate(timeout=50)
    return child.returncode, line + out, error, time.monotonic() - began


@pytest.mark.parametrize("where", LOST)
def test_no_signal_is_lost(where):
    number = signal.SIGTERM if len(where) % 2 else signal.SIGINT  # Either will do.
    code, said, error, seconds = scene(LOST[where], number)
    assert said.startswith("begun")
    assert error == f"fmjax: stopped by {number.name}; run the same command again to start over\n"
    assert code == 128 + number
    assert seconds < 20  # It sleeps for 60.


DEFERRED = """
    deferral = _stopping.Deferral()
    deferral.enter()
    print("begun", flush=True)
    {work}
    deferral.leave()
    print("left by", deferral.cause)
"""


def test_where_there_is_something_to_save_a_loop_looks_for_the_signal():
    work = "\n    ".join(["while not deferral.look():", "    time.sleep(0.01)"])
    code, said, error, _ = scene(DEFERRED.format(work=work))
    assert (code, said, error) == (0, "begun\nleft by SIGTERM\n", "")


def test_two_signals_within_a_moment_are_one():
    """`timeout` sends its signal to the process and to its group."""
    work = "\n    ".join(["while not deferral.look():", "    time.sleep(0.01)"])
    code, said, error, _ = scene(DEFERRED.format(work=work), signal.SIGTERM, signal.SIGTERM)
    assert (code, said, error) == (0, "begun\nleft by SIGTERM\n", "")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ValueError('x')", "fmjax: error: x\n"),
        (
            "sharding.Interrupted('SIGINT', 3, True)",
            "fmjax: stopped by SIGINT after step 3; its checkpoint is saved; run the same "
            "command again to resume\n",
        ),
    ],
)
def test_a_signal_after_the_last_line_of_a_command_adds_none(error, said):
    code, _, found, _ = scene(f"""
        from fmjax import sharding
        from fmjax.cli import commands
        from fmjax.cli.main import _run
        def work(arguments):
            raise {error}
        commands.COMMANDS["train"] = work
        _run(["train"])
        print("begun", flush=True)
        time.sleep(60)
    """)
    assert (code, found) == (128 + signal.SIGTERM, said)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_always_ends(second):
    code, said, error, seconds = scene(
        DEFERRED.format(work="time.sleep(60)"), signal.SIGINT, second, wait=0.3
    )
    assert (code, said) == (128 + second, "begun\n")
    assert error == f"fmjax: stopped by {second.name}; run the same command again to start over\n"
    assert seconds < 20


def test_temporary_files_go_with_the_process(tmp_path):
    code, _, _, _ = scene(f"""
        from pathlib import Path
        from fmjax._files import write_atomically
        with write_atomically(Path({str(tmp_path)!r}) / "a.json") as temporary:
            temporary.write_text("half")
            print("begun", flush=True)
            time.sleep(60)
    """)
    assert code == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_a_signal_to_a_forked_child_is_not_one_to_the_command():
    code, said, error, _ = scene("""
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
    assert said == f"child {int(signal.SIGTERM)}\n"
    assert (code, error.count("\n")) == (128 + signal.SIGTERM, 1)


@pytest.mark.parametrize(("end", "code"), [("return 0", 0), ("return 2", 2), ("1 / 0", 1)])
def test_a_command_that_has_ended_waits_for_no_thread_and_frees_no_object(end, code):
    script = f"""
import atexit, sys, threading, time
from fmjax.cli import commands, main
class Freed:
    def __del__(self):
        print("freed")
def work(arguments):
    main.kept = Freed()
    atexit.register(print, "exit function")
    threading.Thread(target=time.sleep, args=(3600,)).start()
    {end}
commands.COMMANDS["train"] = work
sys.argv = ["fmjax", "train"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (code, "exit function\n")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n" if code == 1 else "")
    assert bool(done.stderr) == (code == 1)


def test_within_another_program_signals_are_given_back():
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
def test_where_processes_stop_follows_from_where_they_are(positions, expected):
    assert decide(positions) == expected


class Shared:
    """What JAX's coordinator keeps for the processes."""

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


@pytest.mark.parametrize("asked", [0, 1])
def test_all_processes_stop_after_the_same_step_whichever_is_asked(asked, monkeypatch):
    noted = []
    monkeypatch.setattr(_stopping, "note", noted.append)
    store, last = Shared(), {}
    all_of_them = [Agreement(store, index, 2) for index in range(2)]

    def train(index):
        """Process 0 is ahead of process 1, as far as a device's queue lets it."""
        for step in range(1, 2000):
            time.sleep(0.002 + 0.001 * index)
            if cause := all_of_them[index].passed(step):
                last[index] = (step, cause)
                return

    threads = [threading.Thread(target=train, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    all_of_them[asked].request("SIGINT")
    for thread in threads:
        thread.join()
    assert last[0] == last[1]
    assert last[0][1] == "SIGINT"
    assert noted == ["SIGINT"] * 2


def test_processes_with_nothing_to_save_end_at_once_process_0_last(monkeypatch):
    ended = []
    monkeypatch.setattr(_stopping, "note", lambda cause: None)
    monkeypatch.setattr(_stopping, "end", lambda cause, *, delay=0.0: ended.append((cause, delay)))
    store = Shared()
    all_of_them = [Agreement(store, index, 3) for index in range(3)]
    all_of_them[2].request("SIGTERM")
    for each in all_of_them:
        each._thread.join()
    delays = sorted(delay for _, delay in ended)
    assert delays[:2] == [0.0, 0.0]
    assert delays[2] > 0
    assert {cause for cause, _ in ended} == {"SIGTERM"}


def test_a_process_that_has_ended_its_training_ends_when_another_is_still_saving(monkeypatch):
    ended = []
    monkeypatch.setattr(_stopping, "note", lambda cause: None)
    monkeypatch.setattr(_stopping, "end", lambda cause, *, delay=0.0: ended.append(delay))
    store = Shared()
    saving, finished = Agreement(store, 0, 2), Agreement(store, 1, 2)
    assert saving.passed(5) is None
    assert finished.finished() is None
    finished.request("SIGTERM")
    finished._thread.join()
    saving._thread.join()
    assert ended == [0.0]
    assert saving.finished() == "SIGTERM"
    assert ended == [0.0, 0.5]


def test_a_process_that_has_closed_is_not_ended_by_what_the_others_decide(monkeypatch):
    ended = []
    monkeypatch.setattr(_stopping, "note", lambda cause: None)
    monkeypatch.setattr(_stopping, "end", lambda cause, *, delay=0.0: ended.append(cause))
    store = Shared()
    leaving = Agreement(store, 1, 2)
    assert leaving.finished() is None
    store.key_value_set("fmjax/stop/cause", "SIGTERM")
    store.blocking_key_value_get("fmjax/stop/step/1", 5_000)
    leaving.close()
    store.key_value_set("fmjax/stop/decision", "after")
    leaving._thread.join()
    assert ended == []


def test_without_an_answer_of_the_coordinator_a_process_with_nothing_to_save_ends_alone(
    monkeypatch,
):
    ended, answer = threading.Event(), threading.Event()
    monkeypatch.setattr(_stopping, "end", lambda cause, **_: ended.set())
    monkeypatch.setattr(_stopping, "note", lambda cause: None)

    class Silent(Shared):
        def key_value_set(self, key, value):
            answer.wait()
            raise RuntimeError("UNAVAILABLE")

        def blocking_key_value_get(self, key, timeout_in_ms):
            raise RuntimeError("UNAVAILABLE")

    agreement = Agreement(Silent(), 1, 2)
    agreement.request("SIGTERM")
    assert ended.wait(2.0)
    # After the test `end` is no longer replaced: a thread that still runs would end pytest.
    answer.set()
    agreement._thread.join()


@pytest.mark.slow
def test_a_signal_while_a_checkpoint_is_read_is_no_damage(tmp_path):
    train_here(tmp_path, 8)
    code, said, error, _ = scene(f"""
        import orbax.checkpoint as ocp
        from pathlib import Path
        from tests.training.child import run
        def slow(*_, **__):
            print("begun", flush=True)
            time.sleep(60)
        ocp.CheckpointManager.restore = slow
        run(Path({str(tmp_path)!r}), 12)
    """)
    assert (code, said) == (128 + signal.SIGTERM, "begun\n"), error
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 8


def test_a_signal_as_training_lets_go_of_them_is_not_lost(tmp_path, monkeypatch):
    leave = StopSignals.__exit__

    def interrupted(self, *error):
        signal.raise_signal(signal.SIGTERM)
        leave(self, *error)

    monkeypatch.setattr(StopSignals, "__exit__", interrupted)
    with pytest.raises(Interrupted, match="SIGTERM after step 4"):
        train_here(tmp_path, 4)


def test_a_signal_below_a_progress_bar_shows_the_cursor_and_begins_a_line():
    import pty

    body = """
        from fmjax.cli.console import console
        with console() as progress, progress.task("training", 10) as advance:
            advance(0, "compiling")
            time.sleep(60)
    """
    code = "import sys, time\nfrom fmjax import _stopping\n_stopping.install('start over')\n"
    parent, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code + textwrap.dedent(body)],
        env=environment(TERM="xterm"),
        stdout=terminal,
        stderr=terminal,
        stdin=terminal,
    ) as child:
        os.close(terminal)
        shown = b""
        while b"compiling" not in shown:
            shown += os.read(parent, 10_000)
        child.send_signal(signal.SIGINT)
        child.wait(50)
        with contextlib.suppress(OSError):  # Of a terminal that is closed.
            while more := os.read(parent, 10_000):
                shown += more
    os.close(parent)
    assert child.returncode == 128 + signal.SIGINT
    end = b"\x1b[?25h\r\nfmjax: stopped by SIGINT; run the same command again to start over\r\n"
    assert shown.endswith(end)


def test_progress_says_compiling_until_there_is_a_result(capsys):
    lines = _Lines()
    with lines.task("sampling", 64) as advance:
        advance(0, COMPILING)
        advance(8)
    assert capsys.readouterr().out == "sampling 0/64\nsampling 0/64 compiling\n"
    shown = Progress(TextColumn("{task.fields[note]}"), disable=True)
    with _Bars(shown).task("training", 10) as advance:
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
            notes.append(shown.tasks[0].fields["note"])
    assert notes == [COMPILING, COMPILING, "", "loss 2", "loss 2", COMPILING, "loss 1"]


def test_a_training_says_that_it_compiles(tmp_path):
    told = []

    class Heard(Silent):
        @contextlib.contextmanager
        def task(self, description, total):
            told.append((description, []))
            yield lambda n=1, note=None: told[-1][1].append(note)

    train_here(tmp_path, 4, progress=Heard())
    assert [description for description, _ in told] == ["training"]
    assert told[0][1][0] == COMPILING
