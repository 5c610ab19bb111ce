"""A folder of images with captions."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from fmjax._arrays import Conditions
from fmjax._checks import MAX_SIDE, require, require_at_least, require_between, require_numbers
from fmjax._files import require_exists, walk
from fmjax._progress import Progress, Silent
from fmjax.data.dataset import SPLITS, Dataset, NoSuchSplit, Split, captions_of
from fmjax.data.sources.caption_files import Pairs, read_captions
from fmjax.data.sources.image_files import ImageFiles
from fmjax.data.tokenizer import TokenizerConfig


@dataclass(frozen=True)
class CaptionedImages:
    """Images of any size with captions, `[size, size, 3]`, decoded batch after batch.

    The caption of an image `NAME.png` (or .jpg, ..) is, in this order:

    1. its line in a list, `metadata.jsonl` or `captions.jsonl` with lines such as
       `{"file_name": "cats/1.png", "text": "a red cat"}` (or "caption"), or `metadata.csv` with
       these columns. A list is in the folder of the image or in one above it, up to `folder`, and
       names files from where it is. A folder has one list at most.
    2. the file `NAME.txt` next to it.
    3. the file `NAME.caption` next to it.

    Links are followed. Files that are none of these are left out, and a line says how many. If
    there are folders `train` and `test` they are the splits; else a share of the images is the test
    split, chosen by their names. The middle of each image is taken, on white.

    Attributes:
        folder: With the images.
        size: Side of the squares that they become.
        test_every: About one image in so many is a test image.
        tokenizer: How captions become numbers.
    """

    folder: str
    size: int = 64
    test_every: int = 20
    tokenizer: TokenizerConfig = TokenizerConfig()

    def __post_init__(self) -> None:
        require_numbers(self, "data.")
        require_between("data.size", self.size, 1, MAX_SIDE)
        require_at_least("data.test_every", self.test_every, 2)

    def shape(self) -> tuple[tuple[int, ...], Conditions]:
        """The shape of one example and of its caption, without reading any."""
        return (self.size, self.size, 3), self.tokenizer.shape

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """Find the images of one split and read their captions; no image is decoded yet.

        Raises:
            ValueError: If images and captions do not belong together, one to one.
        """
        folder = Path(self.folder).expanduser()
        require_exists("data.folder", folder)
        require(folder.is_dir(), "data.folder", "be a folder of images with captions", folder)
        splits = self._splits(folder, progress if split == "train" else Silent())
        if not splits[split]:
            raise NoSuchSplit(f"data.folder must hold images to {split} on, got {folder}")
        images = ImageFiles([folder / name for name in splits[split]], self.size)
        texts, learned = (list(splits[name].values()) for name in (split, "train"))
        return Dataset(images, captions=captions_of(texts, learned, self.tokenizer))

    def _splits(self, folder: Path, progress: Progress) -> dict[str, Pairs]:
        found = walk(folder)
        if (folder / "train").is_dir():
            by_split = read_captions(folder, found, SPLITS, progress)
            return {
                split: {f"{split}/{name}": text for name, text in pairs.items()}
                for split, pairs in by_split.items()
            }
        (pairs,) = read_captions(folder, found, (), progress).values()
        splits: dict[str, Pairs] = {split: {} for split in SPLITS}
        for name, text in pairs.items():
            digest = hashlib.sha256(os.fsencode(name)).digest()
            is_test = int.from_bytes(digest[:8], "big") % self.test_every == 0
            splits["test" if is_test else "train"][name] = text
        return splits
