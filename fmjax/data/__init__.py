"""Sources of examples, and shuffled batches of them."""

from typing import TypeAlias

from fmjax.data.arrays import ArrayData
from fmjax.data.captioned_classes import CaptionedClasses
from fmjax.data.captioned_images import CaptionedImages
from fmjax.data.cifar10 import Cifar10Data
from fmjax.data.dataset import Captions, Dataset, NoSuchSplit, Source, load
from fmjax.data.digits import DigitsData
from fmjax.data.emoji import EmojiData
from fmjax.data.encoded import EncodedData, encoded_manifest
from fmjax.data.manifest import (
    RecordField,
    RecordManifest,
    has_records,
    missing_shards,
    prepare_records,
)
from fmjax.data.mnist import IdxData
from fmjax.data.pairs import Pairs, open_pairs, pair_fields
from fmjax.data.pipeline import BatchIterator, Examples, batches
from fmjax.data.records import Records, open_records, write_shard
from fmjax.data.tokenizer import (
    TokenizerConfig,
    WordTokenizer,
    read_word_tokenizer,
    train_tokenizer,
)
from fmjax.data.toys import ToyData

DataConfig: TypeAlias = (
    DigitsData | ToyData | IdxData | ArrayData | Cifar10Data
    | CaptionedClasses | CaptionedImages | EmojiData | EncodedData
)  # fmt: skip

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
    "Source",
    "WordTokenizer",
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
