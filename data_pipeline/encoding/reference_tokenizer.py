"""What both kinds of tokenizer have in common: the files beside them, and the fast engine in front of the reference."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.encoding.fast_engine import TRICKY_TEXTS, FastEngine, UnsupportedError, installed_version
from data_pipeline.files import sha256_of

_COMPANIONS = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_LOG = logging.getLogger(__name__)


class ReferenceTokenizer(ABC):
    """A tokenizer whose ids are its reference library's, whoever makes them.

    Attributes:
        config: tokenizer_config.json beside the file, over special_tokens_map.json; empty without them.
        See `encoding.Tokenizer` for the others.
    """

    unknown_names: tuple[str, ...] = ()

    def __init__(self, file: Path, library: str) -> None:
        """Read what is beside `file`; `library` is the reference and its version."""
        self.file = file
        self.fingerprint = sha256_of(file)
        self.files = [file, *(path for path in map(file.with_name, _COMPANIONS) if path != file and path.is_file())]
        self.config = _read_json(file.with_name("special_tokens_map.json"))
        self.config |= _read_json(file.with_name("tokenizer_config.json"))
        self.engine = self._library = library
        self.engine_note = ""
        self._fast: FastEngine | None = None

    @abstractmethod
    def reference_ids(self, text: str) -> NDArray[np.int32]:
        """The reference's ids of `text`, which is valid Unicode."""

    @abstractmethod
    def build_fast_engine(self) -> FastEngine:
        """The fast engine for this tokenizer; raises UnsupportedError, or what the engine raises."""

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without BOS and EOS."""
        ids: list[int] = self.encode_ids(text).tolist()
        return ids

    def encode_ids(self, text: str) -> NDArray[np.int32]:
        """The ids of `text`, without BOS and EOS."""
        text = valid_unicode(text)
        ids = None
        if self._fast is not None:
            try:
                ids = self._fast.encode(text)
            except UnsupportedError as error:
                self._leave_fast_engine(f"{self.engine} failed ({error}), so it is used no more in this run")
                _LOG.warning("%s; %s encodes on, more slowly", self.engine_note, self._library)
        return self.reference_ids(text) if ids is None else ids

    def use_fast_engine(self) -> None:
        """Encode with the fast engine if it is installed, can do this tokenizer, and gives the reference's ids."""
        version = installed_version()
        if version is None:
            self.engine_note = "gigatoken is not installed; it makes tokenizing many times faster"
            return
        try:
            self._fast = self.build_fast_engine()
        except UnsupportedError as error:
            self.engine_note = f"{version} cannot do this tokenizer: {error}"
            return
        self.engine = version
        self.check_engine(TRICKY_TEXTS)

    def check_engine(self, texts: Iterable[str]) -> list[str]:
        """Compare the fast engine with the reference, which takes over where their ids differ; returns those texts."""
        fast = self._fast
        if fast is None:
            return []
        different = [text for text in map(valid_unicode, texts) if not fast.agrees(text, self.reference_ids)]
        if different:
            shown = different[0] if len(different[0]) <= 40 else different[0][:40] + "…"
            self._leave_fast_engine(
                f"{self.engine} gave other ids than {self._library} for {len(different)} texts ({shown!r}), "
                "so it is not used in this run"
            )
        return different

    def _leave_fast_engine(self, note: str) -> None:
        """Let the reference encode from now on; `note` says why."""
        self.engine_note = note
        self.engine, self._fast = self._library, None

    def tokens_by_use(self) -> dict[str, str]:
        """Names of special tokens by their use, from the files beside the tokenizer."""
        names = {use: named(self.config, use) for use in self.config if use.endswith("_token")}
        return {use: name for use, name in names.items() if name is not None}

    def added_names(self) -> list[str]:
        """Names of the tokens that the files beside the tokenizer add to it."""
        added = self.config.get("added_tokens_decoder")
        tokens = list(added.values()) if isinstance(added, dict) else []
        names = [token.get("content") for token in tokens if isinstance(token, dict)]
        written = [name for name in names if isinstance(name, str) and name]
        return [*written, *_read_json(self.file.with_name("added_tokens.json"))]


def named(config: dict[str, Any], use: str) -> str | None:
    """The name of the token that `config` has for a use, such as `eos_token`; None where it has none."""
    token = config.get(use)
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def valid_unicode(text: str) -> str:
    """`text` with lone surrogates, which JSON escapes can make and UTF-8 cannot hold, replaced by U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, empty where there is no such file."""
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}
