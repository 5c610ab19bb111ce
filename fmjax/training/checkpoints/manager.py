"""Checkpoints on disk: the one module that knows Orbax.

A checkpoint of step n is the folder `FOLDER/n`. It holds the weights' average apart from the rest
of the state, so that sampling reads only what it needs, and one JSON text: shapes and dtypes of
all arrays, and what the caller adds (where the data iterator stands).
Writing goes on in the background; a folder appears under its name only when it is whole. It comes
with digests of its files, which are compared before Orbax reads a byte.
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

from fmjax._arrays import Params
from fmjax._checks import require_at_least
from fmjax.sharding.processes import all_or_none, is_main
from fmjax.training.checkpoints.digests import write_digests
from fmjax.training.checkpoints.errors import CheckpointWriteError, barrier, disk_error
from fmjax.training.checkpoints.named_arrays import flat_arrays, key_impl
from fmjax.training.checkpoints.reader import Reader, check_step_metadata, described, warn_of
from fmjax.training.state import TrainState

_ARRAYS = ("ema_params", "state")
DAMAGED = "damaged"


class Restored(NamedTuple):
    """What `Checkpoints.restore` gives.

    Attributes:
        state: Bit for bit the one saved, on the shardings asked for.
        extra: What was saved beside it.
        passed_over: A line for each later checkpoint that was damaged, which is set aside.
    """

    state: TrainState
    extra: dict[str, Any]
    passed_over: tuple[str, ...] = ()


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for the last write.

    Every refusal is a `ValueError` of one line that names the folder and the step.
    """

    def __init__(self, folder: Path | str, *, max_to_keep: int = 2):
        """Open (and make) `folder`; the oldest go once more than `max_to_keep` are whole.

        Raises:
            ValueError: If the folder cannot be made or written.
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
        """The newest step saved or being saved; None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, extra: Mapping[str, Any]) -> None:
        """Copy the state off the devices and write it in the background, as its own step.

        Args:
            state: May be donated to the next step as soon as this returns.
            extra: Anything JSON, given back by `restore`.

        Raises:
            Unwritten: If the disk did not take this checkpoint or the one before.
        """
        arrays = {name: flat_arrays(tree) for name, tree in _parts(state).items()}
        run: dict[str, Any] = {
            "arrays": {name: described(part) for name, part in arrays.items()},
            "key_impl": key_impl(state.key),
            "extra": dict(extra),
        }
        # A copy: it is written later, when the caller's lists may have changed.
        run = json.loads(json.dumps(run))
        items = {name: ocp.args.PyTreeSave(part) for name, part in arrays.items()}
        args = ocp.args.Composite(run=ocp.args.JsonSave(run), **items)
        with self._writing():
            self._manager.save(int(state.step), args=args)

    def restore(self, like: TrainState, step: int | None = None) -> Restored:
        """Read a state and the `extra` saved with it.

        Without a step, the newest checkpoint that is whole. Later ones, which are damaged, are
        moved to `FOLDER/damaged`, so that the run can save under their steps again.

        Args:
            like: Arrays or `ShapeDtypeStruct`s with the shapes and shardings to restore onto,
                whatever mesh the checkpoint was written from.
            step: Which checkpoint.

        Raises:
            ValueError: If there is none, it (without a step, every one) is damaged, or it is of
                another model or optimizer.
        """
        read = partial(self._read, like)
        if step is not None:
            return read(self._reader.existing(step))
        restored, damage = self._reader.newest(read)
        if not damage:
            return restored
        aside = self.folder / DAMAGED
        with all_or_none("setting damaged checkpoints aside"):
            if is_main():
                aside.mkdir(exist_ok=True)
                for each in damage:
                    shutil.rmtree(aside / str(each), ignore_errors=True)
                    (self.folder / str(each)).rename(aside / str(each))
        self._manager.reload()
        passed_over = (f"{text}; it is now in {aside}" for text in damage.values())
        return restored._replace(passed_over=tuple(passed_over))

    def _read(self, like: TrainState, step: int) -> Restored:
        reader = self._reader
        run = reader.run(step)
        if run["key_impl"] != key_impl(like.key):
            keys = f"keys of {run['key_impl']!r}, not {key_impl(like.key)!r}"
            raise reader.foreign(step, keys)
        parts = {name: reader.part(step, run, name, part) for name, part in _parts(like).items()}
        state = TrainState(ema_params=parts["ema_params"], **parts["state"])
        return Restored(state, run["extra"])

    def wait(self) -> None:
        """Return when everything saved is whole on the disk.

        Raises:
            Unwritten: If the disk did not take it.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then let go of the background threads."""
        with self._writing():
            self._manager.close()

    def write_error(self, error: OSError) -> CheckpointWriteError:
        """The same error, of something that this run wrote; it says where the run can go on."""
        return CheckpointWriteError(error, self.latest_step() or 0)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What Orbax could not write, now or in the background, is told in one way."""
        try:
            yield
        except Exception as error:
            if isinstance(error, TimeoutError) and error.__cause__ is not None:
                raise error.__cause__ from None  # What JAX says of a process that is gone.
            if (refused := disk_error(error, self.folder)) is None:
                raise
            raise self.write_error(refused) from error


def restore_ema(
    folder: Path | str,
    like: Params,
    *,
    step: int | None = None,
    alone: bool = False,
) -> tuple[Params, int]:
    """Read only the averaged weights, to sample with.

    Args:
        folder: Of a run's checkpoints; it is only read.
        like: Arrays or `ShapeDtypeStruct`s, as from `jax.eval_shape(net.init, key)`. They go
            where these lie (`laid_out` says where); to the first device, if that is nowhere.
        step: Which checkpoint; by default the newest that is whole, with a warning if later ones
            are not.
        alone: This process reads by itself, whatever the others of its run do.

    Returns:
        The weights, and the step they are of.

    Raises:
        ValueError: If there is none, it is damaged, or it is of another model.
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
        found, damage = reader.newest(read)
        warn_of(damage, found[1])
        return found


def _parts(state: TrainState) -> dict[str, Any]:
    """A state as the items of a checkpoint."""
    rest = {name: leaf for name, leaf in state._asdict().items() if name != "ema_params"}
    return {"ema_params": state.ema_params, "state": rest}


def _manager(
    folder: Path, *, max_to_keep: int | None, alone: bool = False
) -> ocp.CheckpointManager:
    check_step_metadata(folder)
    here = jax.process_index()
    options = ocp.CheckpointManagerOptions(
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"alone{here}"
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
    """Remove the parts of a checkpoint whose writing was stopped.

    Orbax can do this in the background, where it fails if the folder is opened twice: each opening
    removes what the other is removing.
    """
    if is_main():
        for unfinished in folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
            shutil.rmtree(unfinished)


def _seal(folder: Path) -> None:
    """Write the digests of the checkpoint being saved.

    Orbax calls this when its files are whole, before it gives their folder its name: so a
    checkpoint always has its digests. The folder is known by not having them yet.
    """
    if is_main():
        for step_folder in filter(Path.is_dir, folder.iterdir()):
            if step_folder.name != DAMAGED:
                write_digests(step_folder, ("run", *_ARRAYS))
