"""Tests of the GPU benchmark: its subprocesses, and a complete run at small sizes on a CPU."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


def import_file(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gpu():
    return import_file(SCRIPT)


@pytest.fixture(scope="module")
def parts():
    """The module of the measurements, imported with its folder in `sys.path`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        yield import_file(SCRIPT.with_name("_gpu_parts.py"))


def run_program(gpu, program, limit=30.0):
    lines = []
    return gpu.run([sys.executable, "-c", program], limit, lines.append), lines


def test_results_are_separated_from_other_output(gpu, capsys):
    exited, lines = run_program(
        gpu, """print('{"line": "result", "x": 1}'); print('text'); print('[1]')"""
    )
    assert lines == [{"line": "result", "x": 1}]
    assert exited.reason is None
    assert capsys.readouterr().err == "text\n[1]\n"


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("raise SystemExit('no GPU')", "exit code 1"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL"),
    ],
)
def test_a_failed_process_keeps_its_results_and_reports_a_reason(gpu, ending, reason):
    exited, lines = run_program(gpu, f"""print('{{"line": "result"}}', flush=True); {ending}""")
    assert lines == [{"line": "result"}]
    assert exited.reason == reason
    if reason == "exit code 1":
        assert exited.last_words == ("no GPU",)


@pytest.mark.slow
def test_a_hanging_process_is_killed_with_its_children(gpu):
    program = (
        'import subprocess, sys, time; print(\'{"line": "result"}\', flush=True);'
        "subprocess.Popen(['sleep', '60']); time.sleep(60)"
    )
    start = time.monotonic()
    exited, lines = run_program(gpu, program, limit=3.0)
    assert lines == [{"line": "result"}]
    assert exited.reason == "time limit of 3 s"
    # The child process keeps the pipes open until it is killed.
    assert time.monotonic() - start < 30


def test_the_best_batch_size_has_the_most_images_per_second(gpu):
    line = {
        "line": "result",
        "part": "dit",
        "case": "none",
        "teraflops": 1.0,
        "share_of_peak": None,
    }
    lines = [
        line | {"batch_size": n, "images_per_second": rate}
        for n, rate in ((32, 5.0), (64, 7.0), (128, 6.0))
    ]
    lines += [{"line": "failure", "part": "dit", "case": "none"}, line | {"part": "flux"}]
    assert list(gpu.best_results(lines)) == ["dit none"]
    assert gpu.best_results(lines)["dit none"]["batch_size"] == 64


def test_the_script_accepts_the_documented_options(gpu):
    page = (ROOT / "docs" / "performance.md").read_text()
    commands = re.findall(r"python benchmarks/gpu\.py(.*)", page + gpu.__doc__)
    assert len(commands) >= 5
    for options in commands:
        gpu.make_parser().parse_args(shlex.split(options, comments=True))


def test_a_limit_needs_a_known_part(gpu, capsys):
    with pytest.raises(SystemExit):
        gpu.make_parser().parse_args(["--limit", "dat=3"])
    assert (
        "must be PART=SECONDS, PART one of about, dit, flux, lora, adaptive"
        in capsys.readouterr().err
    )


