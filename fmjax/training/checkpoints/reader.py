"""Reading checkpoints: which of them are whole, and what is in them."""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from fmjax._json import check_json, parse_json
from fmjax.training.checkpoints.digests import find_damage, is_sealed
from fmjax.training.checkpoints.named_arrays import flat_arrays, unflat_arrays

Read = TypeVar("Read")

_LONGEST = 256  # Bytes of what one process tells the others of a damage.


class SavedRun(TypedDict):
    """The JSON text of a checkpoint.

    Attributes:
        arrays: By item and name, each array as `described` has it.
        key_impl: The implementation of random keys.
        extra: What the caller saved.
    """

    arrays: dict[str, dict[str, str]]
    key_impl: str
    extra: dict[str, Any]


class _StepMetadata(TypedDict, total=False):
    """What Orbax keeps of a checkpoint besides its arrays; other keys are ignored."""

    item_handlers: dict[str, str] | str | None
    metrics: dict[str, Any] | None
    performance_metrics: dict[str, float] | None
    init_timestamp_nsecs: int | None
    commit_timestamp_nsecs: int | None
    custom_metadata: dict[str, Any] | None


def check_step_metadata(folder: Path) -> None:
    """Look at what Orbax reads of every checkpoint when it opens their folder.

    Orbax does without a file that is cut short, but not without one of another type or depth.

    Raises:
        ValueError: If Orbax could not read one; it names the file.
    """
    for path in sorted(folder.glob("*/_CHECKPOINT_METADATA")):
        try:
            value = parse_json(path.read_bytes(), str(path), nonfinite=True)
        except FileNotFoundError:
            continue  # A training has just replaced that checkpoint.
        except ValueError as error:
            if isinstance(error.__cause__, json.JSONDecodeError | UnicodeError):
                continue
            raise
        if value is not None:
            check_json(value, _StepMetadata, str(path), extra=True)


class DamagedCheckpoint(ValueError):
    """The files of a checkpoint are not what was written."""


class Reader(NamedTuple):
    """Reads the checkpoints in a folder.

    Attributes:
        folder: Theirs.
        manager: Orbax's, of that folder.
        alone: Whether this process reads by itself, whatever the others of its run do.
    """

    folder: Path
    manager: ocp.CheckpointManager
    alone: bool = False

    def newest(self, read: Callable[[int], Read]) -> tuple[Read, dict[int, str]]:
        """`read(step)` of the newest checkpoint that is whole, and what is wrong with later ones.

        Raises:
            ValueError: If there is none, and as `read` raises for one that is whole.
        """
        damage: dict[int, str] = {}
        steps = self._steps()
        while steps:
            step = max(steps)
            try:
                return read(step), damage
            except DamagedCheckpoint as error:
                if self._have_changed():
                    damage, steps = {}, self._steps()
                    continue
                damage[step] = str(error)
            steps.remove(step)
        raise DamagedCheckpoint(next(iter(damage.values())))

    def _have_changed(self) -> bool:
        """Whether another process has saved or removed checkpoints since they were listed.

        It removes the old ones, perhaps the one that is being read here.
        """
        if not self.alone and jax.process_count() > 1:
            return False
        before = set(self.manager.all_steps())
        self.manager.reload()
        return set(self.manager.all_steps()) != before

    def existing(self, step: int) -> int:
        """The step, if there is such a checkpoint.

        Raises:
            ValueError: If there is none.
        """
        if step not in (steps := self._steps()):
            raise ValueError(
                f"checkpoint step must be one of {sorted(steps)}, got {step} in {self.folder}"
            )
        return step

    def run(self, step: int) -> SavedRun:
        """The JSON text of a checkpoint: what its arrays are, and the caller's `extra`."""
        run = self._item(step, "run", ocp.args.JsonRestore())
        try:
            return check_json(run, SavedRun, "it")
        except ValueError as error:
            raise self.foreign(step, f"one that fmjax did not write: {error}") from error

    def part(self, step: int, run: SavedRun, name: str, like: Any) -> Any:
        """The arrays of one item, onto the shardings of `like`."""
        wanted = {path: _with_sharding(leaf) for path, leaf in flat_arrays(like).items()}
        self._require_alike(step, run["arrays"].get(name, {}), described(wanted), name)
        restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
        item = ocp.args.PyTreeRestore(wanted, restore_args=restore_args)
        arrays = self._item(step, name, item)
        return unflat_arrays({path: arrays[path] for path in wanted}, like)

    def foreign(self, step: int, difference: str) -> ValueError:
        """That the checkpoint is not of this run."""
        return ValueError(
            f"checkpoint of step {step} in {self.folder} must be of this model and optimizer, "
            f"got {difference}"
        )

    def _steps(self) -> list[int]:
        steps = list(self.manager.all_steps())
        if not steps:
            raise ValueError(f"checkpoint folder must hold a checkpoint, got none in {self.folder}")
        return steps

    def _item(self, step: int, name: str, item_args: Any) -> Any:
        folder = self.folder / str(step)
        if not (folder / name).is_dir() and not is_sealed(folder):
            raise self.foreign(step, f"one without {name}")
        if damage := self._damage(folder, name):
            raise self._damaged(step, damage)
        try:
            return self.manager.restore(step, args=ocp.args.Composite(**{name: item_args}))[name]
        except (jax.errors.JaxRuntimeError, MemoryError):
            raise  # Of the devices or of other processes: the checkpoint may be whole.
        except Exception as error:  # noqa: BLE001 - Orbax raises bare Exception for unreadable data
            raise self._damaged(step, error) from error

    def _damage(self, folder: Path, name: str) -> str | None:
        """What is wrong with an item. Each process looks at a share of it; all say the same."""
        if self.alone or jax.process_count() == 1:
            return find_damage(folder, name)
        found = find_damage(folder, name, jax.process_index(), jax.process_count()) or ""
        text = np.zeros(_LONGEST, np.uint8)
        text[: len(found.encode())] = np.frombuffer(found.encode()[:_LONGEST], np.uint8)
        for said in multihost_utils.process_allgather(text):
            if said.any():
                return bytes(said).rstrip(b"\0").decode(errors="ignore")
        return None

    def _require_alike(self, step: int, saved: Any, wanted: Any, part: str) -> None:
        """Raise unless a checkpoint's arrays have the names, shapes and dtypes wanted."""
        for name in sorted(saved.keys() | wanted.keys()):
            has, wants = saved.get(name, "nothing"), wanted.get(name, "nothing")
            if has != wants:
                raise self.foreign(step, f"{part}.{name}: it holds {has}, the run {wants}")

    def _damaged(self, step: int, reason: Exception | str) -> DamagedCheckpoint:
        lines = str(reason).strip().splitlines() or [type(reason).__name__]
        return DamagedCheckpoint(
            f"checkpoint of step {step} in {self.folder} must be whole, got {lines[0][:200]}"
        )


def warn_of(damage: Mapping[int, str], step: int) -> None:
    """Warn that later checkpoints than that of `step` were passed over."""
    for text in damage.values():
        warnings.warn(f"{text}; that of step {step} is taken instead", stacklevel=3)


def described(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Each array as a text such as `float32[3, 4]`."""
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in arrays.items()}


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
