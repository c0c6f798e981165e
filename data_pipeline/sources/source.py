"""The documents of one source, numbered over all its shards and divided into blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import SourceConfig
from data_pipeline.files import is_url
from data_pipeline.sources.decoded import DecodedExtents
from data_pipeline.sources.errors import DamagedRecordError, DataError
from data_pipeline.sources.formats import Record, Storage
from data_pipeline.sources.index import HOME_CACHE
from data_pipeline.sources.indexing import copies_size, open_indexes
from data_pipeline.sources.local_files import LocalFiles
from data_pipeline.sources.shard import Shard
from data_pipeline.sources.shard_file import ShardFile, unreadable
from data_pipeline.sources.suffixes import FORMATS, MDS_INDEX, format_of
from data_pipeline.sources.text import TextFiles

BLOCKS = 2**16
"""A source has about this many blocks, where it has more documents."""


class Source:
    """All documents of one source. May be pickled to other processes, which map the same indexes.

    Attributes:
        name: the key in `data.sources`.
        config: its settings.
        shards: its files in order.
        num_documents: documents in all shards, empty and damaged ones too.
        num_bytes: bytes of all shards.
    """

    def __init__(self, name: str, config: SourceConfig, shards: Sequence[Shard]) -> None:
        """A source of shards that have been indexed; see open_source."""
        self.name, self.config, self.shards = name, config, list(shards)
        self._first = np.cumsum([0, *(shard.num_documents for shard in self.shards)])
        self.num_documents = int(self._first[-1])
        self.num_bytes = sum(shard.num_bytes for shard in self.shards)

    @cached_property
    def fingerprint(self) -> str:
        """A hex hash of the content of all shards in their order, whatever their names and places."""
        return hashlib.sha256("\n".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    @cached_property
    def block_starts(self) -> NDArray[np.int64]:
        """The first document of each block, then num_documents; int64 [blocks + 1].

        A block lies in one shard, is made of whole extents, and holds ceil(num_documents / BLOCKS) documents, or fewer at
        the end of a shard or before an extent that would be too much, or more in an extent that alone has more.
        """
        size = -(-self.num_documents // BLOCKS)
        starts = [
            first + _block_starts(shard, size)
            for first, shard in zip(self._first[:-1].tolist(), self.shards, strict=True)
        ]
        return np.concatenate([*starts, [self.num_documents]]).astype(np.int64)

    def __getstate__(self) -> dict[str, Any]:
        """All but the blocks, which are soon made again."""
        return {name: value for name, value in vars(self).items() if name != "block_starts"}

    def records(
        self, start: int, stop: int, decoded: DecodedExtents | None = None
    ) -> list[Record | DamagedRecordError]:
        """Read the documents [start, stop), which lie in one shard; those of a block are one read.

        Args:
            start: the first document.
            stop: the one after the last.
            decoded: where an extent of which this is a part is looked for, and kept; None: it is decoded, and not kept.

        Returns:
            A record for each document, or the error that says where a record is and why it cannot be decoded.

        Raises:
            DataError: the bytes are not those that were indexed, or cannot be read.
        """
        shard, within = self._locate(start)
        assert start < stop <= start - within + shard.num_documents, "documents of one shard"
        return shard.records(within, within + stop - start, decoded)

    def extent_bytes(self, start: int, stop: int) -> int:
        """Bytes on disk of the extents that hold the documents [start, stop), which lie in one shard."""
        shard, within = self._locate(start)
        first, last = shard.extent_of(within), shard.extent_of(within + stop - start - 1)
        return int(shard.index.extents["length"][first : last + 1].sum(dtype=np.int64))

    def where(self, number: int) -> str:
        """Where a document is, for messages: "data/a.jsonl, line 17 (byte 2048)". May have to read the file up to there."""
        shard, within = self._locate(number)
        return shard.where(within)

    def _locate(self, number: int) -> tuple[Shard, int]:
        assert 0 <= number < self.num_documents, "a document of this source"
        which = int(np.searchsorted(self._first, number, side="right")) - 1
        return self.shards[which], number - int(self._first[which])


def _block_starts(shard: Shard, size: int) -> NDArray[np.int64]:
    """First documents of the shard's blocks of `size` documents, of whole extents."""
    firsts = shard.index.first_documents
    if firsts is None:
        return np.arange(0, shard.num_documents, size, dtype=np.int64)
    starts, extent = [], 0
    while extent < len(firsts) - 1:
        starts.append(int(firsts[extent]))
        extent = max(extent + 1, int(np.searchsorted(firsts, starts[-1] + size, side="right")) - 1)
    return np.array(starts, dtype=np.int64)


