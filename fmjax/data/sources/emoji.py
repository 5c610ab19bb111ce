"""Data set of color emoji: the images of Noto Color Emoji, captioned with Unicode names."""

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmjax._checks import MAX_SIDE, require, require_between, require_numbers, require_one_of
from fmjax._memory import require_host_memory
from fmjax._progress import Progress, Silent
from fmjax._specs import CondSpec
from fmjax.data.dataset import Dataset, NoSuchSplit, Split, tokenize_captions
from fmjax.data.sources.image_files import crop_to_square, open_image
from fmjax.data.tokenizer import TokenizerConfig

GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
_FONT, _NAMES = "NotoColorEmoji.ttf", "emoji-test.txt"
_INSTALLED = {
    _FONT: Path("/usr/share/fonts/truetype/noto"),
    _NAMES: Path("/usr/share/unicode/emoji"),
}
_LINE = re.compile(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E\S+ (.*)")
_VARIATION = 0xFE0F  # Variation selector for color, which the glyph names of the font omit.
_TEST_EVERY = 10
_PEOPLE, _TONE = ("woman", "man", "person", "girl", "boy"), " skin tone"


class Emoji(NamedTuple):
    """One emoji of Unicode's list.

    Attributes:
        group: Group of the emoji, one of `GROUPS`.
        name: Unicode name, such as "woman firefighter: dark skin tone".
        codes: Code points, without variation selectors.
    """

    group: str
    name: str
    codes: tuple[int, ...]

    @property
    def has_tone(self) -> bool:
        """Whether the emoji has one of the five skin tones."""
        return _TONE in self.name

    @property
    def caption(self) -> str:
        """Caption in natural language, such as "woman firefighter with dark skin tone"."""
        name, _, details = self.name.partition(": ")
        if name in ("keycap", "flag"):
            return f"{name} {details}"
        parts = details.split(", ") if details else []
        people = " and ".join(part for part in parts if part in _PEOPLE)
        tones = " and ".join(p.removesuffix(_TONE) for p in parts if p.endswith(_TONE))
        looks = [tones + _TONE] if tones else []
        looks += [p for p in parts if p not in _PEOPLE and not p.endswith(_TONE)]
        suffix = f"with {' and '.join(looks)}" if looks else ""
        return " ".join(filter(None, (name, people, suffix)))


@dataclass(frozen=True)
class EmojiData:
    """Color emoji on a white background, `[size, size, 3]` uint8, captioned with their names.

    The font and the list of names are read from `folder` if it is given, else from Debian's
    packages `fonts-noto-color-emoji` and `unicode-data`. The test split is a tenth of the emoji
    with a skin tone: the training split contains each word of their captions, but not the
    combination. All other emoji are in the training split.

    Attributes:
        size: Side of the images in pixels.
        groups: Unicode groups to include; empty for all.
        repeats: Number of copies of each emoji without a skin tone in the training split, to
            balance the five variants of each emoji with a skin tone.
        folder: Folder with `NotoColorEmoji.ttf` and `emoji-test.txt`.
        tokenizer: Sizes of the tokenizer of the captions.

    Reference: Google, Noto Color Emoji (SIL Open Font License); Unicode Technical Standard 51.
    """

    size: int = 32
    groups: tuple[str, ...] = ()
    repeats: int = 1
    folder: str | None = None
    tokenizer: TokenizerConfig = TokenizerConfig(num_tokens=12, vocab_size=2_048)

    def __post_init__(self) -> None:
        require_numbers(self, "data.")
        require_between("data.size", self.size, 1, MAX_SIDE)
        require_between("data.repeats", self.repeats, 1, 1_000)
        for group in self.groups:
            require_one_of("data.groups", group, GROUPS)

    def shape(self) -> tuple[tuple[int, ...], CondSpec]:
        """Return the shape of one image and the sizes of its caption, without reading files."""
        return (self.size, self.size, 3), self.tokenizer.shape

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """Render the emoji of one split.

        Raises:
            ValueError: If the font or the list of names is missing or invalid.
        """
        emojis = [e for e in _read_names(self._find(_NAMES)) if e.group in self._groups]
        selected = [emoji for emoji in emojis if _is_test(emoji) == (split == "test")]
        if emojis and not selected:
            rule = f"hold emoji of the {split} split"
            raise NoSuchSplit(f"data.groups must {rule}, got {self.groups}")
        pngs = _read_pngs(self._find(_FONT), selected)
        size = 3.0 * self.size**2 * len(pngs)
        require_host_memory("data.size", size, "images")
        x = np.stack([crop_to_square(open_image(io.BytesIO(png)), self.size) for png in pngs])
        training_texts = [emoji.caption for emoji in emojis if not _is_test(emoji)]
        copies = [1 if e.has_tone or split == "test" else self.repeats for e in selected]
        rows = np.repeat(np.arange(len(selected)), copies)
        texts = [selected[row].caption for row in rows.tolist()]
        return Dataset(x[rows], captions=tokenize_captions(texts, training_texts, self.tokenizer))

    @property
    def _groups(self) -> tuple[str, ...]:
        return self.groups or GROUPS

    def _find(self, name: str) -> Path:
        folder = _INSTALLED[name] if self.folder is None else Path(self.folder).expanduser()
        file = folder / name
        if not file.is_file():
            raise ValueError(
                f"data.folder must hold {_FONT} and {_NAMES}, unless Debian's packages "
                f"fonts-noto-color-emoji and unicode-data are installed, got no file {file}"
            )
        return file


def _is_test(emoji: Emoji) -> bool:
    if not emoji.has_tone:
        return False
    digest = hashlib.sha256(emoji.name.encode()).digest()
    return int.from_bytes(digest[:4], "big") % _TEST_EVERY == 0


def _read_names(file: Path) -> Iterator[Emoji]:
    """Read Unicode's list of emoji."""
    group = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").strip()
        elif match := _LINE.match(line):
            codes = (int(code, 16) for code in match[1].split())
            yield Emoji(group, match[2], tuple(code for code in codes if code != _VARIATION))


def _read_pngs(file: Path, emojis: list[Emoji]) -> list[bytes]:
    """Read the PNG image of each emoji from the font; sequences of code points are ligatures."""
    # Imported on use, because only this data set needs it.
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with file.open("rb") as stream:
            font: Any = TTFont(stream, lazy=True)
            glyphs, names = font["CBDT"].strikeData[0], font.getBestCmap()
            ligatures = font["GSUB"].table.LookupList.Lookup[0].SubTable[0].ligatures
            sequences = {
                (first, *ligature.Component): ligature.LigGlyph
                for first, group in ligatures.items()
                for ligature in group
            }
            pngs = []
            for emoji in emojis:
                parts = tuple(names.get(code) for code in emoji.codes)
                glyph = parts[0] if len(parts) == 1 else sequences.get(parts)
                rule = f"have an image of {emoji.name!r}"
                require(glyph in glyphs, f"file {file}", rule, "none")
                pngs.append(glyphs[glyph].imageData)
            return pngs
    except (TTLibError, KeyError, AttributeError, IndexError) as error:
        rule = "be a font of color bitmaps (CBDT)"
        raise ValueError(f"file {file} must {rule}, got {error!r}") from error
