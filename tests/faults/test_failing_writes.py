"""Tests of commands on a full or broken disk, and of the same command after that."""

import errno
import os

import numpy as np
import pytest

from tests.faults.commands import (
    COMMANDS,
    assert_same_results,
    command_arguments,
    copy_run_parts,
    temporary_files,
)


@pytest.mark.slow
@pytest.mark.parametrize("code", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("command", ["train", "overwrite", "sample", "evaluate", "reflow"])
def test_failed_writes_are_one_line_and_the_next_run_succeeds(
    faults, trained, tmp_path, command, code
):
    start, config = trained
    parts, arguments = COMMANDS[command][0], command_arguments(command, config)
    root = copy_run_parts(start, parts, tmp_path / "root")
    writes = len(faults.run(*arguments, root=root).writes)
    rng = np.random.default_rng(len(command) + len(code))
    for at in sorted(rng.choice(np.arange(1, writes + 1), min(writes, 5), replace=False)):
        state = copy_run_parts(start, parts, tmp_path / f"{at}")
        failed = faults.run(*arguments, root=state, fault=code, at=int(at))
        assert failed.code in (0, 1, 2), (at, failed)
        assert failed.err.count("\n") == (failed.code != 0), (at, failed)
        assert failed.code == 0 or os.strerror(getattr(errno, code)) in failed.err, (at, failed)
        # Files remain if the failed write is their removal.
        failed_removal = failed.writes[at - 1].startswith(("os.remove", "os.rmdir"))
        leftovers = [file for file in temporary_files(state) if "orbax" not in file.name]
        assert failed_removal or not leftovers, (at, failed, leftovers)
        repeated = faults.run(*arguments, root=state)
        assert (repeated.code, repeated.err) == (0, ""), (at, repeated)
        for file in leftovers:  # Locks whose removal failed.
            file.unlink(missing_ok=True)
        assert_same_results(state, root)
