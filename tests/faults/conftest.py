"""A process that runs commands under faults, and a finished run."""

import pytest

from tests.faults.commands import tiny
from tests.faults.process import Faults


@pytest.fixture(scope="module")
def faults():
    with Faults() as process:
        yield process


@pytest.fixture(scope="module")
def trained(faults, tmp_path_factory):
    """Root with a whole run that is not disturbed."""
    root = tmp_path_factory.mktemp("trained")
    config = tiny(tmp_path_factory.mktemp("configs"))
    outcome = faults.run("train", config, "--run", "run", root=root)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    return root, config
