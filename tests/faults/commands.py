"""Commands to interrupt at their writes, and the comparison of their results."""

import json
import shutil

import jax
import numpy as np

from fmjax._files import read_npz
from tests.tiny_run import CONFIG
from tests.training.checkpoints.test_full_disk import losses

RANDOM = {"seconds", "images_per_second", "teraflops_per_device", "share_of_peak"}


def tiny(folder, **settings):
    """A config of two data points' worth of work, from its file."""
    path = folder / "tiny.py"
    numbers = {"num_steps": 4, "log_every": 1, "checkpoint_every": 2} | settings
    path.write_text(CONFIG.format(**numbers))
    return path


def hidden(root):
    return [path for path in root.rglob("*") if path.name.startswith(".") or "tmp" in path.name]


def number_every(found, most):
    """At most so many of them, evenly chosen."""
    places = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int))
    return [found[place] for place in places]


def assert_same_results(root, wanted):
    """Assert that two folders hold the same files with equal contents, apart from times."""
    assert not hidden(root)
    assert names(root) == names(wanted)
    for path in sorted(wanted.rglob("*")):
        here = root / path.relative_to(wanted)
        if path.suffix == ".npz":
            jax.tree.map(np.testing.assert_array_equal, read_npz(here), read_npz(path))
        elif path.name == "metrics.jsonl":
            assert losses(here.parent) == losses(path.parent)
        elif path.suffix == ".json" and "checkpoints" not in path.parts:
            assert plain(json.loads(here.read_text())) == plain(json.loads(path.read_text()))
        elif path.suffix == ".png" and path.parent.name != "figures":
            assert here.read_bytes() == path.read_bytes()


def names(root):
    """Relative names of all files, apart from those with random or time-dependent names."""
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file()
        and not {"events", "d"} & set(path.relative_to(root).parts)
        and "ocdbt" not in str(path)
    }


def plain(value):
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items() if key not in RANDOM}
    return [plain(each) for each in value] if isinstance(value, list) else value


# Which parts of the run they start with, what they do, how many states after a kill are tried.
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


def start_of(trained, parts, to):
    """A folder with some parts of the trained run: all for "", none for no part."""
    to.mkdir()
    for part in parts:
        if part == "":
            shutil.copytree(trained / "run", to / "run")
            continue
        shutil.copytree(trained / "run" / part, to / "run" / part)
        for name in ("config.json", "model.json", "metrics.jsonl"):
            shutil.copy(trained / "run" / name, to / "run")
    return to


def arguments_of(command, config):
    return [str(config) if word == "CONFIG" else word for word in COMMANDS[command][1]]
