"""Reading of checkpoints, with detection of damage."""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from fmjax._json import check_json, parse_json
from fmjax.training.checkpoints.digests import find_damage, is_sealed
from fmjax.training.checkpoints.named_arrays import Leaf, flat_arrays, unflat_arrays

Read = TypeVar("Read")

_MAX_DAMAGE_BYTES = 256  # Length of the description of damage sent to other processes.


class SavedRun(TypedDict):
    """Content of the JSON text of a checkpoint.

    Attributes:
        arrays: Dtype and shape of each array, as from `describe_arrays`, by item and name.
        key_impl: Name of the random number generator.
        extra: JSON data saved by the caller.
    """

    arrays: dict[str, dict[str, str]]
    key_impl: str
    extra: dict[str, Any]


class _StepMetadata(TypedDict, total=False):
    """Orbax's metadata of a checkpoint; other keys are ignored."""

    item_handlers: dict[str, str] | str | None
    metrics: dict[str, Any] | None
    performance_metrics: dict[str, float] | None
    init_timestamp_nsecs: int | None
    commit_timestamp_nsecs: int | None
    custom_metadata: dict[str, Any] | None


def check_step_metadata(folder: Path) -> None:
    """Check the metadata files that Orbax reads when it opens a folder of checkpoints.

    Orbax ignores a truncated file, but fails on one with values of another type or too deeply
    nested.

    Raises:
        ValueError: If Orbax could not read a file; the message names it.
    """
    for file in sorted(folder.glob("*/_CHECKPOINT_METADATA")):
        try:
            value = parse_json(file.read_bytes(), str(file), nonfinite=True)
        except FileNotFoundError:
            continue  # A training run has just deleted this checkpoint.
        except ValueError as error:
            if isinstance(error.__cause__, json.JSONDecodeError | UnicodeError):
                continue
            raise
        if value is not None:
            check_json(value, _StepMetadata, str(file), extra=True)


class DamagedCheckpoint(ValueError):
    """Raised when the files of a checkpoint differ from the files written."""


