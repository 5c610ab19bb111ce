"""Class-labeled images with generated captions, which name the class in several wordings."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from fmjax._checks import require, require_at_least, require_numbers
from fmjax._progress import Progress, Silent
from fmjax._specs import CondSpec, num_classes as num_classes_of
from fmjax.data.dataset import SPLITS, Dataset, Split, tokenize_captions
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
"""Names of the ten classes of Fashion-MNIST; alternatives are separated by `|`."""

TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "{} on a black background")


@dataclass(frozen=True)
class CaptionedClasses:
    """Class-labeled images with generated captions; metrics can still use the labels.

    Attributes:
        data: The images and their class labels.
        names: Names of each class; alternatives are separated by `|`.
        templates: Captions with the placeholder `{}` for the name.
        seed: Seed of the choice of a caption for each example.
        tokenizer: Sizes of the tokenizer of the captions.
    """

    data: IdxData = IdxData("fashion_mnist")
    names: tuple[str, ...] = FASHION_NAMES
    templates: tuple[str, ...] = TEMPLATES
    seed: int = 0
    tokenizer: TokenizerConfig = TokenizerConfig(num_tokens=8, vocab_size=64)

    def __post_init__(self) -> None:
        require_numbers(self, "data.")
        num_classes = num_classes_of(self.data.shape()[1])
        is_valid = len(self.names) == num_classes and all(map(str.strip, self.names))
        rule = f"hold a name for each of {num_classes} classes"
        require(is_valid, "data.names", rule, self.names)
        is_valid = bool(self.templates) and all(text.count("{}") == 1 for text in self.templates)
        require(is_valid, "data.templates", "be texts that contain {} once", self.templates)
        require_at_least("data.seed", self.seed, 0)

    def shape(self) -> tuple[tuple[int, ...], CondSpec]:
        """Return the shape of one image and the sizes of its caption, without reading files."""
        return self.data.shape()[0], self.tokenizer.shape

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """Read one split and choose a caption for each image.

        Raises:
            ValueError: If files are missing and cannot be downloaded, or are damaged.
        """
        dataset = self.data.load(split, progress=progress)
        assert dataset.labels is not None
        texts = self._texts(split, dataset.labels)
        # Learn from all possible captions: the vocabulary must not depend on the sampled ones.
        possible = [text for label in range(len(self.names)) for text in self.wordings(label)]
        captions = tokenize_captions(texts, possible, self.tokenizer)
        class_names = tuple(name.split("|")[0] for name in self.names)
        return dataclasses.replace(dataset, captions=captions, class_names=class_names)

    def wordings(self, label: int) -> list[str]:
        """Return all possible captions of a class."""
        names = self.names[label].split("|")
        return [text.replace("{}", name) for text in self.templates for name in names]

    def _texts(self, split: Split, labels: np.ndarray) -> list[str]:
        """Choose a caption for each example."""
        # Only raw bits are guaranteed to be the same in every version of NumPy.
        bits = np.random.PCG64([self.seed, SPLITS.index(split)]).random_raw(len(labels))
        wordings = [self.wordings(label) for label in range(len(self.names))]
        pairs = zip(labels.tolist(), (bits >> np.uint64(32)).tolist(), strict=True)
        return [wordings[label][number % len(wordings[label])] for label, number in pairs]
