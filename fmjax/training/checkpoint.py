"""Checkpoints on disk: the one module that knows Orbax.

A checkpoint of step n is the folder `FOLDER/n`. It holds the weights' average apart from the rest
of the state, so that sampling reads only what it needs, and one JSON text: shapes and dtypes of
all arrays, and what the caller adds (where the data iterator stands).
Writing goes on in the background; a folder appears under its name only when it is whole. It comes
with digests of its files, which are compared before Orbax reads a byte.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from fmjax._arrays import Params
from fmjax._checks import require_at_least
from fmjax.training.digests import find_damage, write_digests
from fmjax.training.named_arrays import flat_arrays, key_impl, unflat_arrays
from fmjax.training.state import TrainState

_ARRAYS = ("ema_params", "state")


class Restored(NamedTuple):
    """What `Checkpoints.restore` gives.

    Attributes:
        state: Bit for bit the one saved, on the shardings asked for.
        extra: What was saved beside it.
    """

    state: TrainState
    extra: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for the last write.

    Every refusal is a `ValueError` of one line that names the folder and the step. Nothing falls
    back silently: a damaged newest checkpoint is an error, not a reason to take the one before.
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
            self._manager = _manager(self.folder, max_to_keep=max_to_keep, clean=True)
        except OSError as error:
            raise ValueError(
                f"checkpoint folder must be writable, got {self.folder}: {error.strerror}"
            ) from error

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
        """
        arrays = {name: flat_arrays(tree) for name, tree in _parts(state).items()}
        run: dict[str, Any] = {
            "arrays": {name: _described(part) for name, part in arrays.items()},
            "key_impl": key_impl(state.key),
            "extra": dict(extra),
        }
        # A copy: it is written later, when the caller's lists may have changed.
        run = json.loads(json.dumps(run))
        items = {name: ocp.args.PyTreeSave(part) for name, part in arrays.items()}
        args = ocp.args.Composite(run=ocp.args.JsonSave(run), **items)
        self._manager.save(int(state.step), args=args)

    def restore(self, like: TrainState, step: int | None = None) -> Restored:
        """Read the state of `step` (default: the newest) and the `extra` saved with it.

        Args:
            like: Arrays or `ShapeDtypeStruct`s with the shapes and shardings to restore onto,
                whatever mesh the checkpoint was written from.
            step: Which checkpoint.

        Raises:
            ValueError: If there is none, it is damaged, or it is of another model or optimizer.
        """
        return _restore(self.folder, self._manager, like, step)

    def wait(self) -> None:
        """Return when everything saved is whole on the disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then let go of the background threads."""
        self._manager.close()


