"""Tests of errors, help and progress on terminals of several widths, with and without colors."""

import re
import sys
import warnings
from pathlib import Path
from unittest.mock import Mock

import pytest

from fmjax import cli
from fmjax.cli.suggestions import nearest
from tests.quick import COMPILATION
from tests.terminal import COLOR, commands_in_terminal, in_terminal

ROOT = Path(__file__).parents[2]
TOY = ["train", str(ROOT / "configs" / "toy2d.py")]
WIDTHS = (20, 80, 200)
ERRORS = [
    (
        ["trane"],
        "command must be one of train, export, reflow, generate, encode, sample, compare, "
        "evaluate, likelihood, invert, study, plan, data, got 'trane' (did you mean 'train'?)",
    ),
    (["train"], "fmjax train needs a CONFIG first: fmjax train CONFIG [options]"),
    (
        ["train", str(ROOT / "configs" / "digit.py")],
        f"config must exist, got {ROOT}/configs/digit.py (did you mean {ROOT}/configs/digits.py?)",
    ),
    (
        [*TOY, "--optimizer.lr", "3e-4"],
        "unrecognized option --optimizer.lr (did you mean --optimizer.learning-rate?)",
    ),
    (
        [*TOY, "--optimizer.lr=3e-4", "--zzz", "-1", "-inf", "--bs", "8"],
        "unrecognized options "
        "--optimizer.lr (did you mean --optimizer.learning-rate?), --zzz, --bs (did you mean "
        "--training.batch-size or --sampling.batch-size?)",
    ),
    ([*TOY, "--training.num-steps", "many"], "--training.num-steps must be an integer, got 'many'"),
    ([*TOY, "--compare.num-steps", "1", "x"], "--compare.num-steps must be integers, got '1', 'x'"),
    ([*TOY, "--training.num-steps"], "--training.num-steps must have 1 value, got too few"),
    ([*TOY, "--training.num-steps", "4", "5"], "unrecognized argument '5': options begin with --"),
    (
        [*TOY, "--sampling.control", "no"],
        "--sampling.control must be one of LARGEST_SAMPLE, PER_SAMPLE, WHOLE_BATCH_RMS, None, "
        "got 'no'",
    ),
    ([*TOY, "--sampling.num-samples", "0"], "sampling.num_samples must be at least 1, got 0"),
    ([*TOY, "--optimizer.b1", "2"], "optimizer.b1 must lie in [0, 1), got 2.0"),
    (
        [*TOY, "--name", "a\x1b[31m\nb"],
        r"name must be letters, digits, '-', '_' and '.', got "
        r"'a\x1b[31m\nb'",
    ),
    (["sample", "a\x1b[31m\nb" * 400], "File name too long: "),
    (["sample", "nowhere\x1b[31m"], r"run folder must exist, got nowhere\x1b[31m"),
    ([*TOY, "--tyro-print-completion", "x"], "unrecognized option --tyro-print-completion"),
]
# This training fails while a progress bar is shown.
FAILING = [
    *TOY,
    "--network.width",
    "16",
    "--network.num-layers",
    "1",
    "--training.num-steps",
    "400",
    "--training.batch-size",
    "16",
    "--data.num-examples",
    "256",
    "--optimizer.warmup-steps",
    "0",
    "--optimizer.learning-rate",
    "1e38",
    "--optimizer.clip-norm",
    "1e38",
]


@pytest.fixture(scope="module")
def screens(tmp_path_factory):
    """Output on terminals of all widths: errors, a failing training, and help."""
    folder = tmp_path_factory.mktemp("terminal")
    failing = [*FAILING, "--run", str(folder / "run")]
    per_width = [*(arguments for arguments, _ in ERRORS), [*TOY, "--zzz", "--help"]]
    commands = [(width, arguments) for width in WIDTHS for arguments in per_width]
    commands.append((20, failing))
    outputs = commands_in_terminal(commands, XLA_FLAGS=COMPILATION, PYTHONPATH=str(ROOT))
    assert len(outputs) == len(commands)
    n = len(per_width)
    by_width = {width: outputs[i * n :][:n] for i, width in enumerate(WIDTHS)}
    return by_width | {"failing": outputs[-1]}


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_an_error_on_a_color_terminal_is_one_plain_line(width, screens):
    for (code, screen), (arguments, message) in zip(screens[width], ERRORS, strict=False):
        assert code == 2, arguments
        assert screen.startswith(f"fmjax: error: {message}"), arguments
        assert screen.count("\n") == 1
        assert len(screen) < 2200
        assert screen.rstrip("\n").isprintable(), arguments
        if len(arguments[-1]) < 1000:
            assert screen == f"fmjax: error: {message}\n"


@pytest.mark.slow
def test_an_error_is_the_same_without_a_terminal(screens, capsys, monkeypatch):
    for name, value in COLOR.items():
        monkeypatch.setenv(name, value)
    for (_, screen), (arguments, _) in zip(screens[80], ERRORS, strict=False):
        with pytest.raises(SystemExit, match="2"):
            cli.main(arguments)
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err == screen


