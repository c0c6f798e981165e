"""Text <-> token ids with the tokenizer's own reference implementation, for scoring a model folder."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.errors import EvalError
from evals.scoring.rows import Encode

FILES = ("tokenizer.model", "tokenizer.json")
BEGINNINGS = ("<s>", "<|begin_of_text|>")
ENDINGS = ("</s>", "<|end_of_text|>", "<|endoftext|>")


@dataclass(frozen=True, kw_only=True)
class Codec:
    """A tokenizer as evaluation needs it."""

    encode: Encode
    """Text -> ids, without special tokens."""
    decode: Callable[[Sequence[int]], str]
    """Ids -> text, without special tokens."""
    bos_id: int | None
    """Id of the beginning-of-text token, None when there is none."""
    eos_id: int | None
    """Id of the end-of-text token, None when there is none."""
    eos_text: str | None = None
    """How the end-of-text token is written, None where there is none."""
    is_bos_added: bool
    """Whether the tokenizer puts the beginning-of-text token before a text by itself, as LLaMA's do."""

    @property
    def prefix_id(self) -> int:
        """What stands before a text that has no context: beginning of text, or end of text where there is none.

        Raises:
            EvalError: the tokenizer has neither.
        """
        prefix = self.bos_id if self.bos_id is not None else self.eos_id
        if prefix is None:
            raise EvalError("the tokenizer has neither a beginning-of-text nor an end-of-text token; name one of them")
        return prefix

    def decode_after_newline(self, ids: Sequence[int]) -> str:
        """The text of ids that follow a line end, with its leading spaces.

        A tokenizer that marks the beginning of words drops the first space of what it decodes: of a function's body,
        one space of the indentation of its first line.
        """
        newline, length = self._newline
        return self.decode([*newline, *ids])[length:]

    @functools.cached_property
    def _newline(self) -> tuple[Sequence[int], int]:
        """The ids of a line end, and how long their text is."""
        newline = self.encode("\n")
        return newline, len(self.decode(newline))


def load_codec(path: Path) -> Codec:
    """Open a tokenizer.

    Where both files are, sentencepiece's tokenizer.model is used: tokenizer.json is a conversion, whose ids can differ.
    A tokenizer_config.json beside it says which tokens begin and end a text, and whether the first is added to it.

    Args:
        path: tokenizer.model, tokenizer.json, or a folder with one of them.

    Raises:
        EvalError: there is no tokenizer at the path, or it cannot be opened.
    """
    file = tokenizer_file(path)
    config = _config(file.with_name("tokenizer_config.json"))
    try:
        return _tokenizers(file, config) if file.suffix == ".json" else _sentencepiece(file, config)
    except Exception as error:  # both libraries raise bare Exception or RuntimeError
        raise EvalError(f"{file}: cannot be opened as a tokenizer ({error}); give a {' or a '.join(FILES)}") from error


def load_encoder(path: Path) -> tuple[Encode, int | None]:
    """The codec's `encode` and `bos_id`; see `load_codec`."""
    codec = load_codec(path)
    return codec.encode, codec.bos_id


def tokenizer_file(path: Path) -> Path:
    """The tokenizer's file.

    Raises:
        EvalError: there is none at the path.
    """
    path = Path(path)
    file = next((path / name for name in FILES if (path / name).is_file()), path) if path.is_dir() else path
    if not file.is_file():
        raise EvalError(f"{path}: no tokenizer there; give a {' or a '.join(FILES)}, or a folder with one of them")
    return file


def tokenizer_fingerprint(path: Path) -> str:
    """SHA-256 (hexadecimal) of the tokenizer's file; EvalError when there is none."""
    return hashlib.sha256(tokenizer_file(path).read_bytes()).hexdigest()


def _sentencepiece(file: Path, config: Mapping[str, Any]) -> Codec:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
    bos_id, eos_id, size = processor.bos_id(), processor.eos_id(), processor.get_piece_size()
    return Codec(
        encode=processor.encode,
        # A model may have more ids than its tokenizer, and write them.
        decode=lambda ids: str(processor.decode([token for token in ids if token < size])),
        bos_id=bos_id if bos_id >= 0 else None,
        eos_id=eos_id if eos_id >= 0 else None,
        eos_text=processor.id_to_piece(eos_id) if eos_id >= 0 else None,
        is_bos_added=bos_id >= 0 and config.get("add_bos_token") is not False,
    )


def _tokenizers(file: Path, config: Mapping[str, Any]) -> Codec:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    # As in training: a document is neither cut nor padded, and "</s>" in its text is text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True

    def first_id(key: str, tokens: Sequence[str]) -> int | None:
        named = config.get(key)
        named = named.get("content") if isinstance(named, dict) else named
        known = (tokenizer.token_to_id(token) for token in ([named, *tokens] if isinstance(named, str) else tokens))
        return next((token_id for token_id in known if token_id is not None), None)

    bos_id, eos_id = first_id("bos_token", BEGINNINGS), first_id("eos_token", ENDINGS)
    # What is added to a text is the post-processor's to say.
    added = tokenizer.encode("a").ids[:1] == [bos_id] != tokenizer.encode("a", add_special_tokens=False).ids[:1]
    return Codec(
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        decode=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True),
        bos_id=bos_id,
        eos_id=eos_id,
        eos_text=None if eos_id is None else tokenizer.id_to_token(eos_id),
        is_bos_added=added,
    )


def _config(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
