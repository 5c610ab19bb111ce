"""Data set of latents and encoded captions, written by `fmjax encode`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fmjax._arrays import Batch, Text, TextShape
from fmjax._checks import require, require_numbers
from fmjax._files import require_exists
from fmjax._json import check_json
from fmjax._progress import Progress, Silent
from fmjax._specs import CondSpec
from fmjax.data.dataset import Dataset, Indices, NoSuchSplit, Split
from fmjax.data.records.manifest import RecordField, RecordManifest
from fmjax.data.records.records import Records, open_records

LATENTS, TOKENS, POOLED = "latents", "tokens", "pooled"


@dataclass(frozen=True)
class EncodedData:
    """Autoencoder latents of images, with encoded captions, in a folder of `fmjax encode`.

    The folder holds ArrayRecord shards in the subfolders `train` and `test`. They are read with
    random access, so the data need not fit into memory.

    Attributes:
        folder: Folder written by `fmjax encode`.
        event_shape: Shape of one latent; None to read it from the files. Set it and `text` to use
            the config before the files exist, as with `fmjax plan`.
        text: Sizes of an encoded caption; None to read them from the files.
    """

    folder: str
    event_shape: tuple[int, ...] | None = None
    text: TextShape | None = None

    def __post_init__(self) -> None:
        require_numbers(self, "data.")

    def shape(self) -> tuple[tuple[int, ...], CondSpec]:
        """Return the shape of one latent and the sizes of an encoded caption."""
        if self.event_shape is not None and self.text is not None:
            return self.event_shape, self.text
        train = self.load("train")
        return train.event_shape, train.conditions

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """Open one split without reading examples.

        Raises:
            ValueError: If the split is missing, damaged or does not match the config.
        """
        folder = Path(self.folder).expanduser()
        require_exists("data.folder", folder)
        require(folder.is_dir(), "data.folder", "be a folder written by fmjax encode", folder)
        if not (folder / split).is_dir():
            raise NoSuchSplit(
                f"data.folder must hold {split}, written by fmjax encode, got {folder}"
            )
        records = open_records(folder / split)
        fields = {field.name for field in records.manifest.fields}
        expected = {LATENTS, TOKENS, POOLED}
        rule = f"hold {', '.join(sorted(expected))}"
        require(fields == expected, f"folder {folder / split}", rule, ", ".join(sorted(fields)))
        rows = {name: _Rows(records, name) for name in expected}
        event_shape = rows[LATENTS].shape[1:]
        text = _text_shape(folder / split, records.manifest.origin)
        # A config may set the sizes without the parts.
        sizes = text if self.text is None or self.text.parts else replace(text, parts=())
        for configured, actual in ((self.event_shape, event_shape), (self.text, sizes)):
            rule = f"hold examples of {configured}"
            require(configured in (None, actual), f"folder {folder / split}", rule, actual)
        return _Encoded(rows[LATENTS], text=Text(rows[TOKENS], rows[POOLED]), shape=text)


def encoded_manifest(
    event_shape: tuple[int, ...],
    text: TextShape,
    num_examples: int,
    *,
    dtype: str,
    examples_per_shard: int,
    origin: dict[str, Any],
) -> RecordManifest:
    """Create the manifest of a split of encoded examples; `origin` identifies the split."""
    fields = (
        RecordField(LATENTS, dtype, event_shape),
        RecordField(TOKENS, dtype, (text.num_tokens, text.width)),
        RecordField(POOLED, dtype, (text.pooled_width,)),
    )
    origin = {**origin, "text": text.as_json()}
    return RecordManifest(fields, num_examples, examples_per_shard, origin)


def _text_shape(folder: Path, origin: Mapping[str, Any]) -> TextShape:
    return check_json(origin.get("text"), TextShape, f"text of the records in {folder}")


@dataclass(frozen=True, eq=False)
class _Rows:
    """One field of all records as an array, read on access."""

    records: Records
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.records), *self._field.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def _field(self) -> RecordField:
        return next(field for field in self.records.manifest.fields if field.name == self.name)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, indices: Indices) -> np.ndarray:
        numbers = np.arange(len(self.records))[indices]
        return self.records.read(np.atleast_1d(numbers))[self.name].astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Encoded(Dataset):
    """Encoded examples; the fields of a record are read together."""

    shape: TextShape | None = None

    @property
    def conditions(self) -> CondSpec:
        return self.shape

    def examples(self, indices: Indices = slice(None)) -> Batch:
        assert isinstance(self.x, _Rows)
        records = self.x.records.read(np.arange(len(self))[indices])
        arrays = {name: array.astype(np.float32) for name, array in records.items()}
        return Batch(x1=arrays[LATENTS], cond=Text(arrays[TOKENS], arrays[POOLED]))
