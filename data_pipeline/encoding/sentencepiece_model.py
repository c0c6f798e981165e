"""What a sentencepiece model says about itself: its pieces and how it treats text.

The library does not tell these, and its own reader of the file needs protobuf, so the few fields needed are read here.
The field numbers are those of sentencepiece_model.proto (github.com/google/sentencepiece).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_KIND = 1, 2, 3
_MODEL_TYPE, _SPACE_AS_SUFFIX, _BYTE_FALLBACK = 3, 24, 35
_RULES, _ADDS_SPACE, _REMOVES_SPACES, _ESCAPES_SPACES = 2, 3, 4, 5
_BPE = 2

Value = int | bytes


class PieceKind(IntEnum):
    """What a piece of the vocabulary is."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """A piece of the vocabulary, with spaces written as U+2581."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """A model's description.

    Attributes:
        pieces: the vocabulary, by id.
        is_bpe: whether it merges pairs (byte-pair encoding), rather than choosing the likeliest pieces.
        has_byte_fallback: whether characters without a piece become bytes, rather than the unknown token.
        adds_space: whether a space is put before the text.
        keeps_text: whether the text is encoded as it is but for that space: every character and every space of it.
    """

    pieces: list[Piece]
    is_bpe: bool
    has_byte_fallback: bool
    adds_space: bool
    keeps_text: bool


def parse_model(content: bytes) -> SentencePieceModel:
    """Read the bytes of a model file.

    Raises:
        ValueError: they are damaged, in a part that the library does not look at.
    """
    try:
        return _parsed(content)
    except (IndexError, struct.error) as error:
        raise ValueError(f"a field is cut off: {error}") from error


def _parsed(content: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, Value] = {}
    normalizer: dict[int, Value] = {}
    for number, value in _fields(content):
        if number == _PIECES:
            piece = dict(_fields(_bytes(value)))
            score = struct.unpack("<f", _bytes(piece.get(_PIECE_SCORE, bytes(4))))[0]
            text = _bytes(piece.get(_PIECE_TEXT, b"")).decode()
            pieces.append(Piece(text, score, int(piece.get(_PIECE_KIND, PieceKind.NORMAL))))
        elif number == _TRAINER:
            trainer = dict(_fields(_bytes(value)))
        elif number == _NORMALIZER:
            normalizer = dict(_fields(_bytes(value)))
    changes = normalizer.get(_RULES) or normalizer.get(_REMOVES_SPACES, 1) or not normalizer.get(_ESCAPES_SPACES, 1)
    return SentencePieceModel(
        pieces,
        is_bpe=trainer.get(_MODEL_TYPE) == _BPE,
        has_byte_fallback=bool(trainer.get(_BYTE_FALLBACK, 0)),
        adds_space=bool(normalizer.get(_ADDS_SPACE, 1)),
        keeps_text=not changes and not trainer.get(_SPACE_AS_SUFFIX, 0),
    )


def _fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """Yield number and value of each field of a protobuf message."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        wire_type = key & 7
        if wire_type == 0:
            number, position = _varint(message, position)
            yield key >> 3, number
            continue
        size = {1: 8, 5: 4}.get(wire_type)
        if size is None:
            size, position = _varint(message, position)
        yield key >> 3, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError("a number has more than 64 bits")


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field holds a number instead of text")
    return value
