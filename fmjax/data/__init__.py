"""Data sets, and iterators over shuffled batches of them."""

from typing import TypeAlias

from fmjax._arrays import Text as Text, TextPart as TextPart, TextShape as TextShape
from fmjax.data.dataset import (
    Captions as Captions,
    Dataset as Dataset,
    DataSource as DataSource,
    NoSuchSplit as NoSuchSplit,
    load as load,
)
from fmjax.data.pipeline import (
    BatchIterator as BatchIterator,
    Examples as Examples,
    SourcePoints as SourcePoints,
    batches as batches,
)
from fmjax.data.records.manifest import (
    RecordField as RecordField,
    RecordManifest as RecordManifest,
    has_records as has_records,
    missing_shards as missing_shards,
    prepare_records as prepare_records,
)
from fmjax.data.records.pairs import (
    Pairs as Pairs,
    open_pairs as open_pairs,
    pair_fields as pair_fields,
)
from fmjax.data.records.records import (
    Records as Records,
    open_records as open_records,
    write_shard as write_shard,
)
from fmjax.data.sources.arrays import ArrayData as ArrayData
from fmjax.data.sources.captioned_classes import CaptionedClasses as CaptionedClasses
from fmjax.data.sources.captioned_images import CaptionedImages as CaptionedImages
from fmjax.data.sources.cifar10 import Cifar10Data as Cifar10Data
from fmjax.data.sources.digits import DigitsData as DigitsData
from fmjax.data.sources.emoji import EmojiData as EmojiData
from fmjax.data.sources.encoded import (
    EncodedData as EncodedData,
    encoded_manifest as encoded_manifest,
)
from fmjax.data.sources.image_folder import ImageFolder as ImageFolder
from fmjax.data.sources.mnist import IdxData as IdxData
from fmjax.data.sources.toys import ToyData as ToyData
from fmjax.data.standardization import (
    Moments as Moments,
    Standardization as Standardization,
    StandardizedDataset as StandardizedDataset,
    fit_standardization as fit_standardization,
    read_standardization as read_standardization,
)
from fmjax.data.tokenizer import (
    TokenizerConfig as TokenizerConfig,
    WordTokenizer as WordTokenizer,
    read_word_tokenizer as read_word_tokenizer,
    train_tokenizer as train_tokenizer,
)

DataConfig: TypeAlias = (
    DigitsData
    | ToyData
    | IdxData
    | ArrayData
    | Cifar10Data
    | CaptionedClasses
    | CaptionedImages
    | ImageFolder
    | EmojiData
    | EncodedData
)
