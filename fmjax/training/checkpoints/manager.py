"""Saving and restoring of checkpoints with Orbax.

The checkpoint of step n is the folder `FOLDER/n`. The averaged weights are stored separately from
the remaining state, so that sampling reads only the weights. A JSON text holds the shapes and
dtypes of all arrays and data of the caller, such as the state of the data iterator.

Checkpoints are written in the background. A folder gets its final name only when it is complete.
It contains digests of its files, which are verified before Orbax reads them.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from fmjax._arrays import Params
from fmjax._checks import require_at_least
from fmjax.sharding.processes import all_or_none, is_main
from fmjax.training.checkpoints.digests import write_digests
from fmjax.training.checkpoints.errors import CheckpointWriteError, barrier, disk_error
from fmjax.training.checkpoints.named_arrays import flat_arrays, key_impl
from fmjax.training.checkpoints.reader import (
    Reader,
    check_step_metadata,
    describe_arrays,
    warn_about_damage,
)
from fmjax.training.state import TrainState

_ARRAYS = ("ema_params", "state")
DAMAGED = "damaged"


class Restored(NamedTuple):
    """Result of `Checkpoints.restore`.

    Attributes:
        state: The saved state, bit for bit, on the requested shardings.
        extra: The JSON data saved with the state.
        passed_over: One line for each later checkpoint that was damaged and moved away.
    """

    state: TrainState
    extra: dict[str, Any]
    passed_over: tuple[str, ...] = ()


class Checkpoints:
    """Saves and restores the checkpoints of one run.

    Use it as a context manager, which waits for pending writes on exit. The message of every
    `ValueError` is one line with the folder and, if there is one, the step.
    """

    def __init__(self, folder: Path | str, *, max_to_keep: int = 2):
        """Open or create a folder of checkpoints.

        Args:
            folder: Folder of the checkpoints.
            max_to_keep: Number of complete checkpoints to keep; older ones are deleted.

        Raises:
            ValueError: If the folder cannot be created or written.
        """
        require_at_least("max_to_keep", max_to_keep, 1)
        self.folder = Path(folder).absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _remove_unfinished(self.folder)
            self._manager = _manager(self.folder, max_to_keep=max_to_keep)
        except OSError as error:
            raise ValueError(
                f"checkpoint folder must be writable, got {self.folder}: {error.strerror}"
            ) from error
        self._reader = Reader(self.folder, self._manager)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def latest_step(self) -> int | None:
        """Return the newest step saved or being saved, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, extra: Mapping[str, Any]) -> None:
        """Copy the state to the host and write it in the background, under its step.

        Args:
            state: State to save. It may be donated as soon as this method returns.
            extra: JSON data to save with the state; `restore` returns it.

        Raises:
            CheckpointWriteError: If this checkpoint or the previous one could not be written.
        """
        arrays = {name: flat_arrays(tree) for name, tree in _parts(state).items()}
        run: dict[str, Any] = {
            "arrays": {name: describe_arrays(part) for name, part in arrays.items()},
            "key_impl": key_impl(state.key),
            "extra": dict(extra),
        }
        # Copy, because it is written later, when the caller may have changed its lists.
        run = json.loads(json.dumps(run))
        items = {name: ocp.args.PyTreeSave(part) for name, part in arrays.items()}
        args = ocp.args.Composite(run=ocp.args.JsonSave(run), **items)
        with self._convert_write_errors():
            self._manager.save(int(state.step), args=args)

    def restore(self, like: TrainState, step: int | None = None) -> Restored:
        """Read a state and the `extra` data saved with it.

        Without `step`, the newest undamaged checkpoint is read. Later, damaged checkpoints are
        moved to `FOLDER/damaged`, so that the run can save these steps again.

        Args:
            like: Arrays or `ShapeDtypeStruct`s with the shapes and shardings to restore. The mesh
                may differ from the one at the time of saving.
            step: Step of the checkpoint to read; None for the newest undamaged one.

        Raises:
            ValueError: If there is no such checkpoint, it (without `step`, every checkpoint) is
                damaged, or it belongs to another model or optimizer.
        """
        read = partial(self._read, like)
        if step is not None:
            return read(self._reader.existing(step))
        restored, damage = self._reader.newest(read)
        if not damage:
            return restored
        damaged_folder = self.folder / DAMAGED
        with all_or_none("moving damaged checkpoints"):
            if is_main():
                damaged_folder.mkdir(exist_ok=True)
                for damaged_step in map(str, damage):
                    shutil.rmtree(damaged_folder / damaged_step, ignore_errors=True)
                    (self.folder / damaged_step).rename(damaged_folder / damaged_step)
        self._manager.reload()
        passed_over = (f"{text}; it was moved to {damaged_folder}" for text in damage.values())
        return restored._replace(passed_over=tuple(passed_over))

    def _read(self, like: TrainState, step: int) -> Restored:
        reader = self._reader
        run = reader.run(step)
        if run["key_impl"] != key_impl(like.key):
            difference = f"random keys of {run['key_impl']!r}, not {key_impl(like.key)!r}"
            raise reader.foreign(step, difference)
        parts = {name: reader.part(step, run, name, part) for name, part in _parts(like).items()}
        state = TrainState(ema_params=parts["ema_params"], **parts["state"])
        return Restored(state, run["extra"])

    def wait(self) -> None:
        """Block until all saved checkpoints are completely written.

        Raises:
            CheckpointWriteError: If a checkpoint could not be written.
        """
        with self._convert_write_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for pending writes, then stop the background threads."""
        with self._convert_write_errors():
            self._manager.close()

    def write_error(self, error: OSError) -> CheckpointWriteError:
        """Convert an error of writing a file of this run; add the step to resume from."""
        return CheckpointWriteError(error, self.latest_step() or 0)

    @contextmanager
    def _convert_write_errors(self) -> Iterator[None]:
        """Convert Orbax's write errors, now or in the background, to `CheckpointWriteError`."""
        try:
            yield
        except Exception as error:
            if isinstance(error, TimeoutError) and error.__cause__ is not None:
                raise error.__cause__ from None  # JAX's error about a lost process.
            if (os_error := disk_error(error, self.folder)) is None:
                raise
            raise self.write_error(os_error) from error


