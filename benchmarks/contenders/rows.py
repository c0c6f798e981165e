"""What the scripts of all contenders share: the packing the peers lack, the measurement, and the comparison of tokens.

Runs in every peer's environment: needs numpy, and transformers for `load_tokenizer`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
IGNORED = -100
DOCUMENTS_AT_ONCE = 64


class Packer:
    """Cut documents into rows without a gap, as our packing/cut.py does, by array operations on many documents at once."""

    def __init__(self, seq_len: int) -> None:
        self._seq_len = seq_len
        self._rest = np.empty((3, 0), np.int64)

    def add(self, documents: list[list[int]]) -> Iterator[dict[str, Ids]]:
        """Take the ids of documents; yield the rows that are full, and keep the rest for later."""
        lengths = np.array([len(ids) for ids in documents])
        ends = np.cumsum(lengths)
        flat = np.empty((3, int(ends[-1])), np.int64)
        inputs, labels, positions = flat
        np.concatenate([np.asarray(ids, np.int64) for ids in documents], out=inputs)
        labels[:-1] = inputs[1:]
        labels[ends - 1] = IGNORED
        positions[:] = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        flat = np.concatenate((self._rest, flat), axis=1)
        whole = flat.shape[1] // self._seq_len * self._seq_len
        for start in range(0, whole, self._seq_len):
            row = flat[:, start : start + self._seq_len].copy()
            self._restart(row[2])
            yield {"input_ids": row[0], "labels": row[1], "position_ids": row[2]}
        self._rest = flat[:, whole:]

    def _restart(self, positions: Ids) -> None:
        """A document that was cut by the start of the row counts from 0 there."""
        starts = np.flatnonzero(positions == 0)
        positions[: starts[0] if len(starts) else None] -= positions[0]


class BatchTokenizer(Protocol):
    """The part of a transformers tokenizer that is used."""

    def __call__(self, text: list[str], **options: bool) -> dict[str, list[list[int]]]:
        """Encode texts."""
        ...


def load_tokenizer(file: str) -> BatchTokenizer:
    """A fast tokenizer of transformers, which takes the names of special tokens in a text for text."""
    from transformers import PreTrainedTokenizerFast

    tokenizer: BatchTokenizer = PreTrainedTokenizerFast(
        tokenizer_file=file, bos_token="<s>", eos_token="</s>", unk_token="<unk>", split_special_tokens=True
    )
    return tokenizer


def encode(tokenizer: BatchTokenizer, texts: list[str]) -> list[list[int]]:
    """The ids of texts, with BOS and EOS."""
    return tokenizer(
        texts, return_attention_mask=False, return_token_type_ids=False, split_special_tokens=True, verbose=False
    )["input_ids"]


def pack(texts: Iterable[str], tokenizer: BatchTokenizer, packer: Packer) -> Iterator[dict[str, Ids]]:
    """Tokenize texts, a few at once, and pack them."""
    texts = iter(texts)
    while some := list(islice(texts, DOCUMENTS_AT_ONCE)):
        yield from packer.add(encode(tokenizer, some))


def read_texts(folder: str) -> Iterator[str]:
    """The documents of all .jsonl files of a folder."""
    for file in sorted(Path(folder).glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]


def arguments(description: str) -> argparse.Namespace:
    """The arguments that all scripts of data_throughput have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", required=True, help="folder of the documents, in the contender's own format")
    parser.add_argument("--tokenizer", required=True, help="tokenizer file")
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch")
    parser.add_argument("--workers", type=int, default=0, help="processes beside the one that takes the batches")
    parser.add_argument("--seconds", type=float, default=10, help="how long to measure")
    parser.add_argument("--most-tokens", type=int, default=10**9, help="tokens after which to end before that")
    parser.add_argument("--check", type=int, default=0, help="print hashes of this many documents; measure nothing")
    parser.add_argument("--prepare", help="convert the .jsonl files of this folder into --data; measure nothing")
    parser.add_argument("--engine", default="auto", help="tokenizer engine (ours)")
    return parser.parse_args()


def report(batches: Iterator[Iterable[Any]], asked: argparse.Namespace, **about: Any) -> None:
    """Print, as JSON, the speed of `batches`, or with --check the hashes of the documents in them.

    Args:
        batches: endless (input_ids, labels, position_ids), each [rows, seq_len], numpy or torch.
        asked: the arguments.
        about: more to print.
    """
    result = hashes(batches, asked.check) if asked.check else speed(batches, asked.seconds, asked.most_tokens)
    print(json.dumps(about | result), flush=True)


def speed(batches: Iterator[Iterable[Any]], seconds: float, most_tokens: int) -> dict[str, Any]:
    """Tokens per second in the steady state, after a warm-up in which queues that were filled at the start run dry.

    Args:
        batches: endless batches, of which the first array is counted.
        seconds: how long to measure, after a quarter of that for warming up.
        most_tokens: tokens after which to end before that, an eighth of them for warming up: within an epoch no text
            comes twice, and an engine that remembers words gains nothing from it.
    """
    begin = time.perf_counter()
    tokens = _size(next(batches))
    start = time.perf_counter()
    while time.perf_counter() - start < seconds / 4 and tokens < most_tokens / 8:
        tokens += _size(next(batches))
    first, warm, warm_cpu, begin_measured = start - begin, tokens, cpu_seconds(), time.perf_counter()
    now = begin_measured
    while (now - begin_measured < seconds and tokens < most_tokens) or tokens == warm:
        tokens += _size(next(batches))
        now = time.perf_counter()
    return {
        "tokens_per_second": (tokens - warm) / (now - begin_measured),
        "tokens": tokens - warm,
        "seconds": now - begin_measured,
        "cpu_seconds": cpu_seconds() - warm_cpu,
        "first_batch_seconds": first,
    }


def cpu_seconds() -> float:
    """Processor time of this process and all others of its session, which are those it started: so far (Linux)."""
    session, ticks = os.getsid(0), 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        # A process may end while it is looked at.
        with contextlib.suppress(OSError):
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _size(batch: Iterable[Any]) -> int:
    return int(np.asarray(next(iter(batch))).size)


def hashes(batches: Iterator[Iterable[Any]], count: int) -> dict[str, Any]:
    """A hash of each of the first `count` documents of a single stream of rows, sorted, whichever rows they were cut into."""
    found: list[str] = []
    parts: list[bytes] = []
    for batch in batches:
        inputs, labels = (np.asarray(array).astype(np.int64).reshape(-1) for array in islice(batch, 2))
        start = 0
        for end in np.flatnonzero(labels == IGNORED) + 1:
            parts.append(inputs[start:end].tobytes())
            found.append(hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest())
            parts, start = [], int(end)
            if len(found) == count:
                return {"documents": sorted(found)}
        parts.append(inputs[start:].tobytes())
    raise ValueError(f"there were {len(found)} documents, and {count} were to come")
