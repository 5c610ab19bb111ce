"""Data set of captioned images in a folder."""

from dataclasses import dataclass
from pathlib import Path

from fmjax._checks import MAX_SIDE, require, require_at_least, require_between, require_numbers
from fmjax._files import require_exists, walk
from fmjax._progress import Progress, Silent
from fmjax._specs import CondSpec
from fmjax.data.dataset import SPLITS, Dataset, NoSuchSplit, Split, tokenize_captions
from fmjax.data.sources.caption_files import Pairs, read_captions
from fmjax.data.sources.image_files import ImageFiles, is_test_image
from fmjax.data.tokenizer import TokenizerConfig


@dataclass(frozen=True)
class CaptionedImages:
    """Captioned images in a folder, `[size, size, 3]`, decoded when a batch is loaded.

    The caption of an image `NAME.png` (or another image format) is the first of:

    1. Its entry in a list: `metadata.jsonl` or `captions.jsonl` with lines such as
       `{"file_name": "cats/1.png", "text": "a red cat"}` (or "caption"), or `metadata.csv` with
       these columns. A list is in the folder of the image or in one of its parents, up to
       `folder`; file names are relative to the list. Each folder may have one list.
    2. The file `NAME.txt` in the same folder.
    3. The file `NAME.caption` in the same folder.

    Links are followed. Other files are skipped, and their number is reported. Folders `train` and
    `test` are the splits if they exist; otherwise test images are chosen by a hash of their names.
    Images are center-cropped, on a white background.

    Attributes:
        folder: Folder of the images.
        size: Side of the square images in pixels.
        test_every: About one in `test_every` images is a test image.
        tokenizer: Sizes of the tokenizer of the captions.
    """

    folder: str
    size: int = 64
    test_every: int = 20
    tokenizer: TokenizerConfig = TokenizerConfig()

    def __post_init__(self) -> None:
        require_numbers(self, "data.")
        require_between("data.size", self.size, 1, MAX_SIDE)
        require_at_least("data.test_every", self.test_every, 2)

    def shape(self) -> tuple[tuple[int, ...], CondSpec]:
        """Return the shape of one image and the sizes of its caption, without reading files."""
        return (self.size, self.size, 3), self.tokenizer.shape

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """Find the images of one split and read their captions, without decoding images.

        Raises:
            ValueError: If an image has no caption or a caption has no image.
        """
        folder = Path(self.folder).expanduser()
        require_exists("data.folder", folder)
        require(folder.is_dir(), "data.folder", "be a folder of images with captions", folder)
        splits = self.splits(folder, progress if split == "train" else Silent())
        if not splits[split]:
            raise NoSuchSplit(f"data.folder must hold images of the {split} split, got {folder}")
        images = ImageFiles([folder / name for name in splits[split]], self.size)
        texts, training_texts = (list(splits[name].values()) for name in (split, "train"))
        return Dataset(images, captions=tokenize_captions(texts, training_texts, self.tokenizer))

    def splits(self, folder: Path, progress: Progress) -> dict[str, Pairs]:
        """Return the images of each split, relative to `folder`, and their captions."""
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
            splits["test" if is_test_image(name, self.test_every) else "train"][name] = text
        return splits
