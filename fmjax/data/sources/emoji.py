"""Colour emoji with their names: Noto's pictures, called as Unicode calls them."""

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmjax._arrays import Conditions
from fmjax._checks import (
    MAX_SIDE,
    require,
    require_between,
    require_numbers,
    require_one_of,
)
from fmjax._memory import require_host_memory
from fmjax._progress import Progress, Silent
from fmjax.data.dataset import Dataset, NoSuchSplit, Split, captions_of
from fmjax.data.sources.image_files import open_image, squared
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
_VARIATION = 0xFE0F  # "Show me in colour", which the font's names leave out.
_TEST_EVERY = 10
_PEOPLE, _TONE = ("woman", "man", "person", "girl", "boy"), " skin tone"


class Emoji(NamedTuple):
    """One line of Unicode's list.

    Attributes:
        group: One of `GROUPS`.
        name: As Unicode calls it: "woman firefighter: dark skin tone".
        codes: Its code points, without those that only ask for colour.
    """

    group: str
    name: str
    codes: tuple[int, ...]

    @property
    def has_tone(self) -> bool:
        """Whether its skin is of one of five tones, not yellow."""
        return _TONE in self.name

    @property
    def caption(self) -> str:
        """Its name as one would say it: "woman firefighter with dark skin tone"."""
        name, _, more = self.name.partition(": ")
        if name in ("keycap", "flag"):
            return f"{name} {more}"
        parts = more.split(", ") if more else []
        people = " and ".join(part for part in parts if part in _PEOPLE)
        tones = " and ".join(p.removesuffix(_TONE) for p in parts if p.endswith(_TONE))
        looks = [tones + _TONE] if tones else []
        looks += [p for p in parts if p not in _PEOPLE and not p.endswith(_TONE)]
        said = f"with {' and '.join(looks)}" if looks else ""
        return " ".join(filter(None, (name, people, said)))


@dataclass(frozen=True)
class EmojiData:
    """Colour emoji on white, `[size, size, 3]` uint8, with their names as captions.

    The font and the list of names are looked for in `folder` if one is given, else where Debian's
    packages `fonts-noto-color-emoji` and `unicode-data` put them. A tenth of those that differ from
    another by a skin tone alone is the test split: pictures of which every word was learned, but
    not together. All others are trained on.

    Attributes:
        size: Side of the pictures.
        groups: Only these of Unicode's groups; empty for all.
        repeats: So often a picture without a skin tone comes in the training split, for one of
            each with one: of those there are five that differ in nothing else.
        folder: With `NotoColorEmoji.ttf` and `emoji-test.txt`.
        tokenizer: How captions become numbers.

    Source: Google, Noto Color Emoji (SIL Open Font License); Unicode Technical Standard 51.
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

    def shape(self) -> tuple[tuple[int, ...], Conditions]:
        """The shape of one example and of its caption, without reading any."""
        return (self.size, self.size, 3), self.tokenizer.shape

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """Draw the pictures of one split.

        Raises:
            ValueError: If the font or the list is missing or something else.
        """
        listed = [one for one in _listed(self._find(_NAMES)) if one.group in self._groups]
        chosen = [one for one in listed if _is_test(one) == (split == "test")]
        if listed and not chosen:
            raise NoSuchSplit(f"data.groups must hold emoji to {split} on, got {self.groups}")
        pictures = _pictures(self._find(_FONT), chosen)
        size = 3.0 * self.size**2 * len(pictures)
        require_host_memory("data.size", size, "pictures")
        x = np.stack([squared(open_image(io.BytesIO(p)), self.size) for p in pictures])
        learned = [one.caption for one in listed if not _is_test(one)]
        often = [1 if one.has_tone or split == "test" else self.repeats for one in chosen]
        rows = np.repeat(np.arange(len(chosen)), often)
        texts = [chosen[row].caption for row in rows.tolist()]
        return Dataset(x[rows], captions=captions_of(texts, learned, self.tokenizer))

    @property
    def _groups(self) -> tuple[str, ...]:
        return self.groups or GROUPS

    def _find(self, name: str) -> Path:
        folder = _INSTALLED[name] if self.folder is None else Path(self.folder).expanduser()
        path = folder / name
        if not path.is_file():
            raise ValueError(
                f"data.folder must hold {_FONT} and {_NAMES}, or Debian's packages "
                f"fonts-noto-color-emoji and unicode-data be installed, got no file {path}"
            )
        return path


def _is_test(emoji: Emoji) -> bool:
    if not emoji.has_tone:
        return False
    digest = hashlib.sha256(emoji.name.encode()).digest()
    return int.from_bytes(digest[:4], "big") % _TEST_EVERY == 0


def _listed(path: Path) -> Iterator[Emoji]:
    group = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").strip()
        elif found := _LINE.match(line):
            codes = (int(code, 16) for code in found[1].split())
            yield Emoji(group, found[2], tuple(code for code in codes if code != _VARIATION))


def _pictures(path: Path, emojis: list[Emoji]) -> list[bytes]:
    """The PNG of each, as the font holds it: of a sequence, under the name of its ligature."""
    # Imported where it is used: no other data need it.
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with path.open("rb") as file:
            font: Any = TTFont(file, lazy=True)
            glyphs, names = font["CBDT"].strikeData[0], font.getBestCmap()
            ligatures = font["GSUB"].table.LookupList.Lookup[0].SubTable[0].ligatures
            together = {
                (first, *each.Component): each.LigGlyph
                for first, several in ligatures.items()
                for each in several
            }
            pictures = []
            for emoji in emojis:
                parts = tuple(names.get(code) for code in emoji.codes)
                glyph = parts[0] if len(parts) == 1 else together.get(parts)
                rule = f"have a picture of {emoji.name!r}"
                require(glyph in glyphs, f"file {path}", rule, "none")
                pictures.append(glyphs[glyph].imageData)
            return pictures
    except (TTLibError, KeyError, AttributeError, IndexError) as error:
        rule = "be a font of colour bitmaps (CBDT)"
        raise ValueError(f"file {path} must {rule}, got {error!r}") from error
