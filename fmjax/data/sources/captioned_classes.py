"""Captions for images of classes: each image is called by its class, in one of several wordings."""

from dataclasses import dataclass

import numpy as np

from fmjax._arrays import Conditions
from fmjax._checks import require, require_at_least, require_numbers
from fmjax._progress import Progress, Silent
from fmjax.data.dataset import SPLITS, Dataset, Split, captions_of
from fmjax.data.sources.mnist import IdxData
from fmjax.data.tokenizer import TokenizerConfig

FASHION_NAMES = (
    "a t-shirt|a tee|a short-sleeved top",
    "trousers|a pair of trousers|pants",
    "a pullover|a sweater|a jumper",
    "a dress|a gown|a long dress",
    "a coat|a jacket|an overcoat",
    "a sandal|an open shoe|a summer shoe",
    "a shirt|a blouse|a shirt with buttons",
    "a sneaker|a trainer|a running shoe",
    "a bag|a handbag|a purse",
    "an ankle boot|a boot|a winter boot",
)
"""What Fashion-MNIST's ten classes are called."""

TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "{} on a black background")


@dataclass(frozen=True)
class CaptionedClasses:
    """Images of classes, with captions that say the class; the labels stay known to metrics.

    Attributes:
        data: The images.
        names: What each class is called, several wordings apart by `|`.
        templates: Sentences about it, with `{}` where the name stands.
        seed: Which example is called what, once and for all.
        tokenizer: How captions become numbers.
    """

    data: IdxData = IdxData("fashion_mnist")
    names: tuple[str, ...] = FASHION_NAMES
    templates: tuple[str, ...] = TEMPLATES
    seed: int = 0
    tokenizer: TokenizerConfig = TokenizerConfig(num_tokens=8, vocab_size=64)

    def __post_init__(self) -> None:
        require_numbers(self, "data.")
        num_classes = self.data.shape()[1]
        right = len(self.names) == num_classes and all(map(str.strip, self.names))
        require(right, "data.names", f"be one for each of {num_classes} classes", self.names)
        right = len(self.templates) > 0 and all(text.count("{}") == 1 for text in self.templates)
        require(right, "data.templates", "be texts with {} once in each", self.templates)
        require_at_least("data.seed", self.seed, 0)

    def shape(self) -> tuple[tuple[int, ...], Conditions]:
        """The shape of one example and of its caption, without reading any."""
        return self.data.shape()[0], self.tokenizer.shape

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """Read one split, and call every image something.

        Raises:
            ValueError: If files are missing and cannot be downloaded, or are damaged.
        """
        dataset = self.data.load(split, progress=progress)
        assert dataset.labels is not None
        texts = self._texts(split, dataset.labels)
        # All that may be said, so that no word is left to chance.
        said = [text for label in range(len(self.names)) for text in self.wordings(label)]
        captions = captions_of(texts, said, self.tokenizer)
        return Dataset(dataset.x, dataset.labels, dataset.num_classes, captions=captions)

    def wordings(self, label: int) -> list[str]:
        """All that an example of this class may be called."""
        names = self.names[label].split("|")
        return [text.replace("{}", name) for text in self.templates for name in names]

    def _texts(self, split: Split, labels: np.ndarray) -> list[str]:
        # Raw bits: NumPy promises only of these that they stay the same from version to version.
        bits = np.random.PCG64([self.seed, SPLITS.index(split)]).random_raw(len(labels))
        said = [self.wordings(label) for label in range(len(self.names))]
        pairs = zip(labels.tolist(), (bits >> np.uint64(32)).tolist(), strict=True)
        return [said[label][number % len(said[label])] for label, number in pairs]
