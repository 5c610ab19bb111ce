"""T5's tokenizer, built from a SentencePiece model file (`spiece.model`).

The file is a protocol buffer with the scored pieces of the vocabulary and the character map of the
normalizer. The package `tokenizers` implements the tokenization.

Reference: Kudo 2018, arXiv:1804.10959, section 3 (unigram model); Kudo and Richardson 2018,
arXiv:1808.06226 (SentencePiece).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fmjax._checks import require

if TYPE_CHECKING:
    import tokenizers

# Field numbers of the protocol buffer.
_PIECES, _TRAINING, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _PIECE_TYPE = 1, 2, 3
_MODEL_TYPE, _CHARACTERS = 3, 2
# Values of the enums of piece types and model types.
_UNKNOWN, _UNIGRAM = 2, 1
# Wire types of the protocol buffer.
_VARINT, _EIGHT_BYTES, _LENGTH_DELIMITED, _FOUR_BYTES = 0, 1, 2, 5


class Pieces(NamedTuple):
    """Contents of a `spiece.model` file.

    Attributes:
        scores: The pieces of the vocabulary in the order of their ids, each with its log
            probability.
        unknown: Id of the unknown token.
        characters: Precompiled character map of the normalizer, in the format of `tokenizers`; may
            be empty.
    """

    scores: list[tuple[str, float]]
    unknown: int
    characters: bytes


def read_pieces(file: Path) -> Pieces:
    """Read the pieces of a SentencePiece model file.

    Raises:
        ValueError: If the file is not a SentencePiece unigram model with an unknown token.
    """
    scores: list[tuple[str, float]] = []
    piece_types, characters, model_type = [], b"", _UNIGRAM
    try:
        for number, value in _fields(file.read_bytes()):
            if number == _PIECES:
                piece = dict(_fields(value))
                (score,) = struct.unpack("<f", piece.get(_SCORE, bytes(4)))
                scores.append((piece[_PIECE].decode(), score))
                piece_types.append(piece.get(_PIECE_TYPE))
            elif number == _TRAINING:
                model_type = dict(_fields(value)).get(_MODEL_TYPE, _UNIGRAM)
            elif number == _NORMALIZER:
                characters = dict(_fields(value)).get(_CHARACTERS, b"")
    except (AttributeError, IndexError, KeyError, TypeError, UnicodeDecodeError, struct.error):
        raise ValueError(f"{file} must be a SentencePiece model, got other bytes") from None
    require(_UNKNOWN in piece_types, str(file), "hold an unknown token", "none")
    rule = f"be a unigram model (type {_UNIGRAM})"
    require(model_type == _UNIGRAM, str(file), rule, f"type {model_type}")
    return Pieces(scores, piece_types.index(_UNKNOWN), characters)


def t5_backend(file: Path, end: str, num_extra: int) -> "tokenizers.Tokenizer":
    """Build T5's tokenizer: no start token, one end token, sentinel tokens after the pieces.

    Args:
        file: The `spiece.model` file.
        end: Token that is appended to each prompt.
        num_extra: Number of sentinel tokens; `<extra_id_0>` has the highest id.

    Raises:
        ValueError: If `read_pieces` fails, or `end` is not one of the pieces.
    """
    from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    pieces = read_pieces(file)
    extra = [f"<extra_id_{i}>" for i in reversed(range(num_extra))]
    vocabulary = pieces.scores + [(token, 0.0) for token in extra]
    backend = Tokenizer(Unigram(vocabulary, pieces.unknown, byte_fallback=False))
    end_id = backend.token_to_id(end)
    require(end_id is not None, "eos_token", f"be one of the pieces in {file}", end)
    if pieces.characters:
        backend.normalizer = normalizers.Precompiled(pieces.characters)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    backend.post_processor = processors.TemplateProcessing(
        f"$A {end}", special_tokens=[(end, end_id)]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in extra])
    return backend


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Iterate over the fields of a protocol buffer message, as `(number, integer or bytes)`.

    Reference: protobuf.dev/programming-guides/encoding.
    """
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire_type = tag & 7
        if wire_type == _VARINT:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(wire_type)
        if wire_type == _LENGTH_DELIMITED:
            size, position = _varint(data, position)
        if size is None or position + size > len(data):
            raise IndexError
        yield tag >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Decode an integer in groups of seven bits, lowest first; return it and its end position."""
    value = shift = 0
    while True:
        byte = data[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position
