"""Data set of images in a folder: one sub-folder per class, flat, or with captions."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fmjax._checks import (
    MAX_SIDE,
    require,
    require_at_least,
    require_between,
    require_numbers,
    require_unicode,
)
from fmjax._files import require_exists, walk
from fmjax._progress import Progress, Silent
from fmjax._specs import CondSpec, class_spec
from fmjax.data.dataset import MAX_CLASSES, SPLITS, Dataset, NoSuchSplit, Split, tokenize_captions
from fmjax.data.sources.caption_files import report_skipped, skip_reason
from fmjax.data.sources.captioned_images import CaptionedImages
from fmjax.data.sources.image_files import SUFFIXES, ImageFiles, is_test_image
from fmjax.data.sources.unreadable_images import skip_unreadable
from fmjax.data.tokenizer import TokenizerConfig

_VALIDATION = ("val", "valid", "validation")  # Not used, but no classes either.


class _Layout(NamedTuple):
    """Which folders of an image folder are splits, and which are classes.

    Attributes:
        splits: Names of the folders of the splits; empty if the split is by a hash of file names.
        class_names: Names of the class folders, sorted; empty if there are none.
    """

    splits: tuple[str, ...]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class ImageFolder:
    """Images of any size and mode in a folder, `[size, size, channels]`, decoded for each batch.

    The classes are the sub-folders of `folder`, sorted by name; they may have sub-folders
    themselves. If `folder` holds images and no sub-folders, the data have no classes. With
    `captions`, each image has a caption instead, found as described in `CaptionedImages`.

    Folders `train` and `test` are the splits if there is no other folder except one of validation
    data, which is not used. Otherwise test images are chosen by a hash of their file names,
    relative to `folder`, so that new images do not change the split of the others. Images are
    center-cropped, on a white background. Links are followed. Images that cannot be read are
    skipped and named in one line.

    Attributes:
        folder: Folder of the images.
        size: Side of the square images in pixels.
        channels: 3 for colors, 1 for gray values.
        captions: Whether the images have captions instead of classes.
        num_classes: Number of class folders; None to count them. Set it to use the config before
            the folder exists, as with `fmjax plan`.
        test_every: About one in `test_every` images is a test image.
        max_unreadable: Maximum number of unreadable images that are skipped; None for 1 % of the
            images, but at least 10.
        tokenizer: Sizes of the tokenizer of the captions.
    """

    folder: str
    size: int = 64
    channels: int = 3
    captions: bool = False
    num_classes: int | None = None
    test_every: int = 20
    max_unreadable: int | None = None
    tokenizer: TokenizerConfig = TokenizerConfig()

    def __post_init__(self) -> None:
        require_numbers(self, "data.")
        require_between("data.size", self.size, 1, MAX_SIDE)
        require(self.channels in (1, 3), "data.channels", "be 1 or 3", self.channels)
        require_at_least("data.test_every", self.test_every, 2)
        if self.max_unreadable is not None:
            require_at_least("data.max_unreadable", self.max_unreadable, 0)
        if self.num_classes is not None:
            require_between("data.num_classes", self.num_classes, 1, MAX_CLASSES)
            rule = "be left out if the images have captions"
            require(not self.captions, "data.num_classes", rule, self.num_classes)

    def shape(self) -> tuple[tuple[int, ...], CondSpec]:
        """Return the shape of one image, and the number of classes or the sizes of a caption.

        Raises:
            ValueError: If classes have to be counted and `folder` does not exist.
        """
        event_shape = (self.size, self.size, self.channels)
        if self.captions:
            return event_shape, self.tokenizer.shape
        if self.num_classes is not None:
            return event_shape, class_spec(self.num_classes)
        num_classes = len(_layout(self._folder()).class_names)
        return event_shape, class_spec(num_classes) if num_classes else None

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """Find the images of one split and check that they can be read, without decoding them.

        Raises:
            ValueError: If the folder has no images, a class folder is empty, an image has no
                caption or a caption no image, or too many images cannot be read.
        """
        folder = self._folder()
        if self.captions:
            return self._load_captioned(folder, split, progress)
        layout = _layout(folder)
        found = self._find_images(folder, layout, progress if split == "train" else Silent())
        readable = self._skip_unreadable(folder, found, progress)
        _require_every_class(folder, layout, readable, "readable images")
        names = [name for name in readable if self._split_of(name, layout) == split]
        self._require_any(folder, split, names)
        images = self._images(folder, names)
        if not layout.class_names:
            return Dataset(images)
        classes = {name: label for label, name in enumerate(layout.class_names)}
        labels = [classes[_class_of(name, layout)] for name in names]
        return Dataset(
            images,
            np.asarray(labels, np.int32),
            num_classes=len(classes),
            class_names=layout.class_names,
        )

    def _folder(self) -> Path:
        """Return the folder, which must exist."""
        folder = Path(self.folder).expanduser()
        require_exists("data.folder", folder)
        require(folder.is_dir(), "data.folder", "be a folder of images", folder)
        return folder

    def _images(self, folder: Path, names: Sequence[str]) -> ImageFiles:
        return ImageFiles([folder / name for name in names], self.size, self.channels)

    def _skip_unreadable(self, folder: Path, names: Sequence[str], progress: Progress) -> list[str]:
        return skip_unreadable(folder, names, max_unreadable=self.max_unreadable, progress=progress)

    def _split_of(self, name: str, layout: _Layout) -> str:
        if layout.splits:
            return name.split("/")[0]
        return "test" if is_test_image(name, self.test_every) else "train"

    def _require_any(self, folder: Path, split: Split, names: Sequence[str]) -> None:
        """Raise unless a split has images."""
        if names:
            return
        message = f"data.folder must hold images of the {split} split, got {folder}"
        raise NoSuchSplit(message) if split == "test" else ValueError(message)

    def _find_images(self, folder: Path, layout: _Layout, progress: Progress) -> list[str]:
        """Return the images in the folders of classes and splits, relative to `folder`."""
        found = walk(folder)
        images = [file for file in found.files if file.suffix.lower() in SUFFIXES]
        suffixes = " ".join(SUFFIXES)
        require(bool(images), f"folder {folder}", f"hold images ({suffixes})", "none")
        is_used = {file: not layout.splits or file.parts[0] in layout.splits for file in images}
        unused = [file for file in images if not is_used[file]]
        images = [file for file in images if is_used[file]]
        depth = 2 if layout.splits else 1
        outside = (
            [file for file in images if len(file.parts) <= depth] if layout.class_names else []
        )
        rule = "hold either images or class folders with images, not both"
        got = (
            f"{len(outside)} images outside class folders, the first is {min(outside, default='')}"
        )
        require(not outside, f"folder {folder}", rule, got)
        names = [file.as_posix() for file in images]
        _require_every_class(folder, layout, names, "images")
        num_classes = len(layout.class_names)
        matches = self.num_classes in (None, num_classes)
        rule = f"hold {self.num_classes} class folders (data.num_classes)"
        require(matches, f"folder {folder}", rule, num_classes)
        reasons = {f: skip_reason(f) for f in found.files if f.suffix.lower() not in SUFFIXES}
        reasons |= dict.fromkeys(unused, "images outside train and test")
        report_skipped(folder, found.skipped | reasons, progress)
        return names

    def _load_captioned(self, folder: Path, split: Split, progress: Progress) -> Dataset:
        """Load a split of images with captions."""
        data = CaptionedImages(str(folder), self.size, self.test_every, self.tokenizer)
        splits = data.splits(folder, progress if split == "train" else Silent())
        names = [name for pairs in splits.values() for name in pairs]
        suffixes = " ".join(SUFFIXES)
        require(bool(names), f"folder {folder}", f"hold images ({suffixes})", "none")
        readable = set(self._skip_unreadable(folder, names, progress))
        texts = {
            name: [(image, text) for image, text in pairs.items() if image in readable]
            for name, pairs in splits.items()
        }
        self._require_any(folder, split, [image for image, _ in texts[split]])
        images = self._images(folder, [image for image, _ in texts[split]])
        captions, training_texts = ([text for _, text in texts[name]] for name in (split, "train"))
        return Dataset(images, captions=tokenize_captions(captions, training_texts, self.tokenizer))


def _layout(folder: Path) -> _Layout:
    """Find the folders of the splits and of the classes."""
    names = _subfolders(folder)
    if "train" in names and set(names) <= {*SPLITS, *_VALIDATION}:
        splits = tuple(split for split in SPLITS if split in names)
        classes = _subfolders(folder / "train")
    else:
        splits, classes = (), names
    require_unicode(f"class folder of {folder}", *classes)
    return _Layout(splits, classes)


def _subfolders(folder: Path) -> tuple[str, ...]:
    """Return the names of the visible folders in a folder, sorted."""
    with os.scandir(folder) as entries:
        visible = (entry for entry in entries if not entry.name.startswith("."))
        return tuple(sorted(entry.name for entry in visible if entry.is_dir()))


def _class_of(name: str, layout: _Layout) -> str:
    """Return the class folder of an image."""
    return name.split("/")[1 if layout.splits else 0]


def _require_every_class(folder: Path, layout: _Layout, names: Sequence[str], images: str) -> None:
    """Raise unless every class has images, and no test image has another class.

    Args:
        folder: Folder of the images.
        layout: Splits and classes of the folder.
        names: The images, relative to `folder`.
        images: Description of the images, for the message.
    """
    if not layout.class_names:
        return
    in_train = [name for name in names if not layout.splits or name.startswith("train/")]
    empty = sorted(set(layout.class_names) - {_class_of(name, layout) for name in in_train})
    got = f"none in {', '.join(empty[:3])}{', ...' if empty[3:] else ''}"
    require(not empty, f"folder {folder}", f"hold {images} in every class folder", got)
    unknown = sorted({_class_of(name, layout) for name in names} - set(layout.class_names))
    rule = "hold the same class folders in train and test"
    require(not unknown, f"folder {folder}", rule, f"only in test: {', '.join(unknown[:3])}")
