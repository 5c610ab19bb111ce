"""A kill at the writes of a command; then the same command again."""

import os

import jax
import numpy as np
import pytest

from fmjax.runs.folder import open_run
from tests.faults.commands import (
    COMMANDS,
    arguments_of,
    assert_same_results,
    number_every,
    start_of,
)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_after_a_kill_at_any_write_the_same_command_ends_as_if_never_killed(
    faults, trained, tmp_path, command
):
    start, config = trained
    parts, _, most = COMMANDS[command]
    most = int(os.environ.get("FMJAX_TEST_KILLS", most))
    root, arguments = start_of(start, parts, tmp_path / "root"), arguments_of(command, config)
    copies = tmp_path / "copies"
    copies.mkdir()
    outcome = faults.run(*arguments, root=root, copies=copies)
    assert outcome.code == 0, outcome
    for state in number_every(sorted(copies.iterdir()), most):
        again = faults.run(*arguments, root=state)
        assert (again.code, again.err) == (0, ""), (state, again)
        assert_same_results(state, root)
        for run in ("run", "next"):
            if (root / run).is_dir():
                found, wanted = (open_run(each / run).params for each in (state, root))
                jax.tree.map(np.testing.assert_array_equal, found, wanted)
