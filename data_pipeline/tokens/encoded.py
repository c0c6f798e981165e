"""A source's tokens on disk: encoded once, in parallel, and read at random from then on.

A shard is encoded in pieces (token_files.py), each of which is whole or not there: a run that is stopped loses the
pieces in progress. Processes that encode the same source at once, the ranks of a run, take the missing pieces in
different orders and skip those that another has finished meanwhile. What is kept depends on the shard's content, the
tokenizer and the settings of the encoding; `seq_len`, `too_long` and `on_bad_record` are applied where it is opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import DataConfig
from data_pipeline.encoding.examples import BadRecordError, Encoder, Example, cut
from data_pipeline.encoding.loading import load_tokenizer
from data_pipeline.encoding.tokenizer import Tokenizer
from data_pipeline.processes import Advance, run_in_processes
from data_pipeline.sources.errors import DamagedRecordError, DataError
from data_pipeline.sources.index import INDEX_FOLDER, can_write, keep_folders
from data_pipeline.sources.indexing import remove_left_over
from data_pipeline.sources.local_files import LocalFiles
from data_pipeline.sources.positions import positions
from data_pipeline.sources.source import Source
from data_pipeline.tokens.token_files import (
    BAD,
    DamagedTokensError,
    Encoded,
    TokenFile,
    open_token_file,
    write_token_file,
)

Progress = Callable[[str, int, int], None]

_PIECE_BYTES = 16 * 10**6
_PIECE_DOCUMENTS = 1 << 16
_SHOWN_BAD_RECORDS = 3
_LOG = logging.getLogger(__name__)


class _Piece(NamedTuple):
    """Documents [start, stop) of the source, in one shard, and where their tokens are kept."""

    start: int
    stop: int
    paths: tuple[Path, ...]  # to look for them; the first is for writing
    made_from: dict[str, Any]

    def open(self) -> TokenFile | None:
        """The tokens, where they are kept."""
        found = (open_token_file(path, self.made_from) for path in self.paths)
        return next((file for file in found if file is not None and len(file.lengths) == self.stop - self.start), None)


class EncodedSource:
    """The tokens of all documents of a source.

    Attributes:
        lengths: tokens of each document, int32 [num_documents]; 0 where it is empty, skipped or dropped.
        counts: bad_records (skipped), too_long (examples dropped), cut (examples cut at their end).
    """

    def __init__(self, lengths: NDArray[np.int32], counts: dict[str, int], files: _Files) -> None:
        """Made by encode_source."""
        self.lengths, self.counts = lengths, counts
        self._files = files

    def example(self, number: int) -> Example:
        """The tokens of a document, lengths[number] of them.

        Raises:
            DataError: its tokens are damaged on disk, and the source cannot be read to make them again.
        """
        length = int(self.lengths[number])
        if length == 0:
            return Example(np.empty(0, dtype=np.int32))
        example = self._files.example(number)
        return cut(example, length) if len(example.ids) > length else example


def encode_source(
    source: Source, config: DataConfig, tokenizer: Tokenizer, *, workers: int = 0, progress: Progress | None = None
) -> EncodedSource:
    """Open a source's tokens, and make those that are not kept.

    Args:
        source: what to encode; one of config.sources.
        config: how: the encoding, seq_len, too_long and on_bad_record (the latter for examples and text, the former two for
            examples alone), and cache_dir.
        tokenizer: the one of `config`, loaded.
        workers: processes that encode; 0: this one.
        progress: told (what, documents encoded, documents to encode).

    Raises:
        DataError: a shard cannot be read; records hold no document and on_bad_record is "fail"; examples are too long and
            too_long is "fail"; the tokens can be kept nowhere; a worker process died.
    """
    encoder = Encoder(source.config, config, tokenizer)
    pieces = _pieces(source, config, encoder, tokenizer)
    opened = [piece.open() for piece in pieces]
    missing = [piece for piece, file in zip(pieces, opened, strict=True) if file is None]
    if missing:
        _make(source, config, encoder, tokenizer, missing, workers, progress)
    files = [_opened(piece) if file is None else file for piece, file in zip(pieces, opened, strict=True)]
    make = partial(_make_piece, source, encoder, tokenizer.vocab_size)
    return _apply_policies(source, config, encoder, _Files(pieces, files, make))


class _Files:
    """All token files of a source, as one sequence of documents."""

    def __init__(self, pieces: Sequence[_Piece], files: list[TokenFile], make: Callable[[_Piece], None]) -> None:
        self._pieces, self._files, self._make = pieces, files, make
        self._starts = np.array([piece.start for piece in pieces])
        self._disk = LocalFiles()

    def lengths(self) -> NDArray[np.int32]:
        return np.concatenate([file.lengths for file in self._files])

    def first_targets(self, numbers: NDArray[np.int64]) -> NDArray[np.int32]:
        """The first token that is predicted, of each of these documents, which have target masks."""
        found = [file.first_targets for file in self._files if file.first_targets is not None]
        return np.concatenate(found)[numbers] if len(numbers) else np.empty(0, np.int32)

    def example(self, number: int) -> Example:
        """The document as it was encoded; tokens that were damaged since are made again."""
        which = int(np.searchsorted(self._starts, number, side="right")) - 1
        piece = self._pieces[which]
        try:
            return self._files[which].example(number - piece.start, self._disk)
        except DamagedTokensError as error:
            _LOG.warning("%s; it is made again", error)
        length = self._files[which].lengths[number - piece.start]
        piece = piece._replace(paths=(_writable(piece.paths),))
        self._make(piece)
        # What is open is still the damaged one.
        self._disk = LocalFiles()
        self._files[which] = _opened(piece)
        example = self._files[which].example(number - piece.start, self._disk)
        assert len(example.ids) == length, "encoding is a function of the record"
        return example


def _apply_policies(source: Source, config: DataConfig, encoder: Encoder, files: _Files) -> EncodedSource:
    lengths = files.lengths()
    counts = {"bad_records": 0, "too_long": 0, "cut": 0}
    bad = np.flatnonzero(lengths == BAD)
    if len(bad) and config.on_bad_record == "fail":
        raise DataError(_about_bad_records(source, encoder, bad))
    lengths[bad] = 0
    counts["bad_records"] = len(bad)
    too_long = np.flatnonzero(lengths > config.seq_len) if source.config.is_examples else np.empty(0, np.int64)
    if len(too_long) and config.too_long == "fail":
        raise DataError(
            f"the source {source.name}: {len(too_long):,} of {source.num_documents:,} examples have more than "
            f"{config.seq_len:,} tokens, the longest {lengths.max():,} ({source.where(int(lengths.argmax()))}); raise "
            'data.seq_len, or leave them out with data.too_long = "drop", or cut them at their end with "cut"'
        )
    # Of an example that was cut, a target must be left.
    is_cut = (files.first_targets(too_long) < config.seq_len) & (config.too_long == "cut")
    lengths[too_long] = np.where(is_cut, config.seq_len, 0)
    counts["cut"] = int(is_cut.sum())
    counts["too_long"] = len(too_long) - counts["cut"]
    return EncodedSource(lengths, counts, files)


def _about_bad_records(source: Source, encoder: Encoder, bad: NDArray[np.int64]) -> str:
    shown = []
    for number, where in positions(source, bad[:_SHOWN_BAD_RECORDS].tolist()).items():
        (document,) = _encode(source, encoder, number, number + 1)
        shown.append(f"{where}: {document}")
    more = f"; and {len(bad) - len(shown):,} more" if len(bad) > len(shown) else ""
    return (
        f"the source {source.name}: {len(bad):,} of {source.num_documents:,} records cannot be used: {'; '.join(shown)}{more}. "
        'Correct them, or leave them out with data.on_bad_record = "skip"'
    )


def _pieces(source: Source, config: DataConfig, encoder: Encoder, tokenizer: Tokenizer) -> list[_Piece]:
    """The pieces of all shards in order; they depend on the shards alone, not on the other shards of the source."""
    folders = [
        folder / "tokens" if folder.name == INDEX_FOLDER else folder.parent / "tokens"
        for folder in keep_folders(source.config.path or "hub://", config.cache_dir)
    ]
    pieces, first = [], 0
    for shard in source.shards:
        made_from = {"shard": shard.sha256, "tokenizer": tokenizer.fingerprint, "encoding": encoder.fingerprint}
        key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]
        count = max(-(-shard.num_bytes // _PIECE_BYTES), -(-shard.num_documents // _PIECE_DOCUMENTS), 1)
        size = max(-(-shard.num_documents // count), 1)
        for start in range(0, shard.num_documents, size):
            stop = min(start + size, shard.num_documents)
            paths = tuple(folder / key / f"{start}-{stop}.tokens" for folder in folders)
            # As JSON gives it back: lists for tuples.
            pieces.append(_Piece(first + start, first + stop, paths, json.loads(json.dumps(made_from))))
        first += shard.num_documents
    return pieces


def _make(
    source: Source,
    config: DataConfig,
    encoder: Encoder,
    tokenizer: Tokenizer,
    missing: list[_Piece],
    workers: int,
    progress: Progress | None,
) -> None:
    missing = [piece._replace(paths=(_writable(piece.paths), *piece.paths)) for piece in missing]
    random.shuffle(missing)
    done, total = 0, sum(piece.stop - piece.start for piece in missing)
    if workers > 0 and len(missing) > 1:
        made = run_in_processes(_begin, (source, config), missing, workers=workers, doing="encode")
        making = (size for _, size in made)
    else:
        making = (_make_missing_piece(source, encoder, tokenizer.vocab_size, piece) for piece in missing)
    for size in making:
        done += size
        if progress is not None:
            progress(f"encoding {source.name}", done, total)


def _writable(paths: Sequence[Path]) -> Path:
    """The first path whose folder can be written; it is made."""
    reasons = []
    for path in paths:
        if (why := can_write(path.parent)) is None:
            return path
        reasons.append(why)
    raise DataError(
        f"tokens can be kept nowhere ({'; '.join(reasons)}); set data.cache_dir to a folder that can be written"
    )


def _begin(_: Advance, source: Source, config: DataConfig) -> Callable[[_Piece], int]:
    """What a worker process does with each missing piece."""
    tokenizer = load_tokenizer(config.tokenizer, config.tokenizer_engine)
    return partial(_make_missing_piece, source, Encoder(source.config, config, tokenizer), tokenizer.vocab_size)


def _make_missing_piece(source: Source, encoder: Encoder, vocab_size: int, piece: _Piece) -> int:
    """Make a piece, unless another process has; return its number of documents."""
    if piece.open() is None:
        _make_piece(source, encoder, vocab_size, piece)
    return piece.stop - piece.start


def _make_piece(source: Source, encoder: Encoder, vocab_size: int, piece: _Piece) -> None:
    path = piece.paths[0]
    remove_left_over(path)
    try:
        write_token_file(
            path,
            _encode(source, encoder, piece.start, piece.stop),
            piece.made_from,
            vocab_size=vocab_size,
            has_targets=source.config.is_examples,
        )
    except OSError as error:
        raise DataError(
            f"the tokens of the source {source.name} cannot be written to {path.parent}: {error.strerror}; "
            "make room there, or set data.cache_dir to another folder"
        ) from error


def _encode(source: Source, encoder: Encoder, start: int, stop: int) -> Iterator[Encoded]:
    """The documents [start, stop), or for a record without one an error that says why (to tell where may take reading)."""
    blocks = source.block_starts
    bounds = [start, *blocks[(blocks > start) & (blocks < stop)].tolist(), stop]
    for block_start, block_stop in pairwise(bounds):
        for record in source.records(block_start, block_stop):
            try:
                yield record if isinstance(record, DamagedRecordError) else encoder.encode(record)
            except BadRecordError as error:
                yield error


def _opened(piece: _Piece) -> TokenFile:
    file = piece.open()
    if file is None:
        raise DataError(
            f"{piece.paths[0]} cannot be read although it was just written; look after the storage, or set data.cache_dir"
        )
    return file