def run_benchmark(tmp_path, *options):
    """Run the benchmark at small sizes; return its lines and exit code."""
    file = tmp_path / "gpu.jsonl"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    del environment["XLA_FLAGS"]
    result = subprocess.run(
        [sys.executable, SCRIPT, "--tiny", "--output", file, *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert file.read_text() == result.stdout, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()], result.returncode


def numbers(result):
    """Yield all numbers of a result, including those of its memory."""
    for value in result.values():
        if isinstance(value, dict):
            yield from numbers(value)
        elif isinstance(value, list):
            yield from (item for item in value if isinstance(item, float))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield value


@pytest.mark.slow
def test_every_part_writes_well_formed_results(tmp_path, gpu):
    lines, code = run_benchmark(tmp_path)
    assert code == 0
    about, *results, summary = lines
    assert (about["line"], about["platform"], about["tiny"]) == ("about", "cpu", True)
    assert {"jax", "jaxlib", "fmjax"} <= set(about["versions"])
    assert summary["line"] == "summary"
    assert summary["failures"] == 0
    assert set(summary["best"]) == {"dit none", "dit full", "lora full", "lora save_matmuls"}
    # Each case has one or two batch sizes.
    cases = [(result["part"], result["case"]) for result in results]
    assert list(dict.fromkeys(cases)) == list(gpu.CASES)
    assert cases.count(("adaptive", "")) == 4
    for result in results:
        assert result["line"] == "result"
        assert result["finite"] is True
        assert result["kernels"] == []  # There are no attention kernels for a CPU.
        assert min(numbers(result)) > 0, result
        assert result["compile_seconds"] < result["elapsed"]
        assert result["seconds_quartiles"][0] <= result["seconds"] <= result["seconds_quartiles"][1]
        rate = result["batch_size"] / result["seconds"]
        assert result["images_per_second"] == pytest.approx(rate, rel=1e-2)
        memory = result["memory"]
        assert memory["peak"] >= 0.9 * (memory["arguments"] + memory["temporaries"])
        if result["part"] != "adaptive":
            teraflops = result["flops_per_image"] * result["images_per_second"] / 1e12
            assert result["teraflops"] == pytest.approx(teraflops, rel=1e-2)
    (flux,) = (result for result in results if result["part"] == "flux")
    assert (flux["nfe"], flux["batch_size"]) == (28, 1)
    adaptive = [result for result in results if result["part"] == "adaptive"]
    settings = [(result["rtol"], result["guidance"]) for result in adaptive]
    assert settings == [(1e-3, 1.0), (1e-3, 1.5), (1e-4, 1.0), (1e-4, 1.5)]
    assert all(result["nfe"] >= 8 for result in adaptive)


@pytest.mark.slow
def test_failed_parts_are_reported_and_the_others_run(tmp_path):
    lines, code = run_benchmark(
        tmp_path, "--parts", "dit", "flux", "lora", "--skip", "lora", "--limit", "dit=0.5"
    )
    assert code == 1
    summaries = [(line["line"], line.get("part"), line.get("case")) for line in lines]
    assert summaries == [
        ("about", None, None),
        ("failure", "dit", "none"),
        ("result", "flux", ""),
        ("failure", "dit", "full"),
        ("summary", None, None),
    ]
    assert lines[1]["reason"] == "time limit of 0.5 s"
    assert (lines[-1]["failures"], lines[-1]["best"]) == (2, {})


@pytest.mark.slow
def test_cases_without_remaining_time_are_skipped(tmp_path):
    lines, _ = run_benchmark(tmp_path, "--parts", "flux", "--seconds", "1")
    assert [line["line"] for line in lines] == ["left_out", "left_out", "summary"]
    assert lines[1]["reason"] == "no time left (limit 1 s)"


@pytest.mark.slow
def test_full_size_models_match_published_sizes_and_lower(parts):
    mesh = parts.make_mesh(devices=jax.devices()[:1])
    trainings = {
        "dit": (parts.dit_config(False, "none", 64), [674_816_272], 0.7117e12),
        "remat": (parts.dit_config(False, "full", 512), [674_816_272], 0.7117e12),
        "lora": (parts.lora_config(False, "full", 1), [26_148_864, 11_901_408_320], 149.3e12),
        "saved": (
            parts.lora_config(False, "save_matmuls", 2),
            [26_148_864, 11_901_408_320],
            149.3e12,
        ),
    }
    for config, sizes, flops in trainings.values():
        work = parts.training_work(config, mesh)
        work.fn.lower(*work.args)
        state, _, *frozen = work.args
        assert [parts.num_parameters(params) for params in (state.params, *frozen)] == sizes
        assert work.count().flops / work.examples == pytest.approx(flops, rel=1e-3)
        start = partial(parts.start_training, config, state, *frozen)
        started = jax.eval_shape(lambda start=start: (start().state, start().frozen))
        assert shapes_and_dtypes(started) == shapes_and_dtypes((state, tuple(frozen)))
    flux = parts.sampling_work(parts.flux_config(False), mesh, jnp.bfloat16)
    adaptive = parts.sampling_work(parts.adaptive_config(False, 1e-4, 1.5), mesh)
    for work, size in ((flux, 11_901_408_320), (adaptive, 130_303_504)):
        work.fn.lower(*work.args)
        assert parts.num_parameters(work.params) == size
        weights = jax.eval_shape(parts.weights_maker(work.params), jax.random.key(0))
        assert shapes_and_dtypes(weights) == shapes_and_dtypes(work.params)
    assert flux.count().flops == pytest.approx(2083e12, rel=1e-3)
    assert (flux.count().unit, adaptive.examples) == ("batch", 64)


def shapes_and_dtypes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)
