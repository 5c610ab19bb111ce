"""Pairs of source and target that belong together, on disk: what reflow trains on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmjax._arrays import Batch, Conditions
from fmjax._checks import require
from fmjax.data.records.manifest import RecordField
from fmjax.data.records.records import Records, open_records

LEAST_PER_SHARD = 1024  # So that a shard's own bytes do not count.


def pair_fields(event_shape: tuple[int, ...], conditional: bool) -> tuple[RecordField, ...]:
    """The arrays of a pair: `x0`, `x1` and, of a conditional model, `label`."""
    points = tuple(RecordField(name, "float32", event_shape) for name in ("x0", "x1"))
    return points + ((RecordField("label", "int32"),) if conditional else ())


@dataclass(frozen=True, eq=False)
class Pairs:
    """A set of pairs as `fmjax.data.batches` reads it.

    Attributes:
        records: On disk.
        num_classes: How many classes the labels count, or None.
    """

    records: Records
    num_classes: int | None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of a point."""
        return self.records.manifest.fields[0].shape

    @property
    def conditions(self) -> Conditions:
        """What the pairs are conditioned on."""
        return self.num_classes

    def examples(self, indices: np.ndarray) -> Batch:
        """The pairs at `indices`."""
        found = self.records.read(indices)
        return Batch(x1=found["x1"], cond=found.get("label"), x0=found["x0"])


def open_pairs(folder: Path, event_shape: tuple[int, ...], num_classes: int | None) -> Pairs:
    """Open pairs for a model of such points and classes.

    Raises:
        ValueError: If they are of others, or not whole.
    """
    records = open_records(folder)
    fields, wanted = records.manifest.fields, pair_fields(event_shape, num_classes is not None)
    rule = f"hold pairs of {_in_words(wanted)}"
    require(fields == wanted, f"folder {folder}", rule, _in_words(fields))
    return Pairs(records, num_classes)


def _in_words(fields: tuple[RecordField, ...]) -> str:
    return ", ".join(f"{field.name} {field.dtype}{list(field.shape)}" for field in fields)
