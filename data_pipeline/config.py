"""What the pipeline reads and how it cuts it: the settings, and what can be wrong with them. Standard library only."""

from __future__ import annotations

import math
import os
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_pipeline.files import is_url, looked_at
from data_pipeline.sources.suffixes import FORMATS, data_files, format_of

MIN_SEQ_LEN = 8
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
_HOW_TO_GET_DEMO = "the demo corpus is made by `python -m data_pipeline demo`"


def _cure_of(path: Path | str, cure: str) -> str:
    """What to do about a missing path: the demo's are made, all others are for the user to name."""
    return _HOW_TO_GET_DEMO if "demo" in str(path) else cure


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of documents, and its part in the mixture."""

    path: str | None = field(default=None, metadata={"path_or_url": True})
    """A file, a folder of files (read in sorted order, not deeper) or an fsspec URL of either: .jsonl, .jsonl.gz, .jsonl.zst,
    .parquet, .arrow, .txt (each file one document, also in subfolders), or a folder of MosaicML MDS shards. Beside files of another format in a
    folder, .txt files are ignored."""

    dataset: str | None = field(default=None, metadata={"path_or_name": True})
    """Instead of `path`: the name of a Hugging Face dataset, or a folder written by its save_to_disk."""

    subset: str | None = None
    """Configuration of the Hugging Face dataset, where it has several."""

    split: str = "train"
    """Split of the Hugging Face dataset or of the MDS folder, where it has several."""

    revision: str | None = None
    """Commit, tag or branch of a Hugging Face dataset; a commit keeps the data what they are."""

    weight: float = 1.0
    """Part of this source in the mixture by tokens, relative to the weights of the others; above 0."""

    kind: Literal["text", "prompt", "alpaca", "chat"] = "text"
    """text: a document, whose tokens are all targets. The others are examples, never cut, whose responses alone are targets.
    prompt: fields of a prompt and its response; alpaca: instruction, input and output; chat: messages with roles."""

    text_field: str = "text"
    """kind text: field that holds the document."""

    prompt_field: str = "prompt"
    """kind prompt: field that holds the prompt."""

    response_field: str = "response"
    """kind prompt: field that holds the response (kind alpaca has it in `output`)."""

    messages_field: str = "messages"
    """kind chat: field that holds the messages, a list of {"role": …, "content": …}."""

    template: str | None = None
    """kinds prompt and alpaca: the prompt as written to the model, with {field} for fields of the record; without it, the prompt as
    it is (prompt), or the two templates of Stanford Alpaca."""

    @property
    def is_examples(self) -> bool:
        """Whether the source holds examples that are packed whole, rather than text that is cut into rows."""
        return self.kind != "text"

    @property
    def location(self) -> str:
        """Where the source is, as its configuration says."""
        return self.path or self.dataset or ""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, message) for everything wrong with this source."""
        if (self.path is None) == (self.dataset is None):
            yield "path", "name either path (files) or dataset (a Hugging Face dataset), and not both"
        elif self.path is not None:
            yield from looked_at("path", self._path_problems(self.path))
        if not (math.isfinite(self.weight) and self.weight > 0):
            yield "weight", f"{self.weight} is not above 0; leave a source out instead of giving it no weight"
        for name in ("text_field", "prompt_field", "response_field", "messages_field"):
            if not getattr(self, name):
                yield name, f"is empty; name the field that holds the {name.removesuffix('_field')}"
        if self.template is not None:
            yield from self._template_problems(self.template)

    def _path_problems(self, path: str) -> Iterator[tuple[str, str]]:
        if is_url(path):
            # Asked when the source is opened: a login node may not reach it.
            return
        if not Path(path).exists():
            yield "path", f"{path} does not exist; {_cure_of(path, 'name a file or folder that does')}"
        elif Path(path).is_dir():
            if not data_files(Path(path)):
                cure = _cure_of(path, "name one that does")
                yield (
                    "path",
                    f"the folder {path} holds no {', '.join(FORMATS)} file (in subfolders only .txt is looked for); {cure}",
                )
        elif not Path(path).is_file():
            yield "path", f"{path} is neither a file nor a folder"
        elif format_of(path) is None:
            yield "path", f"{path} is none of the files that can be read: {', '.join(FORMATS)}"

    def _template_problems(self, template: str) -> Iterator[tuple[str, str]]:
        if self.kind not in ("prompt", "alpaca"):
            yield "template", f"does nothing for kind {self.kind}; leave it out"
            return
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
        except ValueError as error:
            yield "template", f"cannot be read ({error}); write fields as {{name}} and a brace itself as {{{{ or }}}}"
            return
        if not fields:
            yield "template", "names no field; write the place of the prompt as {prompt}, say"
        elif not all(name.isidentifier() for name in fields):
            yield "template", f"has a field that is no name ({fields}); write fields as {{name}}"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The mixture a run trains on, and how documents become rows."""

    sources: dict[str, SourceConfig]
    """The sources by name; the names seed their order and appear in the run record."""

    tokenizer: Path
    """A SentencePiece tokenizer.model, a tokenizer.json, or a folder with one of them (tokenizer.model wins)."""

    tokenizer_engine: Literal["auto", "reference"] = "auto"
    """auto: a faster engine where one is installed and gives the reference's ids; reference: sentencepiece or tokenizers alone."""

    chat_template: Path | None = None
    """kind chat: a Jinja file, instead of the template that comes with the tokenizer."""

    seq_len: int = 4096
    """Tokens in one row; at least 8."""

    bos: bool = True
    """Whether the tokenizer's begin-of-sequence token starts every document and example."""

    eos: bool = True
    """Whether the tokenizer's end-of-sequence token ends every document and example."""

    too_long: Literal["fail", "drop", "cut"] = "fail"
    """Examples with more than seq_len tokens: refused at the start with their number, left out, or cut at their end. Text is never
    too long."""

    on_bad_record: Literal["fail", "skip"] = "fail"
    """Records that hold no document (damaged, without the field, not UTF-8): stop with their position, or leave them out and count
    them in run.json. The order of all other documents stays the same."""

    workers: int = 1
    """Processes per rank that read, tokenize and pack ahead of the training step; 0 does it in the step."""

    token_cache: bool = False
    """Whether text sources are tokenized once, to disk, for runs that see them many times. Examples always are."""

    cache_dir: Path | None = None
    """Where indexes, tokens and copies of remote data are kept; by default in a folder .index beside local data, and in
    ~/.cache/palimpsest for all else. On a cluster: shared storage, or a disk of every node."""

    cache_gb: float = 100.0
    """Most gigabytes (10^9 bytes) that copies of remote or compressed data may take in the cache."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (dotted field, message) for everything wrong with these settings or the files they name."""
        if not self.sources:
            yield "sources", f"is empty; name at least one source of documents ({_HOW_TO_GET_DEMO})"
        for name, source in self.sources.items():
            for field_name, message in source.problems():
                yield f"sources.{name}.{field_name}", message
        yield from looked_at("tokenizer", self._tokenizer_problems())
        yield from looked_at("chat_template", self._chat_template_problems())
        if self.seq_len < MIN_SEQ_LEN:
            yield "seq_len", f"{self.seq_len} tokens is too short; use {MIN_SEQ_LEN} at least"
        if self.workers < 0:
            yield "workers", f"{self.workers} is below 0; 0 tokenizes in the training step itself"
        if not (math.isfinite(self.cache_gb) and self.cache_gb > 0):
            yield "cache_gb", f"{self.cache_gb} is not above 0"
        yield from looked_at("cache_dir", self._cache_dir_problems())

    def _tokenizer_problems(self) -> Iterator[tuple[str, str]]:
        if not self.tokenizer.exists():
            cure = _cure_of(self.tokenizer, f"name a {' or '.join(TOKENIZER_FILES)}, or a folder with one of them")
            yield "tokenizer", f"{self.tokenizer} does not exist; {cure}"
        elif self.tokenizer.is_dir():
            if not any((self.tokenizer / name).is_file() for name in TOKENIZER_FILES):
                yield "tokenizer", f"the folder {self.tokenizer} holds neither {' nor '.join(TOKENIZER_FILES)}"
        elif not self.tokenizer.is_file():
            yield "tokenizer", f"{self.tokenizer} is neither a file nor a folder"
        elif self.tokenizer.suffix not in (".model", ".json"):
            yield "tokenizer", f"{self.tokenizer} is neither a SentencePiece .model nor a tokenizer .json"

    def _chat_template_problems(self) -> Iterator[tuple[str, str]]:
        if self.chat_template is not None and not self.chat_template.is_file():
            yield "chat_template", f"{self.chat_template} is no file; name a Jinja template"

    def _cache_dir_problems(self) -> Iterator[tuple[str, str]]:
        if self.cache_dir is None or not self.cache_dir.exists():
            return
        if not self.cache_dir.is_dir():
            yield "cache_dir", f"{self.cache_dir} is no folder"
        else:
            os.scandir(self.cache_dir).close()
