"""Commands that the fault tests interrupt, and the comparison of their results."""

import json
import shutil

import jax
import numpy as np

from fmjax._files import read_npz
from tests.tiny_run import CONFIG
from tests.training.checkpoints.test_full_disk import losses

# Fields of results that depend on the run time.
TIMING_FIELDS = {"seconds", "images_per_second", "teraflops_per_device", "share_of_peak"}


def tiny_config(folder, **settings):
    """Write the config file of a run with four training steps."""
    file = folder / "tiny.py"
    values = {"num_steps": 4, "log_every": 1, "checkpoint_every": 2} | settings
    file.write_text(CONFIG.format(**values))
    return file


def temporary_files(root):
    return [file for file in root.rglob("*") if file.name.startswith(".") or "tmp" in file.name]


def evenly_spaced(items, max_items):
    """Return at most `max_items` items at evenly spaced positions."""
    positions = np.linspace(0, len(items) - 1, min(max_items, len(items)))
    return [items[position] for position in np.unique(positions.round().astype(int))]


def assert_same_results(root, expected_root):
    """Assert that two folders hold the same files with equal contents, apart from times."""
    assert not temporary_files(root)
    assert file_names(root) == file_names(expected_root)
    for expected in sorted(expected_root.rglob("*")):
        actual = root / expected.relative_to(expected_root)
        if expected.suffix == ".npz":
            jax.tree.map(np.testing.assert_array_equal, read_npz(actual), read_npz(expected))
        elif expected.name == "metrics.jsonl":
            assert losses(actual.parent) == losses(expected.parent)
        elif expected.suffix == ".json" and "checkpoints" not in expected.parts:
            actual_json, expected_json = (json.loads(f.read_text()) for f in (actual, expected))
            assert without_timing(actual_json) == without_timing(expected_json)
        elif expected.suffix == ".png" and expected.parent.name != "figures":
            assert actual.read_bytes() == expected.read_bytes()


def file_names(root):
    """Relative names of all files, except those with random or time-dependent names."""
    return {
        str(file.relative_to(root))
        for file in root.rglob("*")
        if file.is_file()
        and not {"events", "d"} & set(file.relative_to(root).parts)
        and "ocdbt" not in str(file)
    }


def without_timing(value):
    if isinstance(value, dict):
        return {k: without_timing(v) for k, v in value.items() if k not in TIMING_FIELDS}
    return [without_timing(v) for v in value] if isinstance(value, list) else value


# For each command: the parts of the run it starts with, its arguments, and the maximum number of
# states after a kill that are tested.
COMMANDS = {
    "train": ((), ("train-only", "CONFIG", "--run", "run"), 30),
    "overwrite": (
        ("",),
        ("train-only", "CONFIG", "--run", "run", "--training.seed", "1", "--overwrite"),
        12,
    ),
    "results": (("checkpoints",), ("train", "CONFIG", "--run", "run"), 6),
    "sample": (("checkpoints",), ("sample", "run", "--num-samples", "8"), 10),
    "evaluate": (("checkpoints",), ("evaluate-only", "run"), 6),
    "compare": (("checkpoints",), ("compare-only", "run"), 4),
    "likelihood": (("checkpoints",), ("likelihood-only", "run", "--num-examples", "8"), 5),
    "reflow": (
        ("checkpoints",),
        (
            "reflow-only",
            "run",
            "--run",
            "next",
            "--reflow.num-pairs",
            "2048",
            "--reflow.sampling.solver",
            "euler",
            "--reflow.sampling.num-steps",
            "2",
        ),
        12,
    ),
}


def copy_run_parts(trained, parts, to):
    """Copy parts of the trained run to a new folder; the part "" is the complete run."""
    to.mkdir()
    for part in parts:
        if part == "":
            shutil.copytree(trained / "run", to / "run")
            continue
        shutil.copytree(trained / "run" / part, to / "run" / part)
        for name in ("config.json", "model.json", "metrics.jsonl"):
            shutil.copy(trained / "run" / name, to / "run")
    return to


def command_arguments(command, config):
    return [str(config) if argument == "CONFIG" else argument for argument in COMMANDS[command][1]]
