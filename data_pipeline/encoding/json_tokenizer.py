"""A tokenizer.json, encoded by the tokenizers library."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.encoding.fast_engine import FastEngine, UnsupportedError
from data_pipeline.encoding.reference_tokenizer import ReferenceTokenizer, named, valid_unicode
from data_pipeline.encoding.tokenizer import MarkedText

_USUAL_NAMES = {"bos": ("<s>", "<|begin_of_text|>"), "eos": ("</s>", "<|end_of_text|>")}


class JsonTokenizer(ReferenceTokenizer):
    """A tokenizer.json; BOS and EOS are those of tokenizer_config.json beside it, else of their usual names."""

    def __init__(self, file: Path) -> None:
        """Load `file`."""
        import tokenizers

        super().__init__(file, f"tokenizers {tokenizers.__version__}")
        self._engine = self._load()
        # Else a document that mentions "</s>" would end there.
        self._engine.encode_special_tokens = True
        self.vocab_size = max(self._engine.get_vocab(with_added_tokens=True).values()) + 1
        self.bos_id = self._special_id("bos")
        self.eos_id = self._special_id("eos")
        ends = {
            f"{use}_token": str(self._engine.id_to_token(number))
            for use, number in (("bos", self.bos_id), ("eos", self.eos_id))
            if number is not None
        }
        self.named_tokens = self.tokens_by_use() | ends
        self._added = self._engine.get_added_tokens_decoder().values()
        special = [token.content for token in self._added if token.special]
        self.special_names = tuple(dict.fromkeys([*special, *ends.values()]))

    def reference_ids(self, text: str) -> NDArray[np.int32]:
        """The ids of `text`; a text of 50 MB takes about half a minute and 7 GB."""
        return np.array(self._engine.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def encode_marked(self, text: str) -> MarkedText:
        """The ids of `text`, in which the names of added tokens are those tokens, and where each comes from."""
        encoding = self._marking_engine.encode(valid_unicode(text), add_special_tokens=False)
        places = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        return MarkedText(np.array(encoding.ids, dtype=np.int32), places[:, 0], places[:, 1])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens by name."""
        return str(self._engine.decode([int(i) for i in ids], skip_special_tokens=False))

    def build_fast_engine(self) -> FastEngine:
        """The fast engine, which leaves texts with names of added tokens to the reference."""
        if self._engine.normalizer is not None and any(t.normalized and not t.special for t in self._added):
            # A name may then appear only once the text is normalized, where no one has looked for it.
            raise UnsupportedError("it looks for added tokens in the normalized text")
        content = self.file.read_bytes()

        def build() -> Any:
            from gigatoken import Tokenizer

            return Tokenizer.from_json(content)

        return FastEngine(build, [token.content for token in self._added])

    @cached_property
    def _marking_engine(self) -> Any:
        """The engine once more, but one that knows special tokens by their names."""
        engine = self._load()
        engine.encode_special_tokens = False
        return engine

    def _load(self) -> Any:
        from tokenizers import Tokenizer

        engine = Tokenizer.from_file(str(self.file))
        # The file may come from code that padded or cut its inputs, and a document is never padded or cut here.
        engine.no_truncation()
        engine.no_padding()
        if getattr(engine.model, "dropout", None):
            # Equal texts have equal ids here, whatever the file was trained with.
            engine.model.dropout = None
        return engine

    def _special_id(self, use: str) -> int | None:
        name = named(self.config, f"{use}_token")
        for candidate in (name,) if name else _USUAL_NAMES[use]:
            if (token := self._engine.token_to_id(candidate)) is not None:
                return int(token)
        return None