def restore_ema(
    folder: Path | str, like: Params, *, sharding: Any = None, step: int | None = None
) -> tuple[Params, int]:
    """Read only the averaged weights, to sample with.

    Args:
        folder: Of a run's checkpoints; it is only read.
        like: Arrays or `ShapeDtypeStruct`s, as from `jax.eval_shape(net.init, key)`.
        sharding: Where each goes, as from `state_sharding(like, mesh)`. By default where `like`
            lies; the first device, if it lies nowhere.
        step: Which checkpoint; the newest by default.

    Returns:
        The weights, and the step they are of.

    Raises:
        ValueError: If there is none, it is damaged, or it is of another model.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise ValueError(f"checkpoint folder must exist, got {folder}")
    if sharding is not None:
        like = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            like,
            sharding,
        )
    with _manager(folder, max_to_keep=None, clean=False) as manager:
        step = _existing_step(folder, manager, step)
        run = _read_run(folder, manager, step)
        return _read_part(folder, manager, step, run, "ema_params", like), step


def _parts(state: TrainState) -> dict[str, Any]:
    """A state as the items of a checkpoint."""
    rest = {name: leaf for name, leaf in state._asdict().items() if name != "ema_params"}
    return {"ema_params": state.ema_params, "state": rest}


def _restore(folder, manager, like, step):
    step = _existing_step(folder, manager, step)
    run = _read_run(folder, manager, step)
    if run["key_impl"] != key_impl(like.key):
        raise _foreign(folder, step, f"keys of {run['key_impl']!r}, not {key_impl(like.key)!r}")
    parts = {
        name: _read_part(folder, manager, step, run, name, part)
        for name, part in _parts(like).items()
    }
    state = TrainState(ema_params=parts["ema_params"], **parts["state"])
    return Restored(state, run["extra"])


def _manager(folder: Path, *, max_to_keep: int | None, clean: bool) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep,
        create=False,
        cleanup_tmp_directories=clean,
        async_options=ocp.AsyncOptions(post_finalization_callback=lambda: _seal(folder)),
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


def _seal(folder: Path) -> None:
    """Write the digests of the checkpoint being saved.

    Orbax calls this when its files are whole, before it gives their folder its name: so a
    checkpoint always has its digests. The folder is known by not having them yet.
    """
    if jax.process_index() == 0:
        for step_folder in filter(Path.is_dir, folder.iterdir()):
            write_digests(step_folder, ("run", *_ARRAYS))


def _existing_step(folder: Path, manager: ocp.CheckpointManager, step: int | None) -> int:
    steps = manager.all_steps()
    if not steps:
        raise ValueError(f"checkpoint folder must hold a checkpoint, got none in {folder}")
    if step is not None and step not in steps:
        raise ValueError(f"checkpoint step must be one of {sorted(steps)}, got {step} in {folder}")
    return max(steps) if step is None else step


def _read_run(folder: Path, manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The JSON text of a checkpoint: what its arrays are, and the caller's `extra`."""
    run = _read_item(folder, manager, step, "run", ocp.args.JsonRestore())
    if not isinstance(run, dict) or not {"arrays", "key_impl", "extra"} <= run.keys():
        raise _foreign(folder, step, "one that fmjax did not write")
    return run


def _read_part(folder, manager, step, run, name, like):
    """The arrays of one item, onto the shardings of `like`."""
    wanted = {path: _with_sharding(leaf) for path, leaf in flat_arrays(like).items()}
    _require_alike(folder, step, run["arrays"][name], _described(wanted), name)
    restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
    item = ocp.args.PyTreeRestore(wanted, restore_args=restore_args)
    arrays = _read_item(folder, manager, step, name, item)
    return unflat_arrays({path: arrays[path] for path in wanted}, like)


def _read_item(folder, manager, step, name, item_args):
    if not (folder / str(step) / name).is_dir():
        raise _foreign(folder, step, f"one without {name}")
    if damage := find_damage(folder / str(step), name):
        raise _damaged(folder, step, damage)
    try:
        return manager.restore(step, args=ocp.args.Composite(**{name: item_args}))[name]
    except Exception as error:  # noqa: BLE001 - Orbax raises bare Exception for unreadable data
        raise _damaged(folder, step, error) from error


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _described(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Each array as a text such as `float32[3, 4]`."""
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in arrays.items()}


def _require_alike(folder, step, saved, wanted, part):
    """Raise unless a checkpoint's arrays have the names, shapes and dtypes wanted."""
    for name in sorted(saved.keys() | wanted.keys()):
        has, wants = saved.get(name, "nothing"), wanted.get(name, "nothing")
        if has != wants:
            raise _foreign(folder, step, f"{part}.{name}: it holds {has}, the run {wants}")


def _foreign(folder: Path, step: int, difference: str) -> ValueError:
    return ValueError(
        f"checkpoint of step {step} in {folder} must be of this model and optimizer, "
        f"got {difference}"
    )


def _damaged(folder: Path, step: int, reason: Exception | str) -> ValueError:
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    return ValueError(
        f"checkpoint of step {step} in {folder} must be whole, got {lines[0][:200]} "
        f"(delete {folder / str(step)} to go on from an earlier one)"
    )
