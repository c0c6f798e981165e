"""Tokens kept on disk, and the saved state of a stream."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.demo.tokenizer import train_tokenizer
from data_pipeline.encoding.examples import Example
from data_pipeline.encoding.records import BadRecordError
from data_pipeline.sources.local_files import LocalFiles
from data_pipeline.stream.state import StreamStateError, merge_states
from data_pipeline.stream.token_stream import TokenStream
from data_pipeline.tokens.token_check import damaged_tokens, token_files
from data_pipeline.tokens.token_files import DamagedTokensError, open_token_file, write_token_file
from tests.fuzz.folders import read
from tests.fuzz.target import Target

TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on\nthe warm stones of the old yard\n" * 8
MADE_FROM = {"shard": "abc", "encoder": {"kind": "prompt"}, "first": 0}
LANES = 4


def _examples() -> list[Example | BadRecordError]:
    draws = np.random.default_rng(0)
    found: list[Example | BadRecordError] = []
    for length in (0, 1, 5, 40, 7):
        is_target = draws.random(length) < 0.5
        found.append(Example(draws.integers(0, 300, length).astype(np.int32), is_target))
    return [*found, BadRecordError("has no field 'text'")]


def _tokens() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens/a/0.tokens"
        path.parent.mkdir(parents=True)
        write_token_file(path, _examples(), MADE_FROM, vocab_size=300, has_targets=True)
        return read(Path(folder))


def _read_tokens(folder: Path) -> None:
    """What is read is what was written, or an error."""
    list(damaged_tokens(token_files(folder / "tokens", ["abc"]), lambda done, size: None))
    file = open_token_file(folder / "tokens/a/0.tokens", MADE_FROM)
    if file is None:
        return
    files, true = LocalFiles(), _examples()
    for number in range(min(len(true), len(file.lengths))):
        example, written = file.example(number, files), true[number]
        if file.has_targets and file.dtype == "<u2" and isinstance(written, Example):
            assert example.ids.tolist() == written.ids.tolist()


@functools.cache
def _stream() -> TokenStream:
    """A stream of text and examples, in a folder that stays until the process ends."""
    folder = Path(_folder().name)
    (folder / "tokenizer.model").write_bytes(train_tokenizer([[TEXT], [TEXT.upper()]], 340))
    texts = [{"text": TEXT[: 40 + 13 * number]} for number in range(30)]
    pairs = [{"prompt": TEXT[: 5 + number], "response": TEXT[: 9 + number]} for number in range(30)]
    for name, records in (("texts", texts), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    sources = {
        "texts": SourceConfig(path=str(folder / "texts.jsonl")),
        "pairs": SourceConfig(path=str(folder / "pairs.jsonl"), kind="prompt"),
    }
    config = DataConfig(sources=sources, tokenizer=folder / "tokenizer.model", seq_len=64, workers=0)
    return TokenStream(config, num_lanes=LANES, lanes=range(LANES), seed=1)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@functools.cache
def _saved() -> dict[str, bytes]:
    stream = _stream()
    for _ in range(5 * LANES + 1):
        next(stream)
    return {"state.json": json.dumps(stream.state_dict()).encode()}


def _read_state(folder: Path) -> None:
    """A state is taken or refused; one that is taken is a place from which rows come."""
    try:
        state: Any = json.loads((folder / "state.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(state, dict):
        return  # A manifest whose stream is none is refused where it is read.
    stream = _stream()
    merged = merge_states([state])
    stream.load_state_dict(merged)
    assert len(next(stream).input_ids) == 64
    assert stream.state_dict()["columns"] == merged["columns"]


TARGETS = [
    Target(name="tokens", make=_tokens, read=_read_tokens, errors=(DamagedTokensError,)),
    Target(name="stream state", make=_saved, read=_read_state, errors=(StreamStateError,), says=("stream state",)),
]
