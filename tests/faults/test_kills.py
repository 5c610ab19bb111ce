"""Tests of commands that are killed at a write and started again."""

import os

import jax
import numpy as np
import pytest

from fmjax.runs.folder import open_run
from tests.faults.commands import (
    COMMANDS,
    assert_same_results,
    command_arguments,
    copy_run_parts,
    evenly_spaced,
)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_restarted_after_a_kill_match_an_uninterrupted_run(
    faults, trained, tmp_path, command
):
    start, config = trained
    parts, _, max_states = COMMANDS[command]
    max_states = int(os.environ.get("FMJAX_TEST_KILLS", max_states))
    root = copy_run_parts(start, parts, tmp_path / "root")
    arguments = command_arguments(command, config)
    copies = tmp_path / "copies"
    copies.mkdir()
    outcome = faults.run(*arguments, root=root, copies=copies)
    assert outcome.code == 0, outcome
    for state in evenly_spaced(sorted(copies.iterdir()), max_states):
        restarted = faults.run(*arguments, root=state)
        assert (restarted.code, restarted.err) == (0, ""), (state, restarted)
        assert_same_results(state, root)
        for run in ("run", "next"):
            if (root / run).is_dir():
                actual, expected = (open_run(folder / run).params for folder in (state, root))
                jax.tree.map(np.testing.assert_array_equal, actual, expected)
