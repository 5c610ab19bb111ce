"""Find the captions of images in lists of captions and in text files next to the images."""

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple, NotRequired, TypeAlias, TypedDict

from fmjax._checks import require
from fmjax._files import FoundFiles
from fmjax._json import check_json, parse_json
from fmjax._progress import Progress
from fmjax.data.sources.image_files import SUFFIXES

Pairs: TypeAlias = dict[str, str]
"""Image files, relative to a folder, and their captions."""

_LISTS = ("metadata.jsonl", "metadata.csv", "captions.jsonl")
_TEXT_SUFFIXES = (".txt", ".caption")  # In order of precedence.
_CAPTION_SUFFIXES = (".csv", ".json", ".jsonl", ".parquet", ".tsv", *_TEXT_SUFFIXES)
_MAX_SHOWN = 3  # Files listed in an error message.


class _Entry(TypedDict):
    """A JSON line of a caption list; other keys are ignored."""

    file_name: str
    text: NotRequired[str]
    caption: NotRequired[str]


class _Line(NamedTuple):
    """An entry of a caption list.

    Attributes:
        where: File and line, for error messages.
        name: Image file, relative to the folder of the list.
        text: The caption.
    """

    where: str
    name: str
    text: str


def read_captions(
    folder: Path, found: FoundFiles, splits: Sequence[str], progress: Progress
) -> dict[str, Pairs]:
    """Read the captions of the images in a folder.

    Args:
        folder: The folder.
        found: Result of `fmjax._files.walk` for the folder.
        splits: Names of the subfolders to read; empty to read the folder itself.
        progress: Receives messages about skipped files.

    Returns:
        The images and captions of each split, sorted by name; without splits, those of the folder
        under the key "".

    Raises:
        ValueError: If an image has no caption or a caption has no image.
    """
    files = [file for file in found.files if not splits or file.parts[0] in splits]
    top_files = [file for file in found.files if len(file.parts) == 1]
    names = {file.as_posix() for file in found.files}
    lists = [f for f in dict.fromkeys((*files, *top_files)) if f.name.lower() in _LISTS]
    listed = _read_lists(folder, lists, _Names(names))
    images = (file for file in found.files if file.suffix.lower() in SUFFIXES)
    outside = [file for file in images if splits and file.parts[0] not in splits]
    if outside:
        progress.say(
            f"warning: {folder} has folders {' and '.join(splits)}; skipped {len(outside)} images "
            f"outside them, the first is {outside[0]}"
        )
    missing = {n for n in set(listed) - names if splits and PurePosixPath(n).parts[0] not in splits}
    _require_none(folder, missing, "have an image for every caption")
    pairs, used = {}, {file.as_posix() for file in lists}
    for split in splits or ("",):
        split_files = [f.relative_to(split) for f in files if not split or f.parts[0] == split]
        prefix = f"{split}/" if split else ""
        captions = {n.removeprefix(prefix): t for n, t in listed.items() if n.startswith(prefix)}
        has_list = any(f in top_files or not split or f.parts[0] == split for f in lists)
        pairs[split], text_files = _pair(folder / split, split_files, captions, has_list)
        used |= {prefix + name for name in (*pairs[split], *text_files)}
    reasons = found.skipped | {f: skip_reason(f) for f in files if f.as_posix() not in used}
    report_skipped(folder, reasons, progress)
    return pairs


def _pair(folder: Path, files: list[Path], listed: Pairs, has_list: bool) -> tuple[Pairs, set[str]]:
    """Pair images with captions; return the pairs and the text files that were read."""
    images = {file.as_posix() for file in files if file.suffix.lower() in SUFFIXES}
    stems = {_stem(name): name for name in sorted(images, reverse=True)}
    pairs, text_files = dict(listed), set()
    for suffix in _TEXT_SUFFIXES:
        for file in files:
            name = stems.get(_stem(file.as_posix()), file.as_posix())
            is_needed = name not in pairs and (name in images or not has_list)
            if is_needed and file.suffix.lower() == suffix:
                pairs[name] = _read_text(folder / file).strip()
                if name in images:
                    text_files.add(file.as_posix())
    _require_complete(folder, files, images, pairs, text_files)
    return dict(sorted(pairs.items())), text_files


def _require_complete(
    folder: Path, files: list[Path], images: set[str], pairs: Pairs, text_files: set[str]
) -> None:
    """Raise unless each image has a caption with words, and each caption an image."""
    unread = [f for f in files if f.suffix.lower() in _CAPTION_SUFFIXES]
    unread = [f for f in unread if f.as_posix() not in text_files and f.name.lower() not in _LISTS]
    unread += [Path("..") / name for name in _LISTS if (folder.parent / name).is_file()]
    hint = f" (not read: {', '.join(map(str, unread[:_MAX_SHOWN]))})" if unread else ""
    without_image = set(pairs) - images
    hint += f" (a caption, but no image, for {min(without_image)})" if without_image else ""
    _require_none(folder, images - set(pairs), "have a caption for every image", hint)
    _require_none(folder, without_image, "have an image for every caption")
    empty = {name for name, text in pairs.items() if not text}
    _require_none(folder, empty, "have words in every caption")