def open_source(
    name: str,
    config: SourceConfig,
    *,
    cache_dir: Path | None,
    cache_bytes: int,
    workers: int = 0,
    columns: Sequence[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Source:
    """Open a source, and index the shards that are not indexed.

    Args:
        name: the key in `data.sources`, for messages.
        config: its settings.
        cache_dir: where indexes and copies are kept (data.cache_dir); None: beside local data, else in ~/.cache/palimpsest.
        cache_bytes: most bytes that copies may take there.
        workers: processes that make indexes; 0: this one.
        columns: fields that are needed, where reading fewer is cheaper; None for all.
        progress: told (what, bytes read, bytes to read) now and then while indexes are made.

    Raises:
        DataError: a file cannot be read or indexed, or there are no documents.
    """
    files = shard_files(config, cache_dir, cache_bytes)
    try:
        indexes = open_indexes(
            files,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
            workers=workers,
            what=f"indexing {name}",
            progress=progress,
        )
    except DataError as error:
        raise DataError(f"the source {name}: {error}") from error
    if config.path is not None and is_url(config.path) and any(index.copy is not None for index in indexes):
        # The copies are there now, and leave less room for parts of files.
        storage = _storage(config.path, cache_dir, cache_bytes)
        files = [file if file.format == "text" else replace(file, storage=storage) for file in files]
    shards = [Shard(file, index, columns) for file, index in zip(files, indexes, strict=True) if index.num_documents]
    if not shards:
        raise DataError(no_documents(name, config))
    return Source(name, config, shards)


def no_documents(name: str, config: SourceConfig) -> str:
    """What is said of a source that is there and has nothing in it."""
    return f"the source {name} at {config.location} holds no documents; give it some, or leave it out"


def shard_files(config: SourceConfig, cache_dir: Path | None, cache_bytes: int) -> list[ShardFile]:
    """The files of a source; all its text files are one, the last.

    Raises:
        DataError: there are none, or they cannot be listed.
    """
    if config.path is None:
        from data_pipeline.sources import hub

        local = LocalFiles()
        return [ShardFile(str(path), "arrow", local) for path in hub.arrow_files(config, cache_dir)]
    storage = _storage(config.path, cache_dir, cache_bytes)
    try:
        locations = storage.data_files(config.path)
    except OSError as error:
        raise unreadable(config.path, error) from error
    if [location for location in locations if location.rsplit("/", 1)[-1] == MDS_INDEX]:
        from data_pipeline.sources import mds

        return [
            ShardFile(location, "mds", storage)
            for location in mds.shard_locations(config.path, locations, config.split, storage)
        ]
    formats = {location: format_of(location) for location in locations}
    files = [ShardFile(location, kind, storage) for location, kind in formats.items() if kind not in (None, "text")]
    if texts := [location for location, kind in formats.items() if kind == "text"]:
        files.append(ShardFile(config.path, "text", TextFiles(storage, texts)))
    if not files:
        raise DataError(f"{config.path} holds no {', '.join(FORMATS)} file; name one that does")
    return files


def _storage(path: str, cache_dir: Path | None, cache_bytes: int) -> Storage:
    if not is_url(path):
        return LocalFiles()
    from data_pipeline.sources.storage import RemoteFiles

    cache = cache_dir or HOME_CACHE.expanduser()
    return RemoteFiles(cache, max(0, cache_bytes - copies_size(cache / "index")))