def test_an_error_starts_a_new_line_below_a_progress_bar(screens):
    code, screen = screens["failing"]
    assert code == 1
    bar, _, error = screen.rpartition("\n\x1b[?25h")  # The cursor is shown again.
    assert re.fullmatch(
        r"fmjax: error: loss, gradient and update must be finite, got loss [\d.]+ "
        r"and gradient norm [\d.]+ with a non-finite update in step 1; "
        r"there is no checkpoint\n",
        error,
    )
    assert re.search(r"training .*0/400", bar)


@pytest.mark.parametrize("width", WIDTHS)
def test_help_fits_the_terminal(width, screens):
    code, screen = screens[width][-1]
    text = re.sub(r"\x1b\[[\d;]*m", "", screen)
    assert code == 0
    # Narrow columns wrap names to the next line.
    table_cells = [line.strip("│ ") for line in text.splitlines() if "│" in line]
    assert "--training.num-stepsINT" in "".join(table_cells).replace(" ", "")
    assert max(len(line) for line in text.splitlines() if "│" in line) <= width


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("--optimizer.lr", ["--optimizer.learning-rate"]),
        ("--lr", ["--optimizer.learning-rate"]),
        ("--Learning_Rate", ["--optimizer.learning-rate"]),
        ("--optimizer.learnin-rate", ["--optimizer.learning-rate"]),
        ("--optimzer.learning-rate", ["--optimizer.learning-rate"]),
        ("--optimizer-learning-rate", ["--optimizer.learning-rate"]),
        ("--training.learning-rate", ["--optimizer.learning-rate"]),
        ("--optimizer.warmup", ["--optimizer.warmup-steps"]),
        ("--steps", ["--training.num-steps", "--sampling.num-steps"]),
        ("--sampling.steps", ["--sampling.num-steps"]),
        ("--cfg-scale", ["--sampling.guidance"]),
        ("--overwrit", ["--overwrite"]),
        (
            "--optimizer",
            [f"--optimizer.{name}" for name in ("learning-rate", "b1", "warmup-steps")],
        ),
        ("--optimizer.zzz", []),
        ("--epochs", []),
        ("--l", []),
        ("--", []),
    ],
)
def test_similar_options_are_suggested(name, expected):
    options = [
        "--run",
        "--overwrite",
        "--training.num-steps",
        "--training.batch-size",
        "--optimizer.learning-rate",
        "--optimizer.b1",
        "--optimizer.warmup-steps",
        "--sampling.num-steps",
        "--sampling.guidance",
        "--sampling.solver",
    ]
    assert nearest(name, options) == expected


def test_log_files_get_plain_lines_even_if_colors_are_forced(tmp_path, monkeypatch, capsys):
    from fmjax.cli.console import console

    for name, value in COLOR.items():
        monkeypatch.setenv(name, value)
    with console() as progress, progress.task("training", 3) as advance:
        progress.say("text")
        advance(3)
    assert capsys.readouterr().out == "training 0/3\ntext\n"


def test_commands_print_the_time_of_each_part_at_the_end(capsys, monkeypatch):
    from fmjax.cli import console as module

    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def finish_parts(progress):
        parts = [("first step", 12.2), ("training", 60.0), ("samples", 0.34), ("training", 5.0)]
        for name, seconds in [*parts, ("page", 3600.0)]:
            now[0] += seconds
            progress.part_done(name)

    expected = (
        "time: 1 h 1 min (first step 12 s, training 1 min 5 s, samples 0.3 s, page 1 h 0 min)"
    )
    with module.console(since=100.0) as progress:
        finish_parts(progress)
    assert capsys.readouterr().out == expected + "\n"
    bars = Mock()
    progress_bars = module._Bars(bars, since=now[0])
    finish_parts(progress_bars)
    assert progress_bars.times() == expected
    for since in (None, now[0]):  # No start time; no finished part.
        with module.console(since) as progress:
            if since is None:
                finish_parts(progress)
        assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_in_terminal_returns_exit_code_and_output():
    command = [sys.executable, "-m", "fmjax.cli", *TOY, "--optimizer.lr", "3e-4"]
    result = in_terminal(command, columns=20, PYTHONPATH=str(ROOT), **COLOR)
    assert result == (2, f"fmjax: error: {ERRORS[3][1]}\n")


def test_warnings_are_one_plain_line_of_the_output(capsys):
    from fmjax.cli.streams import plain_warnings

    with plain_warnings():
        warnings.showwarning("a line\n\x1b[31mtext", UserWarning, "file.py", 3)
        # JAX warns about incomplete cache entries of killed processes and recompiles.
        warnings.warn("Error reading persistent compilation cache entry for 'jit_f'", stacklevel=1)
    output = capsys.readouterr()
    assert output.out == "warning: a line \\x1b[31mtext\n"
    assert output.err == ""
