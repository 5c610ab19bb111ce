"""A full or broken disk at the writes of a command; then the same command again."""

import errno
import os

import numpy as np
import pytest

from tests.faults.commands import COMMANDS, arguments_of, assert_same_results, hidden, start_of


@pytest.mark.slow
@pytest.mark.parametrize("code", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("command", ["train", "overwrite", "sample", "evaluate", "reflow"])
def test_a_write_that_fails_is_one_line_and_the_same_command_goes_on(
    faults, trained, tmp_path, command, code
):
    start, config = trained
    parts, arguments = COMMANDS[command][0], arguments_of(command, config)
    root = start_of(start, parts, tmp_path / "root")
    writes = len(faults.run(*arguments, root=root).writes)
    rng = np.random.default_rng(len(command) + len(code))
    for at in sorted(rng.choice(np.arange(1, writes + 1), min(writes, 5), replace=False)):
        state = start_of(start, parts, tmp_path / f"{at}")
        failed = faults.run(*arguments, root=state, fault=code, at=int(at))
        assert failed.code in (0, 1, 2), (at, failed)
        assert failed.err.count("\n") == (failed.code != 0), (at, failed)
        assert failed.code == 0 or os.strerror(getattr(errno, code)) in failed.err, (at, failed)
        # What cannot be removed is left.
        stays = failed.writes[at - 1].startswith(("os.remove", "os.rmdir"))
        left = [path for path in hidden(state) if "orbax" not in path.name]
        assert stays or not left, (at, failed, left)
        again = faults.run(*arguments, root=state)
        assert (again.code, again.err) == (0, ""), (at, again)
        for path in left:  # Locks that the error kept from being removed.
            path.unlink(missing_ok=True)
        assert_same_results(state, root)
