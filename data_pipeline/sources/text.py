"""Text files, each a document: all of a folder are one shard, that reads as one file.

In it each file is its length (8 bytes, little-endian), then its bytes, so that the shard's hash tells the files apart;
the bytes are the extent.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader, RawIOBase
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from data_pipeline.sources.formats import Extent, Reader, Records, Stat, Storage

_LENGTH = struct.Struct("<Q")


class TextFiles:
    """Many files as one, for formats.Storage; its only location is that of the shard."""

    def __init__(self, storage: Storage, files: Sequence[str]) -> None:
        """The files in order; their sizes are looked up by the first `stat`."""
        self.files = list(files)
        self._storage = storage
        self._starts: NDArray[np.int64] | None = None

    def data_files(self, location: str) -> list[str]:
        """The files."""
        return self.files

    def stat(self, location: str) -> Stat:
        """Size of all, and a hash of their names, sizes and versions."""
        stats = [self._storage.stat(file) for file in self.files]
        if self._starts is None:
            sizes = np.array([stat.size for stat in stats], dtype=np.int64)
            self._starts = np.concatenate(([0], np.cumsum(sizes + _LENGTH.size)))
        names = "\0".join(f"{file}\0{size}\0{version}" for file, (size, version) in zip(self.files, stats, strict=True))
        digest = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        return Stat(sum(stat.size + _LENGTH.size for stat in stats), digest)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each file begins, with its length, then the size of all; int64 [files + 1]."""
        if self._starts is None:
            self.stat("")
        assert self._starts is not None
        return self._starts

    def open(self, location: str) -> BinaryIO:
        """Read all files front to back."""
        return cast(BinaryIO, BufferedReader(_Joined(self), 1 << 20))

    def read_range(self, location: str, start: int, end: int, *, afresh: bool = False) -> bytes:
        """The bytes [start, end) of all; fewer only where a file has become shorter."""
        pieces = []
        number = int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < end and number < len(self.files):
            begins, ends = int(self.starts[number]), int(self.starts[number + 1])
            piece = self._read(number, start - begins, min(end, ends) - begins, afresh)
            pieces.append(piece)
            if start + len(piece) < min(end, ends):
                break
            start, number = min(end, ends), number + 1
        return b"".join(pieces)

    def _read(self, number: int, start: int, end: int, afresh: bool) -> bytes:
        size = int(self.starts[number + 1] - self.starts[number]) - _LENGTH.size
        length = _LENGTH.pack(size)[start:end]
        start, end = max(start - _LENGTH.size, 0), end - _LENGTH.size
        if start >= end:
            return length
        return length + self._storage.read_range(self.files[number], start, end, afresh=afresh)

    def extents(self) -> Iterator[Extent]:
        """Where in all the bytes of each file are."""
        for start, end in zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            yield Extent(start + _LENGTH.size, end, 1)


class _Joined(RawIOBase):
    def __init__(self, files: TextFiles) -> None:
        self._files = files
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._files.read_range("", self._position, self._position + len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def reader(read_head: Callable[[], bytes], name: str, columns: Sequence[str] | None) -> Reader:
    """See formats.ShardFormat; a file that is not UTF-8 is a damaged record."""
    return lambda extent, data: parse_text(data)


def parse_text(data: bytes) -> Records:
    """The one record of a text file."""
    try:
        return [{"text": data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")}]
    except UnicodeDecodeError as error:
        return [f"is not UTF-8 ({error.reason} at byte {error.start} of it); convert it or remove it"]
