"""Which image has which caption: lists of captions, and files of text next to the images."""

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple, NotRequired, TypeAlias, TypedDict

from fmjax._checks import require
from fmjax._files import Found
from fmjax._json import check_json, parse_json
from fmjax._progress import Progress
from fmjax.data.sources.image_files import SUFFIXES

Pairs: TypeAlias = dict[str, str]
"""Names of images within a folder, and their captions."""

_LISTS = ("metadata.jsonl", "metadata.csv", "captions.jsonl")
_TEXTS = (".txt", ".caption")  # The first one found is read.
_LIKE_LISTS = (".csv", ".json", ".jsonl", ".parquet", ".tsv", *_TEXTS)
_SHOWN = 3  # Files named in an error.


class _Entry(TypedDict):
    """A line of a list; other keys are ignored."""

    file_name: str
    text: NotRequired[str]
    caption: NotRequired[str]


class _Line(NamedTuple):
    """A line of a list: where it is for errors, the image, the caption."""

    where: str
    name: str
    text: str


def read_captions(
    folder: Path, found: Found, splits: Sequence[str], progress: Progress
) -> dict[str, Pairs]:
    """Read the captions of the images in a folder.

    Args:
        folder: The folder.
        found: What `fmjax._files.walk` found in it.
        splits: Names of folders in it that are read; none reads the folder itself.
        progress: Receives one line about the files that are left out.

    Returns:
        The images and captions of each split, in the order of the names; without splits those of
        the folder under the key "".

    Raises:
        ValueError: If images and captions do not belong together, one to one.
    """
    inside = [path for path in found.files if not splits or path.parts[0] in splits]
    top = [path for path in found.files if len(path.parts) == 1]
    names = {path.as_posix() for path in found.files}
    lists = [p for p in dict.fromkeys((*inside, *top)) if p.name.lower() in _LISTS]
    listed = _listed(folder, lists, _Names(names))
    images = (path for path in found.files if path.suffix.lower() in SUFFIXES)
    outside = [path for path in images if splits and path.parts[0] not in splits]
    if outside:
        progress.say(
            f"warning: {folder} has folders {' and '.join(splits)}; {len(outside)} images outside "
            f"them are left out, the first {outside[0]}"
        )
    strays = {n for n in set(listed) - names if splits and PurePosixPath(n).parts[0] not in splits}
    _refuse(folder, strays, "have an image for every caption")
    pairs, used = {}, {path.as_posix() for path in lists}
    for split in splits or ("",):
        part = folder / split
        here = [path.relative_to(split) for path in inside if not split or path.parts[0] == split]
        start = f"{split}/" if split else ""
        own = {n.removeprefix(start): t for n, t in listed.items() if n.startswith(start)}
        has_list = any(path in top or not split or path.parts[0] == split for path in lists)
        pairs[split], read = _paired(part, here, own, has_list)
        used |= {start + name for name in (*pairs[split], *read)}
    reasons = found.skipped | {p: _reason(p) for p in inside if p.as_posix() not in used}
    _say_what_is_left_out(folder, reasons, progress)
    return pairs


def _paired(
    folder: Path, files: list[Path], listed: Pairs, has_list: bool
) -> tuple[Pairs, set[str]]:
    """The captions of the images among some files, and which files of text were read."""
    images = {path.as_posix() for path in files if path.suffix.lower() in SUFFIXES}
    stems = {_stem(name): name for name in sorted(images, reverse=True)}
    pairs, read = dict(listed), set()
    for suffix in _TEXTS:
        for path in files:
            name = stems.get(_stem(path.as_posix()), path.as_posix())
            wanted = name not in pairs and (name in images or not has_list)
            if wanted and path.suffix.lower() == suffix:
                pairs[name] = _text(folder / path).strip()
                if name in images:
                    read.add(path.as_posix())
    without = images - set(pairs)
    unread = [p for p in files if p.suffix.lower() in _LIKE_LISTS and p.as_posix() not in read]
    unread = [path for path in unread if path.name.lower() not in _LISTS]
    unread += [Path("..") / name for name in _LISTS if (folder.parent / name).is_file()]
    more = f" (not read: {', '.join(map(str, unread[:_SHOWN]))})" if unread else ""
    missing = set(pairs) - images
    more += f" (a caption, but no image, for {min(missing)})" if missing else ""
    _refuse(folder, without, "have a caption for every image", more)
    _refuse(folder, missing, "have an image for every caption")
    _refuse(folder, {n for n, text in pairs.items() if not text}, "have words in every caption")
    return dict(sorted(pairs.items())), read


