"""Plans by the real compilers, where they are installed: `pip install -e '.[tpu,cuda12]'`."""

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


def there(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def plans_of(tmp_path, topology, *options):
    """What `fmjax plan` finds in a process of its own."""
    file = tmp_path / "plan.json"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(
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
    assert file.is_file(), done.stderr
    return json.loads(file.read_text())["plans"]


@pytest.mark.slow
@pytest.mark.skipif(not there("libtpu"), reason="needs libtpu")
def test_a_plan_for_tpus_gathers_the_weights_and_finds_what_fits(tmp_path):
    (found,) = plans_of(tmp_path, "v5e:2x4", *SMALL, *FSDP)
    assert (found["device"], found["num_devices"], found["fits"]) == ("TPU v5 lite", 8, True)
    # Weights, average and two moments, in eighths; small arrays and the batch beside them.
    assert 1 < found["arguments"] / (16 * found["num_parameters"] / 8) < 1.2
    gathered = found["traffic"]["all-gather"]["bytes"] / (2 * found["num_parameters"])
    assert 1.5 < gathered < 2.5  # In bfloat16, for the forward and the backward pass.
    # Too much for a chip: the compiler says how much, and a smaller plan is found.
    *too_big, last = plans_of(tmp_path, "v5e:2x4", "--training.batch-size", "1024")
    assert too_big
    assert too_big[0]["peak"] > too_big[0]["memory"]
    assert last["fits"]
    assert last["batch_size"] == 1024
    (v4,) = plans_of(tmp_path, "v4:2x2x1", *SMALL)
    assert v4["num_devices"] == 4  # Chips, not their cores.
    several = ("--mesh.data", "2", "--mesh.fsdp", "-1", "--num-slices", "2")
    (slices,) = plans_of(tmp_path, "v5e:2x2", *SMALL, *several)
    # Each chip sends its quarter of the gradients to the other slice, mostly in bfloat16.
    quarter = 2 * slices["num_parameters"] / 4
    assert 1.0 < slices["traffic"]["between slices"]["across"] / quarter < 1.3
    assert slices["roofline"]["network"] > slices["roofline"]["links"]


@pytest.mark.slow
@pytest.mark.skipif(
    not (there("jax_cuda12_plugin") and there("nvidia.cudnn")), reason="needs jax[cuda12]"
)
@pytest.mark.parametrize("card", ["h100", "a100"])
def test_a_plan_for_gpus_scatters_the_gradients(card, tmp_path):
    (found,) = plans_of(tmp_path, f"{card}:8", *SMALL, *FSDP)
    assert found["fits"]
    assert {"all-gather", "reduce-scatter"} <= set(found["traffic"])
    assert 1 < found["arguments"] / (16 * found["num_parameters"] / 8) < 1.2
