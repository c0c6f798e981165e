"""Parquet files: a row group is an extent, decoded from its bytes alone with the metadata at the file's end."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from data_pipeline.sources.arrow import chosen_columns, line_of, one_line, records_of
from data_pipeline.sources.errors import DataError
from data_pipeline.sources.formats import MAX_EXTENT_BYTES, Extent, MustBeRewritten, Reader, Records

if TYPE_CHECKING:
    from pyarrow import parquet

_END = struct.Struct("<I4s")
_MAGIC = b"PAR1"
_ROWS = 256
"""Rows decoded at once where a file is rewritten."""


def scan(file: BinaryIO, name: str) -> Iterator[Extent]:
    """Find the row groups by the metadata at the end of the file; see formats.ShardFormat.

    Raises:
        MustBeRewritten: a row group is larger than an extent may be, or lies between the parts of another.
        DataError: the metadata cannot be read, or point outside of the file.
    """
    metadata = _parse_metadata(head(file, name), name)
    size = file.seek(0, io.SEEK_END)
    _check_columns(metadata, name)
    extents = [_extent(metadata, number) for number in _row_groups(metadata)]
    for extent in extents:
        if not 0 <= extent.start < extent.end <= size:
            raise DataError(
                f"{name} has {size} bytes, and says that it has rows at bytes {extent.start} to {extent.end}; fetch it again"
            )
    end = 0
    for extent in extents:
        too_large = extent.end - extent.start > MAX_EXTENT_BYTES and extent.documents > 1
        if too_large or extent.start < end:
            raise MustBeRewritten
        end = extent.end
    yield from extents


def head(file: BinaryIO, name: str) -> bytes:
    """The end of the file, from the metadata on."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _END.size))
    end = file.read()
    length, magic = _END.unpack(end) if len(end) == _END.size else (0, b"")
    if magic != _MAGIC or length + _END.size > size:
        raise DataError(f"{name} does not end, at byte {size}, as a Parquet file does; fetch or write it again")
    file.seek(size - _END.size - length)
    return file.read()


def reader(read_head: Callable[[], bytes], name: str, columns: Sequence[str] | None) -> Reader:
    """See formats.ShardFormat; the head are the metadata."""
    metadata: parquet.FileMetaData | None = None
    row_groups: list[int] = []
    chosen: list[str] | None = None

    def read(extent: int, data: bytes) -> Records:
        nonlocal metadata, row_groups, chosen
        if metadata is None:
            metadata = _parse_metadata(read_head(), name)
            row_groups = _row_groups(metadata)
            chosen = chosen_columns(metadata.schema.to_arrow_schema().names, columns)
        return _decode(metadata, row_groups[extent], data, chosen)

    return read


def lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    """All rows as lines of JSON; see formats.ShardFormat."""
    import pyarrow as pa
    from pyarrow import parquet

    metadata = _parse_metadata(head(file, name), name)
    table = parquet.ParquetFile(
        file, metadata=metadata, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
    )
    for row_group in _row_groups(metadata):
        try:
            for batch in table.iter_batches(_ROWS, row_groups=[row_group], use_threads=False):
                for record in records_of(batch):
                    yield line_of(record)
        except (pa.ArrowException, OSError) as error:
            start, end, rows = _extent(metadata, row_group)
            raise DataError(
                f"{name} is damaged in its row group {row_group} ({rows} rows, bytes {start} to {end}): {one_line(error)}; fetch it again"
            ) from error


def _parse_metadata(head: bytes, name: str) -> parquet.FileMetaData:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_metadata(pa.BufferReader(head))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{name} is damaged in its last {len(head)} bytes, its metadata ({one_line(error)}); fetch or write it again"
        ) from error


def _check_columns(metadata: parquet.FileMetaData, name: str) -> None:
    """Let the library look at what the metadata say of each part of each column, as it does before it reads it.

    Where that is damaged, asking for it from Python ends the process (pyarrow 26 lets an exception of C++ through).
    """
    import pyarrow as pa
    from pyarrow import parquet

    # Whether it lies in the file is not the question here.
    unread = _Unread(b"", 1 << 62)
    file = parquet.ParquetFile(unread, metadata=metadata, pre_buffer=False)
    for number in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            unread.is_asked = False
            try:
                file.reader.read_row_group(number, column_indices=[column], use_threads=False)
            except (pa.ArrowException, OSError) as error:
                if not unread.is_asked:
                    raise DataError(
                        f"{name} is damaged in its metadata, column {column} of row group {number} ({one_line(error)}); "
                        "fetch or write it again"
                    ) from error


def _row_groups(metadata: parquet.FileMetaData) -> list[int]:
    """Numbers of the row groups that have rows."""
    return [number for number in range(metadata.num_row_groups) if metadata.row_group(number).num_rows > 0]


def _extent(metadata: parquet.FileMetaData, number: int) -> Extent:
    """Bytes of a row group, from its first column's first page to the end of its last."""
    row_group = metadata.row_group(number)
    columns = [row_group.column(column) for column in range(row_group.num_columns)]
    starts = [_first_page(column) for column in columns]
    ends = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
    return Extent(min(starts, default=0), max(ends, default=0), row_group.num_rows)


def _first_page(column: parquet.ColumnChunkMetaData) -> int:
    # Some writers say 0 for a dictionary that is not there.
    dictionary = column.dictionary_page_offset or column.data_page_offset
    return int(min(dictionary, column.data_page_offset))


def _decode(metadata: parquet.FileMetaData, row_group: int, data: bytes, columns: list[str] | None) -> Records:
    """The rows of a row group, or for all of them why they cannot be read."""
    import pyarrow as pa
    from pyarrow import parquet

    start, end, rows = _extent(metadata, row_group)
    try:
        file = parquet.ParquetFile(_Part(data, start), metadata=metadata, page_checksum_verification=True)
        table = file.read_row_group(row_group, columns=columns, use_threads=False)
        if table.num_rows != rows:
            raise pa.ArrowInvalid(f"it holds {table.num_rows} rows")
    except (pa.ArrowException, OSError) as error:
        why = f"lies in a damaged row group ({row_group}, {rows} rows, bytes {start} to {end}): {one_line(error)}; write the file again"
        return [why] * rows
    return records_of(table)


class _Part(io.RawIOBase):
    """A file of which only the bytes from `start` on are there, and others are not asked for."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data = memoryview(data)
        self._start = start
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        end = self._start + len(self._data)
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: end}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        first = self._position - self._start
        if first < 0:
            raise OSError(f"its metadata point to byte {self._position}, before the row group")
        data = self._data[first : first + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class _Unread(_Part):
    """A file of which nothing is there; tells whether any of it was asked for."""

    is_asked = False

    def readinto(self, buffer: Any) -> int:
        self.is_asked = True
        raise OSError("not there")
