"""How long the documents of a source are in tokens, how many of them are unusable, and what becomes of them in rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import DataConfig
from data_pipeline.encoding.examples import BadRecordError, Encoder, cut
from data_pipeline.encoding.loading import load_tokenizer
from data_pipeline.encoding.tokenizer import Tokenizer
from data_pipeline.packing.best_fit import PackedOrder
from data_pipeline.processes import Advance, run_in_processes
from data_pipeline.sources.errors import DamagedRecordError
from data_pipeline.sources.positions import positions
from data_pipeline.sources.source import Source

Progress = Callable[[str, int, int], None]
Span = tuple[int, int]

_MAX_DOCUMENTS_PER_TASK = 512
_TASKS_PER_WORKER = 8
_SHOWN_BAD_RECORDS = 5
_MAX_FILL_ROWS = 20_000


@dataclass
class Measures:
    """What was found in a source, or in the part of it that was looked at.

    Attributes:
        name: of the source.
        num_documents: in the source.
        lengths: int32 [measured]: tokens of each document that was looked at, before any is cut; 0 for empty and bad ones.
        empty: documents without text.
        bad: records that hold no document.
        bad_examples: where the first few of them are, and what is wrong.
        text_bytes: UTF-8 bytes of the fields that are encoded.
        too_long: examples with more than seq_len tokens.
        used: int32 [measured]: tokens of each that reach the rows: too long examples are cut or left out.
        targets: of these tokens, those that are predicted.
    """

    name: str
    num_documents: int
    lengths: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    used: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    empty: int = 0
    bad: int = 0
    bad_examples: list[str] = field(default_factory=list)
    text_bytes: int = 0
    too_long: int = 0
    targets: int = 0

    @property
    def is_estimate(self) -> bool:
        """Whether only a part of the source was looked at."""
        return len(self.lengths) < self.num_documents

    @property
    def scale(self) -> float:
        """How many times as much the whole source holds."""
        return self.num_documents / max(len(self.lengths), 1)

    @property
    def tokens(self) -> int:
        """Tokens of the documents that were looked at."""
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def used_tokens(self) -> int:
        """Tokens of them that reach the rows."""
        return int(self.used.sum(dtype=np.int64))

    def quantiles(self, *shares: float) -> list[int]:
        """Lengths that these shares of the documents with text do not exceed; zeros where there are none."""
        lengths = self.lengths[self.lengths > 0]
        return (
            [int(q) for q in np.quantile(lengths, shares, method="inverted_cdf")] if len(lengths) else [0] * len(shares)
        )


class Piece(NamedTuple):
    """The same of a few spans of documents, as a worker sends it."""

    first: int
    lengths: NDArray[np.int32]
    used: NDArray[np.int32]
    counts: dict[str, int]
    bad: list[tuple[int, str]]


def measure(
    source: Source,
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    sample: int | None = None,
    seed: int = 0,
    workers: int = 0,
    progress: Progress | None = None,
) -> Measures:
    """Encode a source's documents and count.

    Args:
        source: what to measure; one of config.sources.
        config: how documents are encoded.
        tokenizer: the one of config, loaded.
        sample: look at whole blocks, chosen at random, until they hold this many documents; None: all.
        seed: of that choice.
        workers: processes; with 0 it is done here.
        progress: called with (what, documents done, documents in all).

    Raises:
        DataError: a shard cannot be read, or a worker process died.
    """
    tasks = list(_tasks(source.block_starts, sample, seed, workers))
    total = sum(stop - start for spans in tasks for start, stop in spans)
    found = Measures(source.name, source.num_documents)
    pieces = []
    done = 0
    for piece in _pieces(source, config, tokenizer, tasks, workers):
        pieces.append(piece)
        for name, count in piece.counts.items():
            setattr(found, name, getattr(found, name) + count)
        done += len(piece.lengths)
        if progress is not None:
            progress(f"encoding {source.name}", done, total)
    # Worker processes finish in any order.
    pieces.sort(key=lambda piece: piece.first)
    found.lengths = np.concatenate([piece.lengths for piece in pieces])
    found.used = np.concatenate([piece.used for piece in pieces])
    bad = [one for piece in pieces for one in piece.bad][:_SHOWN_BAD_RECORDS]
    where = positions(source, (number for number, _ in bad))
    found.bad_examples = [f"{where[number]} {reason}" for number, reason in bad]
    return found


def packed_fill(lengths: Mapping[str, NDArray[np.int32]], config: DataConfig, seed: int) -> float:
    """The share of an example row that tokens fill, over an epoch or the first 20,000 rows of it.

    Args:
        lengths: tokens of each example, by source.
        config: has the weights of the sources, and seq_len.
        seed: of the order of the examples.
    """
    weights = [config.sources[name].weight for name in lengths]
    order = PackedOrder(list(lengths.values()), list(lengths), weights, seq_len=config.seq_len, seed=seed)
    tokens = sum(int(some.sum(dtype=np.int64)) for some in lengths.values())
    rows = min(max(tokens // config.seq_len, 1), _MAX_FILL_ROWS)
    by_source = list(lengths.values())
    filled = sum(int(by_source[ref.source][ref.number]) for row in range(rows) for ref in order.row(row))
    return filled / (rows * config.seq_len)


def tokens_per_step(shares: Sequence[float], fills: Sequence[float], *, seq_len: int, rows: int) -> float:
    """Tokens in the rows of one step, where sources have these shares of the tokens, in rows filled so far each."""
    return rows * seq_len / sum(share / fill for share, fill in zip(shares, fills, strict=True))


def _tasks(block_starts: NDArray[np.int64], sample: int | None, seed: int, workers: int) -> Iterator[list[Span]]:
    """Spans of documents, each inside a block, in lists that are worth sending to a process."""
    numbers: Iterable[int] = range(len(block_starts) - 1)
    if sample is not None and sample < block_starts[-1]:
        numbers = np.random.default_rng(seed).permutation(len(block_starts) - 1).tolist()
    wanted = int(block_starts[-1]) if sample is None else min(sample, int(block_starts[-1]))
    enough = min(wanted // (_TASKS_PER_WORKER * max(workers, 1)) + 1, _MAX_DOCUMENTS_PER_TASK)
    spans: list[Span] = []
    size = 0
    for number in numbers:
        start, stop = int(block_starts[number]), int(block_starts[number + 1])
        spans.append((start, stop))
        size += stop - start
        wanted -= stop - start
        if size >= enough:
            yield spans
            spans, size = [], 0
        if wanted <= 0:
            break
    if spans:
        yield spans


def _pieces(
    source: Source, config: DataConfig, tokenizer: Tokenizer, tasks: list[list[Span]], workers: int
) -> Iterator[Piece]:
    if workers == 0 or len(tasks) < 2:
        encoder = Encoder(source.config, config, tokenizer)
        return (_measure_spans(source, encoder, config, spans) for spans in tasks)
    measured = run_in_processes(_begin, (source, config), tasks, workers=workers, doing="encode")
    return (piece for _, piece in measured)


def _begin(_: Advance, source: Source, config: DataConfig) -> Callable[[list[Span]], Piece]:
    """What a worker process does with each list of spans."""
    tokenizer = load_tokenizer(config.tokenizer, config.tokenizer_engine)
    return partial(_measure_spans, source, Encoder(source.config, config, tokenizer), config)


def _measure_spans(source: Source, encoder: Encoder, config: DataConfig, spans: list[Span]) -> Piece:
    is_examples = source.config.is_examples
    size = sum(stop - start for start, stop in spans)
    lengths, used = np.zeros(size, np.int32), np.zeros(size, np.int32)
    counts = dict.fromkeys(("empty", "bad", "text_bytes", "too_long", "targets"), 0)
    bad: list[tuple[int, str]] = []
    numbers = (number for span in spans for number in range(*span))
    records = (record for span in spans for record in source.records(*span))
    for at, (number, record) in enumerate(zip(numbers, records, strict=True)):
        try:
            if isinstance(record, DamagedRecordError):
                raise record
            example = encoder.encode(record)
        except (DamagedRecordError, BadRecordError) as error:
            counts["bad"] += 1
            if len(bad) < _SHOWN_BAD_RECORDS:
                bad.append((number, str(error)))
            continue
        counts["text_bytes"] += sum(_text_bytes(record.get(name)) for name in encoder.columns)
        counts["empty"] += len(example.ids) == 0
        lengths[at] = len(example.ids)
        if is_examples and len(example.ids) > config.seq_len:
            counts["too_long"] += 1
            example = cut(example, config.seq_len if config.too_long == "cut" else 0)
            if example.is_target is not None and not example.is_target[1:].any():
                # As encode_source: what has lost all its targets is left out.
                example = cut(example, 0)
        used[at] = len(example.ids)
        targets = example.is_target
        counts["targets"] += max(len(example.ids) - 1, 0) if targets is None else int(targets[1:].sum())
    return Piece(spans[0][0], lengths, used, counts, bad)


def _text_bytes(value: object) -> int:
    """UTF-8 bytes of all texts in a field, also of those in the messages of a chat."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, Mapping):
        return sum(_text_bytes(one) for one in value.values())
    if isinstance(value, list | tuple):
        return sum(_text_bytes(one) for one in value)
    return 0
