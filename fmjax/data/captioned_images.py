"""A folder of images with captions."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from fmjax._arrays import Conditions
from fmjax._checks import require, require_at_least
from fmjax._files import is_hidden, require_exists
from fmjax._json import check_json, parse_json
from fmjax._progress import Progress, Silent
from fmjax.data.dataset import SPLITS, Dataset, NoSuchSplit, Split, captions_of
from fmjax.data.image_files import SUFFIXES, ImageFiles
from fmjax.data.tokenizer import TokenizerConfig

_LISTS = ("metadata.jsonl", "captions.jsonl")


class _Entry(TypedDict):
    """A line of a list; other keys are ignored."""

    file_name: str
    text: NotRequired[str]
    caption: NotRequired[str]


_Pairs = dict[str, str]  # Names of images within the folder, and their captions.


@dataclass(frozen=True)
class CaptionedImages:
    """Images of any size with captions, `[size, size, 3]`, decoded batch after batch.

    A caption is `NAME.txt` beside the image `NAME.png` (or .jpg, ..), or a line of
    `metadata.jsonl` or `captions.jsonl`, `{"file_name": "cats/1.png", "text": "a red cat"}` (or
    "caption"). If there are folders `train` and `test` they are the splits; else a share of the
    images is the test split, chosen by their names. The middle of each image is taken, on white.

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
        require_at_least("data.size", self.size, 1)
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

    def _splits(self, folder: Path, progress: Progress) -> dict[str, _Pairs]:
        if (folder / "train").is_dir():
            outside = [path for path in _visible(folder, SUFFIXES) if path.parts[0] not in SPLITS]
            if outside:
                progress.say(f"warning: {folder} has folders train and test; {len(outside)} images "
                             f"outside them are left out, the first {outside[0]}")  # fmt: skip
            return {
                split: {f"{split}/{name}": text for name, text in _read(folder / split).items()}
                for split in SPLITS
            }
        splits: dict[str, _Pairs] = {split: {} for split in SPLITS}
        for name, text in _read(folder).items():
            digest = hashlib.sha256(name.encode()).digest()
            is_test = int.from_bytes(digest[:8], "big") % self.test_every == 0
            splits["test" if is_test else "train"][name] = text
        return splits


def _read(folder: Path) -> _Pairs:
    """Names within the folder and captions, in the order of the names."""
    files = {path.as_posix() for path in _visible(folder, SUFFIXES)}
    lists = [folder / name for name in _LISTS if (folder / name).is_file()]
    require(len(lists) < 2, f"folder {folder}", f"hold one of {' and '.join(_LISTS)}", "both")
    pairs = _listed(lists[0]) if lists else _beside(folder, files)
    _refuse(folder, files - set(pairs), "have a caption for every image")
    _refuse(folder, set(pairs) - files, "have an image for every caption")
    _refuse(folder, {n for n, text in pairs.items() if not text}, "have words in every caption")
    return dict(sorted(pairs.items()))


def _refuse(folder: Path, names: set[str], rule: str) -> None:
    first = min(names, default="")
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    require(not names, f"folder {folder}", rule, f"none for {first}{more}")


def _beside(folder: Path, files: set[str]) -> _Pairs:
    images = {str(Path(name).with_suffix("")): name for name in sorted(files, reverse=True)}
    return {
        images.get(str(path.with_suffix("")), path.as_posix()): _text(folder / path).strip()
        for path in _visible(folder, (".txt",))
    }


def _visible(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of some endings, within the folder: none that is hidden, nor in a hidden folder."""
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    return sorted(p for p in found if p.suffix.lower() in suffixes and not is_hidden(p))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"file {path} must be UTF-8 text, got {error}") from error


def _listed(path: Path) -> _Pairs:
    pairs: _Pairs = {}
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"file {path}, line {number},"
        entry = check_json(parse_json(line, where), _Entry, where, extra=True)
        name, text = entry["file_name"], entry.get("text", entry.get("caption"))
        if text is None:
            raise ValueError(f'{where} must be {{"file_name": .., "text": ..}}, got no text')
        inside = (path.parent / name).resolve().is_relative_to(path.parent.resolve())
        inside = inside and not Path(name).is_absolute()
        require(inside, where, "name a file within the folder", repr(name))
        name = (path.parent / name).relative_to(path.parent).as_posix()
        require(name not in pairs, where, "name a file once", repr(name))
        pairs[name] = text.strip()
    return pairs
