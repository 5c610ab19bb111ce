"""Latents and encoded captions, as `fmjax encode` wrote them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fmjax._arrays import Batch, Conditions, Text, TextShape
from fmjax._checks import require, require_numbers
from fmjax._files import require_exists
from fmjax._json import check_json
from fmjax._progress import Progress, Silent
from fmjax.data.dataset import Dataset, NoSuchSplit, Split
from fmjax.data.records.manifest import RecordField, RecordManifest
from fmjax.data.records.records import Records, open_records

LATENTS, TOKENS, POOLED = "latents", "tokens", "pooled"


@dataclass(frozen=True)
class EncodedData:
    """Images as an autoencoder's latents, with their captions as text encoders gave them.

    A folder that `fmjax encode` wrote: ArrayRecord shards under `train` and `test`, read at random
    and never whole.

    Attributes:
        folder: With these.
        event_shape: Of one example's latents; None for whatever the files hold. Given, with the
            text, it is known where there are no files yet, as for `fmjax plan`.
        text: The sizes of a text.
    """

    folder: str
    event_shape: tuple[int, ...] | None = None
    text: TextShape | None = None

    def __post_init__(self) -> None:
        require_numbers(self, "data.")

    def shape(self) -> tuple[tuple[int, ...], Conditions]:
        """The shape of one example's latents, and the sizes of its text."""
        if self.event_shape is not None and self.text is not None:
            return self.event_shape, self.text
        train = self.load("train")
        return train.event_shape, train.conditions

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """Open one split; nothing is read yet.

        Raises:
            ValueError: If the folder has no such split, or it is damaged or of something else.
        """
        folder = Path(self.folder).expanduser()
        require_exists("data.folder", folder)
        require(folder.is_dir(), "data.folder", "be a folder that fmjax encode wrote", folder)
        if not (folder / split).is_dir():
            raise NoSuchSplit(
                f"data.folder must hold {split}, as fmjax encode writes it, got {folder}"
            )
        records = open_records(folder / split)
        fields = {one.name for one in records.manifest.fields}
        wanted = {LATENTS, TOKENS, POOLED}
        rule = f"hold {', '.join(sorted(wanted))}"
        require(fields == wanted, f"folder {folder / split}", rule, ", ".join(sorted(fields)))
        rows = {name: _Rows(records, name) for name in wanted}
        event_shape = rows[LATENTS].shape[1:]
        text = _text_shape(folder / split, records.manifest.about)
        # Who names sizes need not name whose text is whose.
        sizes = text if self.text is None or self.text.parts else replace(text, parts=())
        for asked, holds in ((self.event_shape, event_shape), (self.text, sizes)):
            rule = f"hold examples of {asked}"
            require(asked in (None, holds), f"folder {folder / split}", rule, holds)
        return _Encoded(rows[LATENTS], text=Text(rows[TOKENS], rows[POOLED]), shape=text)


def encoded_manifest(
    event_shape: tuple[int, ...],
    text: TextShape,
    num_examples: int,
    *,
    dtype: str,
    examples_per_shard: int,
    about: dict[str, Any],
) -> RecordManifest:
    """What a split of encoded examples holds; `about` says what made it."""
    fields = (
        RecordField(LATENTS, dtype, event_shape),
        RecordField(TOKENS, dtype, (text.num_tokens, text.width)),
        RecordField(POOLED, dtype, (text.pooled_width,)),
    )
    about = {**about, "text": text.as_json()}
    return RecordManifest(fields, num_examples, examples_per_shard, about)


def _text_shape(folder: Path, about: Mapping[str, Any]) -> TextShape:
    return check_json(about.get("text"), TextShape, f"text of the records in {folder}")


@dataclass(frozen=True, eq=False)
class _Rows:
    """One field of all records, read when it is asked for."""

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
        return next(one for one in self.records.manifest.fields if one.name == self.name)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, indices: Any) -> np.ndarray:
        every = np.arange(len(self.records))[indices]
        return self.records.read(np.atleast_1d(every))[self.name].astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Encoded(Dataset):
    """Records whose fields are read together."""

    shape: TextShape | None = None

    @property
    def conditions(self) -> Conditions:
        return self.shape

    def examples(self, indices: slice | np.ndarray = slice(None)) -> Batch:
        assert isinstance(self.x, _Rows)
        read = self.x.records.read(np.arange(len(self))[indices])
        found = {name: array.astype(np.float32) for name, array in read.items()}
        return Batch(x1=found[LATENTS], cond=Text(found[TOKENS], found[POOLED]))
