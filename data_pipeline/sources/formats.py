"""What a kind of file must tell for its records to be read at random, and where files are read from.

A file is divided into *extents*: what is read, and checked by a checksum, as one. A line of a .jsonl is one, a row group
of Parquet, a record batch of Arrow, a frame of .jsonl.zst, a sample of MDS, a file in a folder of text files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, Protocol

MAX_EXTENT_BYTES = 16 * 10**6
"""An extent is read whole for any of its records; a file with larger ones (but for single records) is rewritten."""

Record = dict[str, Any]
"""A record by its fields; a text file has the one field `text`."""

Records = list[Record | str]
"""The records of an extent, each a dict, or as str the reason why it cannot be decoded."""

Reader = Callable[[int, bytes], Records]
"""(number of the extent in the file, its bytes) -> its records."""


HEADED = ("parquet", "arrow", "mds")
"""Formats whose extents cannot be decoded without a part of the file that describes them."""


class Extent(NamedTuple):
    """The bytes [start, end) of a file, and how many documents they hold."""

    start: int
    end: int
    documents: int


class MustBeRewritten(Exception):
    """Raised by `scan` where a file cannot be read at random: its `lines` are to be written to a framed copy."""


class ShardFormat(Protocol):
    """How one kind of file holds records. The functions of a module (data_pipeline.sources.parquet, say) are one.

    `name` is what messages call the file. What is wrong with a whole file is a DataError.
    """

    def scan(self, file: BinaryIO, name: str) -> Iterator[Extent]:
        """Find the extents, in ascending order and apart from each other; `file` can be sought in.

        Raises:
            MustBeRewritten: see there; before the first extent.
            DataError: the file is damaged.
        """
        ...

    def head(self, file: BinaryIO, name: str) -> bytes:
        """What `reader` needs of the file besides the extents (a schema, a footer); the index has its checksum, too.

        Only formats in HEADED have it. Raises DataError where the file is damaged.
        """
        ...

    def reader(self, read_head: Callable[[], bytes], name: str, columns: Sequence[str] | None) -> Reader:
        """How to decode an extent from its bytes.

        Args:
            read_head: gives the checked `head`; only called when needed.
            name: what messages call the file.
            columns: the fields that are needed, where reading fewer is cheaper; None for all. A record may have more.
        """
        ...

    def lines(self, file: BinaryIO, name: str) -> Iterator[bytes]:
        """All records in order, each as a line of JSON (UTF-8) that ends in a newline, for a file that must be rewritten.

        A generator of bounded memory. Raises DataError where the file ends early or is damaged, with the position.
        """
        ...


class Stat(NamedTuple):
    """What tells without reading a file whether it may have changed."""

    size: int
    version: str
    """Differs when the content does: the modification time in ns of a local file; etag, checksum or time of a URL."""


class Storage(Protocol):
    """Files of one kind of place: local ones (local_files.LocalFiles), or URLs (storage.RemoteFiles)."""

    def data_files(self, location: str) -> list[str]:
        """The files that hold documents at `location`: itself, or those in the folder as suffixes.data_files lists them."""
        ...

    def stat(self, location: str) -> Stat:
        """Size and version of a file. Raises OSError (FileNotFoundError where there is none)."""
        ...

    def open(self, location: str) -> BinaryIO:
        """Open a file for reading front to back, and for seeking. Raises OSError."""
        ...

    def read_range(self, location: str, start: int, end: int, *, afresh: bool = False) -> bytes:
        """The bytes [start, end) of a file, fewer only where it ends before; `afresh`: from the place itself, not a cache.

        Raises OSError.
        """
        ...
