"""Files on a mounted disk."""

from __future__ import annotations

import errno
import os
import stat
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

from data_pipeline.sources.formats import Stat
from data_pipeline.sources.suffixes import data_files

_MAX_OPEN_FILES = 64


class LocalFiles:
    """Local paths as formats.Storage. The files read last stay open, as opening is the slow part on shared storage.

    May be pickled and forked: another process opens the files anew, and reads share no position.
    """

    def __init__(self) -> None:
        """Open nothing yet."""
        self._descriptors: OrderedDict[str, int] = OrderedDict()
        weakref.finalize(self, _close_all, self._descriptors)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: descriptors mean nothing elsewhere."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin with no file open."""
        self.__init__()  # type: ignore[misc]

    def data_files(self, location: str) -> list[str]:
        """See formats.Storage."""
        path = Path(location)
        return [str(file) for file in data_files(path)] if path.is_dir() else [location]

    def stat(self, location: str) -> Stat:
        """See formats.Storage."""
        found = os.stat(location)
        if stat.S_ISFIFO(found.st_mode):
            raise OSError(errno.EINVAL, "it is a FIFO, which would be waited for", location)
        return Stat(found.st_size, str(found.st_mtime_ns))

    def open(self, location: str) -> BinaryIO:
        """See formats.Storage."""
        # The large reads of an index being made need no buffer between, the small ones of a footer do.
        return open(location, "rb", buffering=1 << 16)

    def read_range(self, location: str, start: int, end: int, *, afresh: bool = False) -> bytes:
        """See formats.Storage; `afresh` opens the file anew, which helps where a server has forgotten it."""
        if afresh:
            self._close(location)
        pieces = []
        while start < end and (piece := os.pread(self._descriptor(location), end - start, start)):
            # One call of the system reads 2 GiB at most.
            pieces.append(piece)
            start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _descriptor(self, location: str) -> int:
        if location not in self._descriptors:
            if len(self._descriptors) >= _MAX_OPEN_FILES:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[location] = os.open(location, os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors.move_to_end(location)
        return self._descriptors[location]

    def _close(self, location: str) -> None:
        if location in self._descriptors:
            os.close(self._descriptors.pop(location))


def _close_all(descriptors: OrderedDict[str, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
