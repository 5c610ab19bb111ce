"""Tests of the command line: output files, one-line errors and exit codes."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fmjax import cli
from fmjax._locks import is_lock
from tests.holder import holder

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = [
    "--network.width",
    "16",
    "--network.num-layers",
    "1",
    "--training.num-steps",
    "4",
    "--training.batch-size",
    "16",
    "--training.log-every",
    "2",
    "--optimizer.warmup-steps",
    "1",
    "--data.num-examples",
    "256",
    "--sampling.num-samples",
    "16",
    "--sampling.batch-size",
    "16",
    "--evaluation.num-samples",
    "32",
    "--evaluation.num-projections",
    "8",
    "--compare.num-samples",
    "8",
    "--compare.num-steps",
    "1",
    "2",
    "--compare.tolerances",
    "1e-2",
    "--compare.fixed-solvers",
    "euler",
    "heun",
    "--compare.adaptive-solvers",
    "tsit5",
]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_info:
        cli.main([str(argument) for argument in arguments])
    return exit_info.value.code


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "toy"
    assert run("train", CONFIGS / "toy2d.py", *SMALL, "--run", folder) == 0
    return folder


def test_train_writes_a_complete_run_folder(toy_run):
    for name in (
        "config.json",
        "model.json",
        "checkpoints/4",
        "metrics.jsonl",
        "evaluation.json",
        "samples/grid.png",
        "samples/grid.npz",
        "comparison.csv",
        "comparison.json",
        "figures/error.png",
        "figures/steps.png",
        "report.html",
    ):
        assert (toy_run / name).exists(), name
    assert list((toy_run / "events").glob("events.*"))
    lines = (toy_run / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [1, 2, 4]
    assert not list(toy_run.rglob(".*-*")), "temporary files must be removed"


def test_sample_writes_an_image_and_arrays(toy_run, capsys):
    assert run("sample", toy_run, "--num-samples", 6, "--solver", "heun", "--num-steps", 2) == 0
    with np.load(toy_run / "samples" / "step4-heun-2-uniform-num6-seed0.npz") as arrays:
        assert arrays["x1"].shape == (6, 2)
        np.testing.assert_array_equal(arrays["nfe"], 4)
        assert arrays["succeeded"].all()
    assert (toy_run / "samples" / "step4-heun-2-uniform-num6-seed0.png").stat().st_size > 0
    assert "6 samples, 4 network evaluations each" in capsys.readouterr().out


@pytest.mark.slow
def test_passing_a_tolerance_makes_the_steps_adaptive(toy_run):
    assert run("sample", toy_run, "--num-samples", 6, "--solver", "tsit5", "--rtol", 1e-2) == 0
    with np.load(toy_run / "samples" / "step4-tsit5-rtol0.01-atol0.0001-num6-seed0.npz") as arrays:
        assert arrays["succeeded"].all()


@pytest.mark.slow
def test_failed_samples_set_the_exit_code(toy_run, tmp_path, capsys):
    options = ["--num-samples", 6, "--solver", "tsit5", "--rtol", 1e-30, "--atol", 1e-30]
    assert run("sample", toy_run, *options, "--output", tmp_path / "six.png") == 1
    assert "6 of them did not reach t = 1" in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["six.npz", "six.png"]


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["abacus", "cuda"])
def test_a_missing_backend_is_reported_in_one_line(toy_run, platform):
    command = [sys.executable, "-m", "fmjax.cli", "sample", str(toy_run)]
    environment = {**os.environ, "JAX_PLATFORMS": platform}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 2
    assert child.stderr.startswith("fmjax: error: JAX must find its devices, got ")
    assert child.stderr.count("\n") == 1


@pytest.mark.slow
def test_samples_do_not_depend_on_the_batch_size(toy_run, tmp_path):
    options = ["--num-samples", 24, "--solver", "rk4", "--num-steps", 2]
    for size in (8, 24):
        assert (
            run(
                "sample",
                toy_run,
                *options,
                "--batch-size",
                size,
                "--output",
                tmp_path / f"by{size}",
            )
            == 0
        )
    with np.load(tmp_path / "by8.npz") as batches, np.load(tmp_path / "by24.npz") as full:
        np.testing.assert_allclose(batches["x1"], full["x1"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_same_command_resumes_and_another_config_is_rejected(toy_run, capsys):
    before = (toy_run / "metrics.jsonl").read_text()
    assert run("train", CONFIGS / "toy2d.py", *SMALL, "--run", toy_run) == 0
    assert (toy_run / "metrics.jsonl").read_text() == before
    capsys.readouterr()
    assert (
        run(
            "train",
            CONFIGS / "toy2d.py",
            *SMALL,
            "--run",
            toy_run,
            "--optimizer.learning-rate",
            "0.5",
        )
        == 2
    )
    error = capsys.readouterr().err
    assert "different optimizer.learning_rate" in error
    assert error.count("\n") == 1


def test_help_lists_the_fields_of_the_config(capsys):
    assert run("train", CONFIGS / "digits.py", "--help") == 0
    assert "--optimizer.learning-rate" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "sample", "compare", "evaluate", "likelihood"])
def test_help_without_arguments_prints_the_usage(command, capsys):
    assert run(command, "--help") == 0
    output = capsys.readouterr()
    assert output.out.startswith("usage: fmjax COMMAND")
    assert output.err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trane"], "got 'trane' (did you mean 'train'?)"),
        (["train"], "fmjax train needs a CONFIG first"),
        (["train", "absent.py"], "config must exist, got absent.py"),
        (["train", CONFIGS / "toy2d.py", "--trainin.num-steps", 3], "did you mean --training.num"),
        (["train", CONFIGS / "toy2d.py", "--training.num-steps", "many"], "--training.num-steps"),
        (["train", CONFIGS / "toy2d.py", "--training.num-steps", 0], "training.num_steps must be"),
        (["train", CONFIGS / "digits.py", "--network.patch-size", 3], "patch_size must divide"),
        (["train", CONFIGS / "fashion_mnist.py", "--data.folder", "absent"], "data.folder must"),
        (["sample", "absent"], "run folder must exist, got absent"),
    ],
)
def test_invalid_arguments_get_one_line_and_exit_code_2(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir()), "no files must be written"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--solver", "tsit6"], "did you mean 'tsit5'"),
        (["--solver", "euler", "--num-steps", "None"], "num_steps must be given for euler"),
        (["--rtol", "0"], "rtol must be positive, got 0.0"),
        (["--rtol", "1e-4"], "rtol must be used with a solver that estimates its error (tsit5, "),
        (["--control=PER_SAMPLE"], "control must be used with a solver that estimates its error"),
        (["--num-steps", "0"], "num_steps must lie in [1, 16777216], got 0"),
        (["--num-steps", "4", "--rtol", "1e-3"], "rtol must not be combined with num_steps"),
        (["--classes", "3"], "classes must be left out for a model without"),
        (["--guidance", "2"], "guidance must be 1 for a model without classes"),
        (["--classes", "--"], "unrecognized option --"),
        (["--"], "unrecognized option --"),
    ],
)
def test_invalid_sampling_options_get_one_line_and_exit_code_2(toy_run, arguments, message, capsys):
    files = sorted(toy_run.rglob("*"))
    assert run("sample", toy_run, *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert sorted(toy_run.rglob("*")) == files


def test_evaluate_rejects_tolerances_for_solvers_without_error_estimate(toy_run, capsys):
    before = (toy_run / "evaluation.json").read_text()
    assert run("evaluate", toy_run, "--sampling.atol", "1e-2") == 2
    assert "atol must be used with a solver that estimates its error" in capsys.readouterr().err
    assert (toy_run / "evaluation.json").read_text() == before


def test_options_are_checked_before_the_weights_are_read(toy_run, tmp_path, capsys):
    """In a folder without a checkpoint, errors in the options are reported first."""
    for name in ("config.json", "model.json"):
        (tmp_path / name).write_bytes((toy_run / name).read_bytes())
    for command in ("sample", "compare", "evaluate", "likelihood"):
        assert run(command, tmp_path, "--sede", 1) == 2
        assert "--sede" in capsys.readouterr().err
        assert run(command, tmp_path, "--help") == 0
        assert "usage: fmjax" in capsys.readouterr().out
        assert run(command, tmp_path) == 2
        assert "checkpoint" in capsys.readouterr().err


def test_the_error_names_a_folder_without_write_permission(tmp_path, monkeypatch, capsys):
    """The error is simulated, because root can write to every folder."""

    def raise_error(file, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))

    monkeypatch.setattr(Path, "write_text", raise_error)
    folder = tmp_path / "toy"
    assert run("train", CONFIGS / "toy2d.py", *SMALL, "--run", folder) == 2
    assert capsys.readouterr().err == f"fmjax: error: Permission denied: {folder}\n"


def make_invalid_outputs(tmp_path, toy_run):
    """Create files, links and folders that are invalid outputs or run folders."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "o.png").mkdir()
    (tmp_path / "nothing.npz").symlink_to(tmp_path / "absent" / "file")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("text")
    (tmp_path / "toy").symlink_to(toy_run)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe.npz")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("o", "output must be the name of a file, got the folder o.png"),
        ("o.npz", "output must be the name of a file, got the folder o.png"),
        ("nothing", "output must be the name of a file, got the broken link nothing.npz"),
        ("pipe", "output must be the name of a file, got pipe.npz, which is a device or a pipe"),
        ("file/o", "output must be in a folder, got the file file"),
        ("file/deep/o", "output must be in a folder, got the file file"),
        ("loop/o", "output must be in a folder, got the broken link loop"),
        ("toy/checkpoints/4/o", "output must be outside the checkpoints of a run, got toy/check"),
        (".", "output must be the name of a file, got ."),
        ("..", "output must be the name of a file, got .."),
        ("a" * 300, "File name too long"),
    ],
)
def test_an_invalid_output_is_rejected_before_sampling(
    toy_run, tmp_path, monkeypatch, capsys, output, message
):
    make_invalid_outputs(tmp_path, toy_run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "fmjax.jobs.sample.sample.sample_from_run", lambda *_, **__: pytest.fail("sampled")
    )
    before = sorted([*tmp_path.rglob("*"), *toy_run.rglob("*")])
    assert run("sample", toy_run, "--output", output) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted([*tmp_path.rglob("*"), *toy_run.rglob("*")]) == before


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("file", "run folder must be in a folder, got the file file"),
        ("file/run", "run folder must be in a folder, got the file file"),
        ("notes", "run folder notes must be new, empty or contain a run, got other files"),
        ("nothing.npz", "run folder must be in a folder, got the broken link nothing.npz"),
        ("toy/checkpoints/run", "run folder must be outside the checkpoints of a run"),
    ],
)
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)], ids=["", "overwrite"])
def test_an_invalid_run_folder_is_rejected_before_loading_data(
    toy_run, tmp_path, monkeypatch, capsys, folder, message, overwrite
):
    make_invalid_outputs(tmp_path, toy_run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fmjax.jobs.train.train._read", lambda *_, **__: pytest.fail("read"))
    before = sorted([*tmp_path.rglob("*"), *toy_run.rglob("*")])
    assert run("train", CONFIGS / "toy2d.py", *SMALL, "--run", folder, *overwrite) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted([*tmp_path.rglob("*"), *toy_run.rglob("*")]) == before


@pytest.mark.parametrize("spelling", ["toy", "link", "sub/../toy"])
def test_reflow_into_its_teacher_is_rejected_before_generating_pairs(
    toy_run, tmp_path, monkeypatch, capsys, spelling
):
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(toy_run)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").symlink_to(toy_run)
    assert run("reflow", toy_run, "--run", spelling, "--overwrite") == 2
    expected = f"run folder must differ from the teacher's, got {spelling}"
    assert capsys.readouterr().err == f"fmjax: error: {expected}\n"
    assert not (toy_run / "pairs").exists()
    assert run("reflow", toy_run, "--run", "new", "--reflow.pairs", "new/pairs") == 2
    assert "reflow.pairs must be outside new, got new/pairs" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--picture", "x.txt"], "picture must end in .png, got x.txt"),
        (["--picture", "x.jpg"], "picture must end in .png, got x.jpg"),
        (["--picture", "o.png"], "picture must be the name of a file, got the folder o.png"),
        (["--json", "o.png"], "json must be the name of a file, got the folder o.png"),
        (["--json", "file/x.json"], "json must be in a folder, got the file file"),
        (["--json", "CONFIG"], "json must differ from the input file"),
        (["--json", "./x.png", "--picture", "x.png"], "picture must be another file than json"),
    ],
)
def test_plan_rejects_invalid_outputs_before_planning(
    toy_run, tmp_path, monkeypatch, capsys, options, message
):
    make_invalid_outputs(tmp_path, toy_run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fmjax.jobs.planning.plan.plan", lambda *_, **__: pytest.fail("planned"))
    config = tmp_path / "config.py"
    config.write_text((CONFIGS / "toy2d.py").read_text())
    options = [config if word == "CONFIG" else word for word in options]
    assert run("plan", config, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert config.read_text() == (CONFIGS / "toy2d.py").read_text()


def test_full_disk_is_reported_before_training_and_sampling(toy_run, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    folder = tmp_path / "toy"
    assert run("train", CONFIGS / "toy2d.py", *SMALL, "--run", folder) == 2
    error = capsys.readouterr().err
    # A checkpoint has float32 parameters, their average and two moments.
    expected = rf"fmjax: error: disk of {folder} must have [\d.]+ kB of free space for 1 checkpoint"
    assert re.fullmatch(expected + r", got 10 kB\n", error)
    assert not folder.exists()
    assert run("sample", toy_run, "--num-samples", 2000, "--output", tmp_path / "o") == 2
    expected = "must have 16 kB of free space for 2000 samples, got 10 kB\n"
    assert capsys.readouterr().err.endswith(expected)
    assert not list(tmp_path.iterdir())


def modification_times(folder):
    """Return the modification time of every file except locks of killed processes."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if not is_lock(file)}


def test_a_run_in_training_can_be_sampled_but_not_trained_twice(toy_run, tmp_path, capsys):
    command = ["train", CONFIGS / "toy2d.py", *SMALL, "--run", toy_run]
    with holder(toy_run) as process:
        owner = f"process {process.pid} on host {socket.gethostname()}, which is writing to it"
        for options in ([], ["--overwrite"]):
            before = modification_times(toy_run)
            assert run(*command, *options) == 2
            expected = f"run folder {toy_run} must have one writer at a time, got {owner}"
            assert capsys.readouterr().err == f"fmjax: error: {expected}\n"
            assert modification_times(toy_run) == before
        assert run("sample", toy_run, "--num-samples", 6, "--solver", "heun", "--num-steps", 2) == 0
    with holder(tmp_path / "six.npz", lock="lock_file") as process:
        assert run("sample", toy_run, "--num-samples", 6, "--output", tmp_path / "six") == 2
        assert f"got process {process.pid} on host" in capsys.readouterr().err
        assert not (tmp_path / "six.npz").exists()


def test_a_run_is_not_replaced_while_its_results_are_written(toy_run, capsys):
    with holder(toy_run / "evaluation.json", lock="lock_file") as process:
        command = ["train", CONFIGS / "toy2d.py", *SMALL, "--run", toy_run, "--overwrite"]
        assert run(*command) == 2
        expected = f"folder {toy_run} must have one writer at a time, got process {process.pid}"
        assert expected in capsys.readouterr().err
        assert (toy_run / "checkpoints" / "4").is_dir()


def test_a_link_to_an_output_file_is_kept(toy_run, tmp_path):
    (tmp_path / "old.npz").write_bytes(b"")
    (tmp_path / "o.npz").symlink_to("old.npz")
    command = ["sample", toy_run, "--num-samples", 6, "--solver", "heun", "--num-steps", 2]
    assert run(*command, "--output", tmp_path / "o") == 0
    assert (tmp_path / "o.npz").is_symlink()
    with np.load(tmp_path / "old.npz") as arrays:
        assert arrays["x1"].shape == (6, 2)


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_resumes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "fmjax.cli",
        "train",
        str(CONFIGS / "toy2d.py"),
        *SMALL,
        "--training.num-steps",
        "1000000",
        "--training.log-every",
        "1",
        "--run",
        str(tmp_path / "toy"),
    ]
    first = stop_after(command, tmp_path / "toy" / "metrics.jsonl", step=3)
    second = stop_after(command, tmp_path / "toy" / "metrics.jsonl", step=first[0] + 3)
    assert f"resumed from step {first[0]}\n" in second[1]
    lines = (tmp_path / "toy" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(1, second[0] + 1)]


def stop_after(command: list[str], metrics: Path, step: int) -> tuple[int, str]:
    """Send SIGTERM once `step` is logged; return the last step and the output."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        deadline = time.monotonic() + 120
        while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= step):
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < deadline or child.kill(), "no training step in 120 s"
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        out, error = child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM
    saved = [int(folder.name) for folder in (metrics.parent / "checkpoints").iterdir()]
    assert error == (
        f"fmjax: stopped by SIGTERM after step {max(saved)}; its checkpoint is saved; "
        "run the same command again to resume\n"
    )
    assert max(saved) >= step
    return max(saved), out


def test_the_error_names_a_corrupt_checkpoint(toy_run, tmp_path, capsys):
    copy = tmp_path / "toy"
    shutil.copytree(toy_run, copy)
    largest = max((copy / "checkpoints/4/ema_params").rglob("*"), key=lambda f: f.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 255
    largest.write_bytes(content)
    assert run("sample", copy) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "checkpoint of step 4" in error