def newest_step(folder: Path | str) -> int | None:
    """Return the step of the newest complete checkpoint in a folder, or None.

    Only names are listed: the checkpoint may be damaged, and the folder need not exist.
    """
    folder = Path(folder)
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    # A checkpoint that is being written has a suffix.
    return max((int(name) for name in names if name.isdecimal()), default=None)


def restore_ema(
    folder: Path | str,
    like: Params,
    *,
    step: int | None = None,
    alone: bool = False,
) -> tuple[Params, int]:
    """Read only the averaged weights of a checkpoint, for sampling.

    Args:
        folder: Folder of a run's checkpoints; nothing is written to it.
        like: Arrays or `ShapeDtypeStruct`s with the shapes to restore, as from
            `jax.eval_shape(net.init, key)`. The weights get the shardings of these (see
            `with_shardings`), or are placed on the first device if they have none.
        step: Step of the checkpoint to read; None for the newest undamaged one, with a warning if
            later ones are damaged.
        alone: Whether this process reads without synchronizing with the other processes.

    Returns:
        The weights and the step of their checkpoint.

    Raises:
        ValueError: If there is no such checkpoint, it is damaged, or it belongs to another model.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise ValueError(f"checkpoint folder must exist, got {folder}")
    with _manager(folder, max_to_keep=None, alone=alone) as manager:
        reader = Reader(folder, manager, alone)

        def read(step: int) -> tuple[Params, int]:
            return reader.part(step, reader.run(step), "ema_params", like), step

        if step is not None:
            return read(reader.existing(step))
        (params, newest_step), damage = reader.newest(read)
        warn_about_damage(damage, newest_step)
        return params, newest_step


def _parts(state: TrainState) -> dict[str, PyTree]:
    """Split a state into the items of a checkpoint."""
    remaining = {name: leaf for name, leaf in state._asdict().items() if name != "ema_params"}
    return {"ema_params": state.ema_params, "state": remaining}


def _manager(
    folder: Path, *, max_to_keep: int | None, alone: bool = False
) -> ocp.CheckpointManager:
    check_step_metadata(folder)
    process = jax.process_index()
    options = ocp.CheckpointManagerOptions(
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=process,
            active_processes={process},
            barrier_sync_key_prefix=f"alone{process}",
        )
        if alone
        else ocp.options.MultiprocessingOptions(),
        max_to_keep=max_to_keep,
        create=False,
        async_options=ocp.AsyncOptions(
            post_finalization_callback=lambda: _seal(folder),
            barrier_sync_fn=None if alone else barrier,
        ),
    )
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for name in _ARRAYS:
        handler = ocp.PyTreeCheckpointHandler()
        registry.add(name, ocp.args.PyTreeSave, handler)
        registry.add(name, ocp.args.PyTreeRestore, handler)
    handler = ocp.JsonCheckpointHandler()
    registry.add("run", ocp.args.JsonSave, handler)
    registry.add("run", ocp.args.JsonRestore, handler)
    return ocp.CheckpointManager(folder, options=options, handler_registry=registry)


def _remove_unfinished(folder: Path) -> None:
    """Remove checkpoints whose writing was interrupted.

    Orbax can do this in the background, but that fails if the folder is opened twice at the same
    time.
    """
    if is_main():
        for unfinished in folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
            shutil.rmtree(unfinished)


def _seal(folder: Path) -> None:
    """Write the digests of the checkpoint being saved.

    Orbax calls this when the files are complete and before the folder gets its final name, so every
    checkpoint has digests. The checkpoint being saved is the only one without digests.
    """
    if is_main():
        for step_folder in filter(Path.is_dir, folder.iterdir()):
            if step_folder.name != DAMAGED:
                write_digests(step_folder, ("run", *_ARRAYS))
