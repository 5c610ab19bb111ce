"""T5's tokenizer from `spiece.model`, the file of the program SentencePiece.

The file is a protocol buffer: pieces of words with their scores, and a table of characters that
stand for others. The package `tokenizers` does the rest.

Source: Kudo 2018, arXiv:1804.10959, section 3 (pieces with scores); Kudo and Richardson 2018,
arXiv:1808.06226 (the program).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fmjax._checks import require

# Numbers of the file's fields.
_PIECES, _TRAINING, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _KIND = 1, 2, 3
_MODEL_KIND, _CHARACTERS = 3, 2
_UNKNOWN, _UNIGRAM = 2, 1  # Of the kinds of pieces and of models.
_VARINT, _EIGHT_BYTES, _MANY_BYTES, _FOUR_BYTES = 0, 1, 2, 5


class Pieces(NamedTuple):
    """What a `spiece.model` holds.

    Attributes:
        scores: Pieces of words, in the order of their numbers, and how likely each is.
        unknown: Number of the piece that stands for what no other does.
        characters: Which characters stand for others, as `tokenizers` takes it; may be empty.
    """

    scores: list[tuple[str, float]]
    unknown: int
    characters: bytes


def read_pieces(path: Path) -> Pieces:
    """The pieces of a `spiece.model`.

    Raises:
        ValueError: If it is none, or not one of pieces with scores.
    """
    scores: list[tuple[str, float]] = []
    kinds, characters, model = [], b"", _UNIGRAM
    try:
        for number, part in _fields(path.read_bytes()):
            if number == _PIECES:
                piece = dict(_fields(part))
                (score,) = struct.unpack("<f", piece.get(_SCORE, bytes(4)))
                scores.append((piece[_PIECE].decode(), score))
                kinds.append(piece.get(_KIND))
            elif number == _TRAINING:
                model = dict(_fields(part)).get(_MODEL_KIND, _UNIGRAM)
            elif number == _NORMALIZER:
                characters = dict(_fields(part)).get(_CHARACTERS, b"")
    except (AttributeError, IndexError, KeyError, TypeError, UnicodeDecodeError, struct.error):
        raise ValueError(f"{path} must be a model of SentencePiece, got other bytes") from None
    require(_UNKNOWN in kinds, str(path), "hold a piece for what is unknown", "none")
    require(model == _UNIGRAM, str(path), "be a unigram model (kind 1)", f"kind {model}")
    return Pieces(scores, kinds.index(_UNKNOWN), characters)


def t5_backend(path: Path, end: str, num_extra: int) -> Any:
    """T5's tokenizer of the package `tokenizers`: no start, one end, sentinels behind the pieces.

    Args:
        path: Of `spiece.model`.
        end: Token that ends a prompt.
        num_extra: Sentinels, `<extra_id_0>` the last of them.

    Raises:
        ValueError: As `read_pieces`, or if no piece is the end.
    """
    from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    pieces = read_pieces(path)
    extra = [f"<extra_id_{i}>" for i in reversed(range(num_extra))]
    vocabulary = pieces.scores + [(token, 0.0) for token in extra]
    backend = Tokenizer(Unigram(vocabulary, pieces.unknown, byte_fallback=False))
    last = backend.token_to_id(end)
    require(last is not None, "eos_token", f"be one of the pieces in {path}", end)
    if pieces.characters:
        backend.normalizer = normalizers.Precompiled(pieces.characters)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    backend.post_processor = processors.TemplateProcessing(
        f"$A {end}", special_tokens=[(end, last)]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in extra])
    return backend


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a message's fields: whole numbers, or bytes.

    Source: protobuf.dev/programming-guides/encoding.
    """
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == _VARINT:
            value, place = _varint(data, place)
            yield tag >> 3, value
            continue
        size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(kind)
        if kind == _MANY_BYTES:
            size, place = _varint(data, place)
        if size is None or place + size > len(data):
            raise IndexError
        yield tag >> 3, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A whole number, seven bits a byte, the lowest first; and where it ends."""
    value = shift = 0
    while True:
        byte = data[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place
