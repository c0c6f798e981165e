"""The extents of a file as an array: where they are, their checksums, their documents."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_pipeline.sources.errors import DataError
from data_pipeline.sources.formats import Extent

CHUNK = 2 << 20
"""Bytes read at once while a file is indexed."""
_WORTH_A_THREAD = 1 << 17
MAX_LENGTH = 2**32 - 1

EXTENT = np.dtype([("start", "<i8"), ("length", "<u4"), ("crc32", "<u4")])
"""An extent of one document: its first byte, its bytes, and zlib.crc32 of them."""
EXTENT_OF_MANY = np.dtype([*EXTENT.descr, ("documents", "<u4")])
"""An extent of several documents, and how many."""
Extents = NDArray[np.void]


class HashedFile:
    """Reads a file front to back and hashes all that is read, in a second thread."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], None]) -> None:
        """Read `file` from where it stands, and tell `advance` of every byte."""
        self._file, self._advance = file, advance
        self._digest = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1)
        self._hashing: Future[None] | None = None
        self.size = 0

    def __enter__(self) -> HashedFile:
        """Be a context, at whose end the thread ends."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the thread; the file stays open."""
        self._pool.shutdown()

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes; none are left where it returns none."""
        data = self._file.read(size)
        # At most one piece waits: memory stays bounded, and pieces are hashed in order.
        if self._hashing is not None:
            self._hashing.result()
            self._hashing = None
        if len(data) < _WORTH_A_THREAD:
            self._digest.update(data)
        else:
            self._hashing = self._pool.submit(self._digest.update, data)
        self.size += len(data)
        self._advance(len(data))
        return data

    def sha256(self) -> str:
        """Hex hash of the whole file, whose rest is read where needed."""
        while self.read(CHUNK):
            pass
        # The last read, of nothing, has waited for all before it.
        return self._digest.hexdigest()


def extents_array(extents: list[tuple[int, ...]], dtype: np.dtype[Any] = EXTENT_OF_MANY) -> Extents:
    """A batch of extents from tuples in the order of `dtype`'s fields."""
    return np.array(extents, dtype=dtype)


def with_checksums(
    file: HashedFile, extents: Iterator[Extent], name: str, dtype: np.dtype[Any] = EXTENT_OF_MANY
) -> Iterator[Extents]:
    """Read the file once, front to back, to add the checksums to extents that a format found; empty ones are left out.

    Raises:
        DataError: the file ends before an extent does, or one is too long.
    """
    batch: list[tuple[int, ...]] = []
    for extent in extents:
        if extent.documents == 0:
            continue
        assert extent.start >= file.size, "extents ascend"
        _read_over(file, extent.start - file.size)
        length = extent.end - extent.start
        crc, read = _read_over(file, length)
        if read < length:
            where = f"its part at bytes {extent.start} to {extent.end}"
            raise DataError(f"{name} ends at byte {file.size}, before {where} does; fetch it again")
        check_length(length, name, extent.start)
        batch.append((extent.start, length, crc, extent.documents)[: len(dtype.names or ())])
        if len(batch) == 4096:
            yield extents_array(batch, dtype)
            batch = []
    yield extents_array(batch, dtype)


def check_length(length: int, name: str, start: int) -> None:
    """Raise DataError for an extent that is longer than the index can say."""
    if length > MAX_LENGTH:
        raise DataError(f"{name} has at byte {start} a record of {length} bytes, above {MAX_LENGTH}; split it")


def _read_over(file: HashedFile, length: int) -> tuple[int, int]:
    """Read `length` bytes; return their checksum and how many there were."""
    crc = read = 0
    while read < length and (data := file.read(min(CHUNK, length - read))):
        crc = zlib.crc32(data, crc)
        read += len(data)
    return crc, read
