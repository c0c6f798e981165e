"""Text to token ids with the tokenizer's own engine, and back.

A `tokenizer.model` is always encoded by sentencepiece itself, which is the reference for it: the conversion of the same
file to a fast tokenizer builds its merges in another order and gives other ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.config import TOKENIZER_FILES
from data_pipeline.errors import PipelineError
from data_pipeline.files import sha256_of

_COMPANIONS = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_USUAL_NAMES = {"bos": ("<s>", "<|begin_of_text|>"), "eos": ("</s>", "<|end_of_text|>")}


class TokenizerError(PipelineError):
    """A tokenizer cannot be loaded or lacks what is asked of it; the message names the file."""


class Tokenizer(Protocol):
    """What the pipeline needs of a tokenizer.

    Attributes:
        vocab_size: rows an embedding needs, the largest id plus one.
        bos_id: id of the begin-of-sequence token, None if there is none.
        eos_id: id of the end-of-sequence token, None if there is none.
        fingerprint: hex sha256 of the tokenizer file.
        files: the tokenizer file and its companions, to copy beside an exported model.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    fingerprint: str
    files: list[Path]

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, of any length, without BOS and EOS; names of special tokens in it are plain text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""
        ...


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load a sentencepiece model, a tokenizer.json, or what a folder holds of them (tokenizer.model wins).

    Raises:
        TokenizerError: there is no tokenizer at `path`, or the file is damaged.
    """
    file = _tokenizer_file(Path(path))
    try:
        return JsonTokenizer(file) if file.suffix == ".json" else SentencePieceTokenizer(file)
    except TokenizerError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(f"the tokenizer {file} cannot be read ({error}); copy it again from its model") from error


def special_ids(tokenizer: Tokenizer, path: Path, *, bos: bool, eos: bool) -> tuple[list[int], list[int]]:
    """The ids to put before and after every document.

    Raises:
        TokenizerError: a token is asked for that the tokenizer does not have.
    """
    for name, wanted, token in (("bos", bos, tokenizer.bos_id), ("eos", eos, tokenizer.eos_id)):
        if wanted and token is None:
            raise TokenizerError(
                f"{name} = true, but the tokenizer {path} has no {name} token; "
                f"set {name} = false, or name it in tokenizer_config.json beside tokenizer.json"
            )
    return (
        [tokenizer.bos_id] if bos and tokenizer.bos_id is not None else [],
        [tokenizer.eos_id] if eos and tokenizer.eos_id is not None else [],
    )


class SentencePieceTokenizer:
    """A sentencepiece model. The character U+2581, its mark for a space, decodes to a space."""

    def __init__(self, file: Path) -> None:
        """Load `file`."""
        from sentencepiece import SentencePieceProcessor

        self._processor = SentencePieceProcessor(model_file=str(file))
        self.vocab_size = int(self._processor.vocab_size())
        self.bos_id = _present(self._processor.bos_id())
        self.eos_id = _present(self._processor.eos_id())
        self.fingerprint = sha256_of(file)
        self.files = _files(file)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without BOS and EOS."""
        return list(self._processor.encode(_valid_unicode(text)))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""
        return str(self._processor.decode([int(i) for i in ids]))


class JsonTokenizer:
    """A tokenizer.json; BOS and EOS are those of tokenizer_config.json beside it, else of their usual names."""

    def __init__(self, file: Path) -> None:
        """Load `file`."""
        from tokenizers import Tokenizer as Engine

        self._engine = Engine.from_file(str(file))
        # The file may come from code that padded or cut its inputs, and a document is never padded or cut here.
        self._engine.no_truncation()
        self._engine.no_padding()
        # Else a document that mentions "</s>" would end there.
        self._engine.encode_special_tokens = True
        self.vocab_size = max(self._engine.get_vocab(with_added_tokens=True).values()) + 1
        config = _read_json(file.with_name("tokenizer_config.json"))
        self.bos_id = self._special_id("bos", config)
        self.eos_id = self._special_id("eos", config)
        self.fingerprint = sha256_of(file)
        self.files = _files(file)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without BOS and EOS."""
        return list(self._engine.encode(_valid_unicode(text), add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens by name."""
        return str(self._engine.decode([int(i) for i in ids], skip_special_tokens=False))

    def _special_id(self, kind: str, config: dict[str, Any]) -> int | None:
        named = config.get(f"{kind}_token")
        if isinstance(named, dict):
            named = named.get("content")
        for name in (named,) if named else _USUAL_NAMES[kind]:
            if (token := self._engine.token_to_id(name)) is not None:
                return int(token)
        return None


def _tokenizer_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in TOKENIZER_FILES:
        if (path / name).is_file():
            return path / name
    raise TokenizerError(
        f"there is no tokenizer at {path}: name a {' or a '.join(TOKENIZER_FILES)}, or a folder with one of them"
    )


def _files(file: Path) -> list[Path]:
    companions = (file.with_name(name) for name in _COMPANIONS)
    return [file, *(path for path in companions if path != file and path.is_file())]


def _present(token: int) -> int | None:
    return token if token >= 0 else None


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, empty where there is no such file."""
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _valid_unicode(text: str) -> str:
    """`text` with lone surrogates, which JSON escapes can make and UTF-8 cannot hold, replaced by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
