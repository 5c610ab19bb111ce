"""Pairs of source point and data point on disk, the training data of reflow."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmjax._arrays import Batch
from fmjax._checks import require
from fmjax._specs import CondSpec, class_spec
from fmjax.data.records.manifest import RecordField
from fmjax.data.records.records import Records, open_records

MIN_PAIRS_PER_SHARD = 1024  # Makes the overhead per shard negligible.


def pair_fields(event_shape: tuple[int, ...], conditional: bool) -> tuple[RecordField, ...]:
    """Return the record fields of a pair: `x0`, `x1` and, for conditional models, `label`."""
    points = tuple(RecordField(name, "float32", event_shape) for name in ("x0", "x1"))
    return points + ((RecordField("label", "int32"),) if conditional else ())


@dataclass(frozen=True, eq=False)
class Pairs:
    """A set of pairs on disk, which `fmjax.data.batches` reads.

    Attributes:
        records: Records of the pairs.
        num_classes: Number of classes, or None for unconditional pairs.
    """

    records: Records
    num_classes: int | None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one data point."""
        return self.records.manifest.fields[0].shape

    @property
    def conditions(self) -> CondSpec:
        """Number of classes, or None for unconditional pairs."""
        return None if self.num_classes is None else class_spec(self.num_classes)

    def examples(self, indices: np.ndarray) -> Batch:
        """Return the pairs at `indices`."""
        arrays = self.records.read(indices)
        return Batch(x1=arrays["x1"], cond=arrays.get("label"), x0=arrays["x0"])


def open_pairs(folder: Path, event_shape: tuple[int, ...], num_classes: int | None) -> Pairs:
    """Open a folder of pairs for a model with this event shape and number of classes.

    Raises:
        ValueError: If the pairs have other fields, or records are missing or damaged.
    """
    records = open_records(folder)
    fields, expected = records.manifest.fields, pair_fields(event_shape, num_classes is not None)
    rule = f"hold pairs of {_describe(expected)}"
    require(fields == expected, f"folder {folder}", rule, _describe(fields))
    return Pairs(records, num_classes)


def _describe(fields: tuple[RecordField, ...]) -> str:
    return ", ".join(f"{field.name} {field.dtype}{list(field.shape)}" for field in fields)