class Reader(NamedTuple):
    """Reads the checkpoints in a folder.

    Attributes:
        folder: Folder of the checkpoints.
        manager: Orbax's checkpoint manager of the folder.
        alone: Whether this process reads without synchronizing with the other processes.
    """

    folder: Path
    manager: ocp.CheckpointManager
    alone: bool = False

    def newest(self, read: Callable[[int], Read]) -> tuple[Read, dict[int, str]]:
        """Read the newest undamaged checkpoint.

        Args:
            read: Function that reads the checkpoint of a step.

        Returns:
            The result of `read`, and a description of the damage of each later checkpoint by step.

        Raises:
            ValueError: If there is no undamaged checkpoint, or `read` raises it for an undamaged
                one.
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
        """Return whether another process has saved or deleted checkpoints since they were listed.

        A training run deletes old checkpoints, perhaps the one being read.
        """
        if not self.alone and jax.process_count() > 1:
            return False
        listed_steps = set(self.manager.all_steps())
        self.manager.reload()
        return set(self.manager.all_steps()) != listed_steps

    def existing(self, step: int) -> int:
        """Return `step` if there is a checkpoint of this step.

        Raises:
            ValueError: If there is no such checkpoint.
        """
        if step not in (steps := self._steps()):
            raise ValueError(
                f"checkpoint step must be one of {sorted(steps)}, got {step} in {self.folder}"
            )
        return step

    def run(self, step: int) -> SavedRun:
        """Read the JSON text of a checkpoint."""
        run = self._item(step, "run", ocp.args.JsonRestore())
        try:
            return check_json(run, SavedRun, "run")
        except ValueError as error:
            raise self.foreign(step, f"one not written by fmjax: {error}") from error

    def part(self, step: int, run: SavedRun, name: str, like: PyTree) -> PyTree:
        """Read the arrays of one item of a checkpoint.

        Args:
            step: Step of the checkpoint.
            run: JSON text of the checkpoint.
            name: Name of the item.
            like: Arrays or `ShapeDtypeStruct`s with the shapes and shardings to restore.
        """
        target = {key: _with_sharding(leaf) for key, leaf in flat_arrays(like).items()}
        self._require_same_arrays(step, run["arrays"].get(name, {}), describe_arrays(target), name)
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        item = ocp.args.PyTreeRestore(target, restore_args=restore_args)
        arrays = self._item(step, name, item)
        return unflat_arrays({key: arrays[key] for key in target}, like)

    def foreign(self, step: int, difference: str) -> ValueError:
        """Make the error of a checkpoint of another model or optimizer."""
        return ValueError(
            f"checkpoint of step {step} in {self.folder} must match the model and optimizer, "
            f"got {difference}"
        )

    def _steps(self) -> list[int]:
        steps = list(self.manager.all_steps())
        if not steps:
            raise ValueError(
                f"checkpoint folder must contain a checkpoint, got none in {self.folder}"
            )
        return steps

    def _item(self, step: int, name: str, item_args: ocp.args.CheckpointArgs) -> PyTree:
        folder = self.folder / str(step)
        if not (folder / name).is_dir() and not is_sealed(folder):
            raise self.foreign(step, f"one without {name}")
        if damage := self._damage(folder, name):
            raise self._damaged(step, damage)
        try:
            return self.manager.restore(step, args=ocp.args.Composite(**{name: item_args}))[name]
        except (jax.errors.JaxRuntimeError, MemoryError):
            raise  # Caused by devices or other processes: the checkpoint may be undamaged.
        except Exception as error:  # noqa: BLE001 - Orbax raises bare Exception for unreadable data
            raise self._damaged(step, error) from error

    def _damage(self, folder: Path, name: str) -> str | None:
        """Find damage in an item; the processes share the work and return the same result."""
        if self.alone or jax.process_count() == 1:
            return find_damage(folder, name)
        damage = find_damage(folder, name, jax.process_index(), jax.process_count()) or ""
        text = np.zeros(_MAX_DAMAGE_BYTES, np.uint8)
        content = damage.encode()[:_MAX_DAMAGE_BYTES]
        text[: len(content)] = np.frombuffer(content, np.uint8)
        for process_text in multihost_utils.process_allgather(text):
            if process_text.any():
                return bytes(process_text).rstrip(b"\0").decode(errors="ignore")
        return None

    def _require_same_arrays(
        self, step: int, saved: Mapping[str, str], expected: Mapping[str, str], part: str
    ) -> None:
        """Raise unless the arrays of a checkpoint have the expected names, shapes and dtypes."""
        for name in sorted(saved.keys() | expected.keys()):
            in_checkpoint, in_run = saved.get(name, "nothing"), expected.get(name, "nothing")
            if in_checkpoint != in_run:
                difference = (
                    f"{part}.{name}: {in_checkpoint} in the checkpoint, {in_run} in the run"
                )
                raise self.foreign(step, difference)

    def _damaged(self, step: int, reason: Exception | str) -> DamagedCheckpoint:
        lines = str(reason).strip().splitlines() or [type(reason).__name__]
        return DamagedCheckpoint(
            f"checkpoint of step {step} in {self.folder} must be undamaged, got {lines[0][:200]}"
        )


def warn_about_damage(damage: Mapping[int, str], step: int) -> None:
    """Warn that checkpoints later than `step` are damaged and were skipped."""
    for text in damage.values():
        warnings.warn(f"{text}; using the checkpoint of step {step} instead", stacklevel=3)


def describe_arrays(arrays: Mapping[str, Leaf]) -> dict[str, str]:
    """Describe the dtype and shape of each array, such as `float32[3, 4]`."""
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in arrays.items()}


def _with_sharding(leaf: Leaf) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
