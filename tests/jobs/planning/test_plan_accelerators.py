"""Tests of plans with the TPU and GPU compilers (`pip install -e '.[tpu,cuda12]'`)."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SMALL = ["--network.num-layers", "2", "--training.batch-size", "64"]
FSDP = ["--mesh.data", "1", "--mesh.fsdp", "-1"]


def is_installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def run_plan(tmp_path, topology, *options):
    """Run `fmjax plan` in a subprocess and return its plans."""
    file = tmp_path / "plan.json"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "fmjax.cli",
            "plan",
            ROOT / "configs/imagenet256_sit.py",
            "--topology",
            topology,
            "--json",
            file,
            *options,
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert file.is_file(), process.stderr
    return json.loads(file.read_text())["plans"]


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("libtpu"), reason="needs libtpu")
def test_tpu_plan_gathers_weights_and_finds_a_fitting_layout(tmp_path):
    (result,) = run_plan(tmp_path, "v5e:2x4", *SMALL, *FSDP)
    assert (result["device"], result["num_devices"], result["fits"]) == ("TPU v5 lite", 8, True)
    # Weights, EMA and two moments are split over 8 devices; small arrays and the batch add to them.
    assert 1 < result["arguments"] / (16 * result["num_parameters"] / 8) < 1.2
    gathered = result["traffic"]["all-gather"]["bytes"] / (2 * result["num_parameters"])
    assert 1.5 < gathered < 2.5  # In bfloat16, in the forward and backward pass.
    # A batch too large for one chip: the search reports the peak and finds a smaller layout.
    *too_large, last = run_plan(tmp_path, "v5e:2x4", "--training.batch-size", "1024")
    assert too_large
    assert too_large[0]["peak"] > too_large[0]["memory"]
    assert last["fits"]
    assert last["batch_size"] == 1024
    (v4,) = run_plan(tmp_path, "v4:2x2x1", *SMALL)
    assert v4["num_devices"] == 4  # The number of chips, not of cores.
    options = ("--mesh.data", "2", "--mesh.fsdp", "-1", "--num-slices", "2")
    (two_slices,) = run_plan(tmp_path, "v5e:2x2", *SMALL, *options)
    # Each chip sends its quarter of the gradients to the other slice, mostly in bfloat16.
    quarter = 2 * two_slices["num_parameters"] / 4
    assert 1.0 < two_slices["traffic"]["between slices"]["across"] / quarter < 1.3
    assert two_slices["roofline"]["network"] > two_slices["roofline"]["links"]


@pytest.mark.slow
@pytest.mark.skipif(
    not (is_installed("jax_cuda12_plugin") and is_installed("nvidia.cudnn")),
    reason="needs jax[cuda12]",
)
@pytest.mark.parametrize("card", ["h100", "a100"])
def test_gpu_plan_reduce_scatters_the_gradients(card, tmp_path):
    (result,) = run_plan(tmp_path, f"{card}:8", *SMALL, *FSDP)
    assert result["fits"]
    assert {"all-gather", "reduce-scatter"} <= set(result["traffic"])
    assert 1 < result["arguments"] / (16 * result["num_parameters"] / 8) < 1.2