def _refuse(folder: Path, names: set[str], rule: str, hint: str = "") -> None:
    first = min(names, default="")
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    require(not names, f"folder {folder}", rule, f"none for {first}{more}{hint}")


def _reason(path: Path) -> str:
    suffix = path.suffix.lower()
    return f"{suffix} files" if suffix else "files without an ending"


def _say_what_is_left_out(folder: Path, reasons: dict[Path, str], progress: Progress) -> None:
    if reasons:
        kinds = sorted(Counter(reasons.values()).items(), key=lambda each: (-each[1], each[0]))
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds)
        progress.say(f"left out of {folder}: {counts}, the first is {min(reasons)}")


class _Names:
    """Finds the file that a list means, whatever the Unicode form and the slashes of the name."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        self._composed: dict[str, list[str]] = {}
        for name in self._names:
            self._composed.setdefault(_composed(name), []).append(name)

    def find(self, name: str) -> str:
        """The file's name; `name` itself if there is no such file."""
        for form in (name, name.replace("\\", "/")):
            several = [form] if form in self._names else self._composed.get(_composed(form), [])
            if len(several) == 1:
                return several[0]
        return name


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _stem(name: str) -> str:
    return _composed(str(PurePosixPath(name).with_suffix("")))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"file {path} must be UTF-8 text, got {error}") from error


def _listed(folder: Path, lists: list[Path], names: _Names) -> Pairs:
    """The captions of all lists, by the names of the images within the folder."""
    for below in {path.parent for path in lists}:
        some = sorted((path.name for path in lists if path.parent == below), key=_order)
        found = "both" if len(some) == 2 else "all"
        require(
            len(some) < 2, f"folder {folder / below}", f"hold one of {' and '.join(some)}", found
        )
    pairs: Pairs = {}
    for path in lists:
        read = _csv_lines if path.suffix.lower() == ".csv" else _json_lines
        for where, name, text in read(folder / path):
            parts = re.split(r"[/\\]", name)
            inside = ".." not in parts and not PureWindowsPath(name).anchor and any(parts)
            require(inside, where, "name a file within the folder", repr(name))
            found = names.find((path.parent / PurePosixPath(name)).as_posix())
            require(found not in pairs, where, "name a file once", repr(name))
            pairs[found] = text.strip()
    return pairs


def _order(name: str) -> int:
    return _LISTS.index(name.lower())


def _json_lines(path: Path) -> Iterator[_Line]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"file {path}, line {number},"
        entry = check_json(parse_json(line, where), _Entry, where, extra=True)
        text = entry.get("text", entry.get("caption"))
        if text is None:
            raise ValueError(f'{where} must be {{"file_name": .., "text": ..}}, got no text')
        yield _Line(where, entry["file_name"], text)


def _csv_lines(path: Path) -> Iterator[_Line]:
    content = _text(path)
    delimiter = max(",;\t", key=content.partition("\n")[0].count)
    # Strict: a quote that is not closed would take the rest of the file as one caption.
    rows = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = [name.strip().lower() for name in next(rows, [])]
        text = next((name for name in ("text", "caption") if name in columns), None)
        right = "file_name" in columns and text is not None
        require(right, f"file {path}", "have columns file_name and text", columns)
        for row in filter(None, rows):
            where = f"file {path}, line {rows.line_num},"
            rule = f"have {len(columns)} values, with quotes around those that hold {delimiter!r}"
            require(len(row) == len(columns), where, rule, len(row))
            entry = dict(zip(columns, row, strict=True))
            yield _Line(where, entry["file_name"].strip(), entry[str(text)])
    except csv.Error as error:
        where = f"file {path}, line {rows.line_num},"
        raise ValueError(f"{where} must be a line of a .csv file, got {error}") from error
