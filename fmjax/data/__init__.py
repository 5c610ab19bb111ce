"""Sources of examples, and shuffled batches of them."""

from typing import TypeAlias

from fmjax.data.arrays import ArrayData
from fmjax.data.cifar10 import Cifar10Data
from fmjax.data.dataset import Dataset, NoSuchSplit, Source, load
from fmjax.data.digits import DigitsData
from fmjax.data.mnist import IdxData
from fmjax.data.pipeline import BatchIterator, batches
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
    "Source",
    "ToyData",
    "batches",
    "load",
]
