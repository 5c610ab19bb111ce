"""Data sets, and iterators over shuffled batches of them."""

from typing import TypeAlias

from fmjax._arrays import Text, TextPart, TextShape
from fmjax.data.dataset import Captions, Dataset, DataSource, NoSuchSplit, load
from fmjax.data.pipeline import BatchIterator, Examples, batches
from fmjax.data.records.manifest import (
    RecordField,
    RecordManifest,
    has_records,
    missing_shards,
    prepare_records,
)
from fmjax.data.records.pairs import Pairs, open_pairs, pair_fields
from fmjax.data.records.records import Records, open_records, write_shard
from fmjax.data.sources.arrays import ArrayData
from fmjax.data.sources.captioned_classes import CaptionedClasses
from fmjax.data.sources.captioned_images import CaptionedImages
from fmjax.data.sources.cifar10 import Cifar10Data
from fmjax.data.sources.digits import DigitsData
from fmjax.data.sources.emoji import EmojiData
from fmjax.data.sources.encoded import EncodedData, encoded_manifest
from fmjax.data.sources.mnist import IdxData
from fmjax.data.sources.toys import ToyData
from fmjax.data.tokenizer import (
    TokenizerConfig,
    WordTokenizer,
    read_word_tokenizer,
    train_tokenizer,
)

DataConfig: TypeAlias = (
    DigitsData
    | ToyData
    | IdxData
    | ArrayData
    | Cifar10Data
    | CaptionedClasses
    | CaptionedImages
    | EmojiData
    | EncodedData
)

__all__ = [
    "ArrayData",
    "BatchIterator",
    "CaptionedClasses",
    "CaptionedImages",
    "Captions",
    "Cifar10Data",
    "DataConfig",
    "Dataset",
    "DigitsData",
    "EmojiData",
    "EncodedData",
    "IdxData",
    "NoSuchSplit",
    "RecordField",
    "RecordManifest",
    "Examples",
    "Pairs",
    "Records",
    "DataSource",
    "WordTokenizer",
    "Text",
    "TextPart",
    "TextShape",
    "TokenizerConfig",
    "ToyData",
    "batches",
    "encoded_manifest",
    "has_records",
    "load",
    "missing_shards",
    "open_pairs",
    "open_records",
    "pair_fields",
    "prepare_records",
    "read_word_tokenizer",
    "train_tokenizer",
    "write_shard",
]