def _require_none(folder: Path, names: set[str], rule: str, hint: str = "") -> None:
    """Raise unless `names`, the files that violate a rule, is empty."""
    first = min(names, default="")
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    require(not names, f"folder {folder}", rule, f"none for {first}{more}{hint}")


def skip_reason(file: Path) -> str:
    """Describe the kind of a skipped file by its suffix."""
    suffix = file.suffix.lower()
    return f"{suffix} files" if suffix else "files without a suffix"


def report_skipped(folder: Path, reasons: dict[Path, str], progress: Progress) -> None:
    """Report the number of skipped files for each reason, most frequent first."""
    if reasons:
        counts = sorted(Counter(reasons.values()).items(), key=lambda item: (-item[1], item[0]))
        text = ", ".join(f"{count} {reason}" for reason, count in counts)
        progress.say(f"skipped in {folder}: {text}, the first is {min(reasons)}")


class _Names:
    """File names, found by any Unicode normalization and slashes or backslashes."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        self._by_composed: dict[str, list[str]] = {}
        for name in self._names:
            self._by_composed.setdefault(_composed(name), []).append(name)

    def find(self, name: str) -> str:
        """Return the name of the matching file, or `name` if there is none or several."""
        for form in (name, name.replace("\\", "/")):
            matches = [form] if form in self._names else self._by_composed.get(_composed(form), [])
            if len(matches) == 1:
                return matches[0]
        return name


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _stem(name: str) -> str:
    return _composed(str(PurePosixPath(name).with_suffix("")))


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"file {file} must be UTF-8 text, got {error}") from error


def _read_lists(folder: Path, lists: list[Path], names: _Names) -> Pairs:
    """Read the captions of all lists, by image file relative to `folder`."""
    for parent in {file.parent for file in lists}:
        siblings = sorted((file.name for file in lists if file.parent == parent), key=_order)
        rule = f"hold one of {' and '.join(siblings)}"
        count = "both" if len(siblings) == 2 else "all"
        require(len(siblings) < 2, f"folder {folder / parent}", rule, count)
    pairs: Pairs = {}
    for file in lists:
        read_lines = _csv_lines if file.suffix.lower() == ".csv" else _json_lines
        for where, name, text in read_lines(folder / file):
            parts = re.split(r"[/\\]", name)
            is_inside = ".." not in parts and not PureWindowsPath(name).anchor and any(parts)
            require(is_inside, where, "name a file within the folder", repr(name))
            image = names.find((file.parent / PurePosixPath(name)).as_posix())
            require(image not in pairs, where, "name a file once", repr(name))
            pairs[image] = text.strip()
    return pairs


def _order(name: str) -> int:
    return _LISTS.index(name.lower())


def _json_lines(file: Path) -> Iterator[_Line]:
    """Read the entries of a list in JSON lines."""
    for number, line in enumerate(_read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"file {file}, line {number},"
        entry = check_json(parse_json(line, where), _Entry, where, extra=True)
        text = entry.get("text", entry.get("caption"))
        if text is None:
            raise ValueError(f'{where} must be {{"file_name": ..., "text": ...}}, got no text')
        yield _Line(where, entry["file_name"], text)


def _csv_lines(file: Path) -> Iterator[_Line]:
    """Read the entries of a list in CSV."""
    content = _read_text(file)
    delimiter = max(",;\t", key=content.partition("\n")[0].count)
    # Strict, because an unclosed quote would otherwise turn the rest of the file into one caption.
    rows = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = [name.strip().lower() for name in next(rows, [])]
        text = next((name for name in ("text", "caption") if name in columns), None)
        has_columns = "file_name" in columns and text is not None
        require(has_columns, f"file {file}", "have columns file_name and text", columns)
        for row in filter(None, rows):
            where = f"file {file}, line {rows.line_num},"
            rule = f"have {len(columns)} values, with quotes around those that hold {delimiter!r}"
            require(len(row) == len(columns), where, rule, len(row))
            entry = dict(zip(columns, row, strict=True))
            yield _Line(where, entry["file_name"].strip(), entry[str(text)])
    except csv.Error as error:
        where = f"file {file}, line {rows.line_num},"
        raise ValueError(f"{where} must be a line of a .csv file, got {error}") from error
