"""Fixtures: a process that runs commands with faults, and a finished run."""

import pytest

from tests.faults.commands import tiny_config
from tests.faults.process import Faults


@pytest.fixture(scope="module")
def faults():
    with Faults() as process:
        yield process


@pytest.fixture(scope="module")
def trained(faults, tmp_path_factory):
    """Root folder of a run that finished without faults, and its config file."""
    root = tmp_path_factory.mktemp("trained")
    config = tiny_config(tmp_path_factory.mktemp("configs"))
    outcome = faults.run("train", config, "--run", "run", root=root)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    return root, config
