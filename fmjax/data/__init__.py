"""Sources of examples, and shuffled batches of them."""

from typing import TypeAlias

from fmjax.data.arrays import ArrayData
from fmjax.data.cifar10 import Cifar10Data
from fmjax.data.dataset import Dataset, NoSuchSplit, Source, load
from fmjax.data.digits import DigitsData
from fmjax.data.manifest import RecordField, RecordManifest, missing_shards, prepare_records
from fmjax.data.mnist import IdxData
from fmjax.data.pairs import Pairs, open_pairs, pair_fields
from fmjax.data.pipeline import BatchIterator, Examples, batches
from fmjax.data.records import Records, open_records, write_shard
from fmjax.data.toys import ToyData

DataConfig: TypeAlias = DigitsData | ToyData | IdxData | ArrayData | Cifar10Data

__all__ = [
    "ArrayData",
    "BatchIterator",
    "Cifar10Data",
    "DataConfig",
    "Dataset",
    "DigitsData",
    "IdxData",
    "NoSuchSplit",
    "RecordField",
    "RecordManifest",
    "Examples",
    "Pairs",
    "Records",
    "Source",
    "ToyData",
    "batches",
    "load",
    "missing_shards",
    "open_pairs",
    "open_records",
    "pair_fields",
    "prepare_records",
    "write_shard",
]
