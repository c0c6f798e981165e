"""A sentencepiece tokenizer.model, encoded by sentencepiece."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.encoding.fast_engine import FastEngine, UnsupportedError
from data_pipeline.encoding.long_text import PART, Cutter
from data_pipeline.encoding.reference_tokenizer import ReferenceTokenizer, valid_unicode
from data_pipeline.encoding.sentencepiece_model import PieceKind, SentencePieceModel, parse_model
from data_pipeline.encoding.tokenizer import MarkedText, TokenizerError

_SPACE = "\u2581"
_BYTE_NAMES = "<0x[0-9A-F]{2}>"


class SentencePieceTokenizer(ReferenceTokenizer):
    """A sentencepiece model. The character U+2581, its mark for a space, decodes to a space."""

    def __init__(self, file: Path) -> None:
        """Load `file`."""
        import sentencepiece

        super().__init__(file, f"sentencepiece {sentencepiece.__version__}")
        self._processor = processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
        self.vocab_size = int(processor.vocab_size())
        self.bos_id = _present(processor.bos_id())
        self.eos_id = _present(processor.eos_id())
        pieces = [str(processor.id_to_piece(number)) for number in range(self.vocab_size)]
        self._special = {name: number for number, name in enumerate(pieces) if processor.is_control(number)}
        self.special_names = tuple(self._special)
        known = set(pieces)
        self.unknown_names = tuple(name for name in dict.fromkeys(self.added_names()) if name not in known)
        ends = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        self.named_tokens = self.tokens_by_use() | {use: pieces[i] for use, i in ends.items() if i is not None}

    def reference_ids(self, text: str) -> NDArray[np.int32]:
        """The ids of `text`, in parts where it is long and the model allows it (long_text.py)."""
        if len(text) <= PART or not self._cutter.can_cut:
            return self._ids(text)
        return self.ids_of_parts(list(self._cutter.parts(text)))

    def ids_of_parts(self, parts: Sequence[str]) -> NDArray[np.int32]:
        """The ids of a text from the parts it was cut into."""
        guard = self._cutter.guard
        skipped = len(self._ids(guard))
        first, *rest = parts
        return np.concatenate([self._ids(first), *(self._ids(guard + part)[skipped:] for part in rest)])

    def encode_marked(self, text: str) -> MarkedText:
        """The ids of `text` with special tokens: what is between two of their names is encoded alone.

        Raises:
            TokenizerError: the model changes its text, so that its tokens have no place in it.
        """
        text = valid_unicode(text)
        names = "|".join(map(re.escape, sorted(self._special, key=len, reverse=True)))
        # Names are at the odd places of the split.
        parts = re.split(f"({names})", text) if names else [text]
        encoded: list[MarkedText] = []
        for number, (part, position) in enumerate(zip(parts, accumulate(map(len, parts), initial=0), strict=False)):
            marked = self._named(part) if number % 2 else self._places(part)
            encoded.append(MarkedText(marked.ids, marked.starts + position, marked.ends + position))
        return MarkedText(*(np.concatenate(columns) for columns in zip(*encoded, strict=True)))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""
        return str(self._processor.decode([int(i) for i in ids]))

    def build_fast_engine(self) -> FastEngine:
        """The fast engine, for models whose merges have one order only.

        Raises:
            UnsupportedError: the model leaves room for another order than sentencepiece's, or the engine refuses it.
        """
        if reason := _doubt(self._model):
            raise UnsupportedError(reason)
        content = self.file.read_bytes()

        def build() -> Any:
            from gigatoken import Tokenizer

            return Tokenizer.from_sentencepiece(content)

        named = (PieceKind.UNKNOWN, PieceKind.CONTROL, PieceKind.USER_DEFINED)
        names = [piece.text for piece in self._model.pieces if piece.kind in named]
        return FastEngine(build, names, [_BYTE_NAMES])

    def _ids(self, text: str) -> NDArray[np.int32]:
        return np.array(self._processor.encode(text), dtype=np.int32)

    def _named(self, name: str) -> MarkedText:
        """The special token of that name."""
        places = np.array([[0, len(name)]], dtype=np.int64)
        return MarkedText(np.array([self._special[name]], dtype=np.int32), places[:, 0], places[:, 1])

    def _places(self, text: str) -> MarkedText:
        """The ids of `text`, which holds no special token, and where they come from."""
        ids = self.reference_ids(text)
        surfaces = [self._surfaces[i] for i in ids.tolist()]
        joined, content = b"".join(surfaces), text.replace(_SPACE, " ").encode()
        added = len(joined) - len(content)
        if added not in (0, 1) or joined[added:] != content:
            raise TokenizerError(
                f"{self.file} changes the text it encodes, so that it cannot be said which of its tokens are a "
                "response; use the tokenizer.json of the same model, or kind prompt"
            )
        lengths = np.array([len(surface) for surface in surfaces], dtype=np.int64)
        ends = np.cumsum(lengths) - added
        starts = np.maximum(ends - lengths, 0)
        is_first_byte = (np.frombuffer(content, dtype=np.uint8) & 0xC0) != 0x80
        characters = np.concatenate([np.zeros(1, np.int64), np.cumsum(is_first_byte)])
        # A token of some bytes of a character stands for the whole of it.
        begins = characters[np.minimum(starts + 1, len(content))] - (starts < len(content))
        return MarkedText(ids, begins, characters[ends])

    @cached_property
    def _model(self) -> SentencePieceModel:
        try:
            return parse_model(self.file.read_bytes())
        except ValueError as error:
            raise TokenizerError(
                f"the tokenizer {self.file} is damaged ({error}); copy it again from its model"
            ) from error

    @cached_property
    def _cutter(self) -> Cutter:
        return Cutter(self._model)

    @cached_property
    def _surfaces(self) -> list[bytes]:
        """The bytes of text that each id stands for."""
        return [
            bytes([int(piece.text[3:5], 16)])
            if piece.kind == PieceKind.BYTE
            else piece.text.replace(_SPACE, " ").encode()
            for piece in self._model.pieces
        ]


def _doubt(model: SentencePieceModel) -> str:
    """Why the order of merges may be another one than that of sentencepiece; empty where it cannot."""
    kinds = {piece.kind for piece in model.pieces}
    if PieceKind.UNUSED in kinds:
        return "it has unused pieces"
    if PieceKind.USER_DEFINED in kinds and not model.keeps_text:
        return "it has symbols of the user and normalizes its text"
    scores = Counter(piece.score for piece in model.pieces if piece.kind == PieceKind.NORMAL and len(piece.text) > 1)
    # Runs of one character, which models hold for indentation, are tried one by one instead (TRICKY_TEXTS).
    mixed = [piece for piece in model.pieces if piece.kind == PieceKind.NORMAL and len(set(piece.text)) > 1]
    if any(scores[piece.score] > 1 for piece in mixed):
        return "some of its pieces have equal scores"
    return ""


def _present(token: int) -> int | None:
    return token if token >= 0 else None
