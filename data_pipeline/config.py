"""What the pipeline reads and how it cuts it: the settings, and what can be wrong with them. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.files import shard_paths

MIN_SEQ_LEN = 8
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
_HOW_TO_GET_DEMO = "the demo corpus is made by `python -m data_pipeline demo`"


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of documents, and its part in the mixture."""

    path: Path
    """A .jsonl file with one JSON object per line, or a folder of them, read in sorted order."""

    weight: float = 1.0
    """Part of this source in the mixture by tokens, relative to the weights of the others; above 0."""

    text_field: str = "text"
    """Field of each JSON object that holds the document's text."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, message) for everything wrong with this source."""
        if not self.path.exists():
            yield "path", f"{self.path} does not exist; {_HOW_TO_GET_DEMO}"
        elif self.path.is_dir():
            if not shard_paths(self.path):
                yield "path", f"the folder {self.path} holds no .jsonl file; name one that does ({_HOW_TO_GET_DEMO})"
        elif self.path.suffix != ".jsonl":
            yield (
                "path",
                (
                    f"{self.path} is no .jsonl file; documents are read at random, so write them as plain JSON "
                    "lines (decompress a .jsonl.gz or .jsonl.zst) in a file named *.jsonl"
                ),
            )
        if not (math.isfinite(self.weight) and self.weight > 0):
            yield "weight", f"{self.weight} is not above 0; leave a source out instead of giving it no weight"
        if not self.text_field:
            yield "text_field", "is empty; name the field that holds the text, usually 'text'"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The mixture a run trains on, and how documents become rows."""

    sources: dict[str, SourceConfig]
    """The sources by name; the names seed their order and appear in the run record."""

    tokenizer: Path
    """A SentencePiece tokenizer.model, a tokenizer.json, or a folder with one of them (tokenizer.model wins)."""

    seq_len: int = 4096
    """Tokens in one row; at least 8."""

    bos: bool = True
    """Whether the tokenizer's begin-of-sequence token starts every document."""

    eos: bool = True
    """Whether the tokenizer's end-of-sequence token ends every document."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (dotted field, message) for everything wrong with these settings or the files they name."""
        if not self.sources:
            yield "sources", f"is empty; name at least one source of documents ({_HOW_TO_GET_DEMO})"
        for name, source in self.sources.items():
            for field, message in source.problems():
                yield f"sources.{name}.{field}", message
        if not self.tokenizer.exists():
            yield "tokenizer", f"{self.tokenizer} does not exist; {_HOW_TO_GET_DEMO}, with its tokenizer"
        elif self.tokenizer.is_dir() and not any((self.tokenizer / name).is_file() for name in TOKENIZER_FILES):
            yield "tokenizer", f"the folder {self.tokenizer} holds neither {' nor '.join(TOKENIZER_FILES)}"
        elif self.tokenizer.is_file() and self.tokenizer.suffix not in (".model", ".json"):
            yield "tokenizer", f"{self.tokenizer} is neither a SentencePiece .model nor a tokenizer .json"
        if self.seq_len < MIN_SEQ_LEN:
            yield "seq_len", f"{self.seq_len} tokens is too short; use {MIN_SEQ_LEN} at least"
