"""Arrow files, in the streaming format (as Hugging Face `datasets` writes them) or the file format: a record batch is an extent.

Both are a sequence of messages: 0xFFFFFFFF, the length of the metadata (int32), the metadata (a flatbuffer), the body. The
file format has eight bytes before them and a footer after. https://arrow.apache.org/docs/format/Columnar.html
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from data_pipeline.sources.errors import DataError
from data_pipeline.sources.formats import MAX_EXTENT_BYTES, Extent, MustBeRewritten, Reader, Record, Records
from data_pipeline.sources.framed import json_line

if TYPE_CHECKING:
    import pyarrow as pa

_FILE_MAGIC = b"ARROW1\0\0"
_CONTINUATION = b"\xff\xff\xff\xff"
_SCHEMA, _RECORD_BATCH = 1, 3
_MAX_METADATA = 1 << 28
_ROWS = 256


def scan(file: BinaryIO, name: str) -> Iterator[Extent]:
    """Find the record batches by the messages' metadata; bodies are passed over. See formats.ShardFormat.

    Raises:
        MustBeRewritten: a batch is larger than an extent may be, or needs dictionaries kept elsewhere in the file.
        DataError: the file ends early, or is no Arrow file.
    """
    messages = list(_messages(file, name))
    kinds = [message.kind for message in messages]
    if kinds[:1] != [_SCHEMA]:
        raise DataError(f"{name} does not begin with a schema, as Arrow files do; write it again")
    extents = [Extent(message.start, message.end, message.rows) for message in messages[1:]]
    too_large = any(extent.end - extent.start > MAX_EXTENT_BYTES and extent.documents > 1 for extent in extents)
    if too_large or any(kind != _RECORD_BATCH for kind in kinds[1:]):
        raise MustBeRewritten
    yield from (extent for extent in extents if extent.documents > 0)


def head(file: BinaryIO, name: str) -> bytes:
    """The message with the schema."""
    message = next(_messages(file, name))
    file.seek(message.start)
    return file.read(message.end - message.start)


def reader(read_head: Callable[[], bytes], name: str, columns: Sequence[str] | None) -> Reader:
    """See formats.ShardFormat; the head is the schema."""
    import pyarrow as pa

    schema: pa.Schema | None = None
    chosen: list[str] | None = None

    def read(extent: int, data: bytes) -> Records:
        nonlocal schema, chosen
        if schema is None:
            schema = _parse_schema(read_head(), name)
            chosen = chosen_columns(schema.names, columns)
        rows = _parse_message(memoryview(data), 0).rows
        try:
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(data)), schema)
        except (pa.ArrowException, OSError) as error:
            return [f"lies in a damaged record batch ({one_line(error)}); write the file again"] * rows
        return records_of(batch if chosen is None else batch.select(chosen))

    return read


def lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    """All rows as lines of JSON; see formats.ShardFormat."""
    import pyarrow as pa

    magic = file.read(len(_FILE_MAGIC))
    file.seek(0)
    number = 0
    try:
        batches = _file_batches(file) if magic == _FILE_MAGIC else pa.ipc.open_stream(file)
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS):
                for record in records_of(batch.slice(start, _ROWS)):
                    yield line_of(record)
            number += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name} is damaged in its record batch {number}, before byte {file.tell()}: {one_line(error)}; fetch it again"
        ) from error


def chosen_columns(present: Sequence[str], wanted: Sequence[str] | None) -> list[str] | None:
    """Those columns of a file that are wanted, where there are any; None for all.

    A file without any is read whole, so that whoever misses a field in a record can say which ones there are.
    """
    if wanted is None:
        return None
    return [column for column in present if column in wanted] or None


def records_of(rows: pa.Table | pa.RecordBatch) -> Records:
    """Rows as records, with nested lists and structs as lists and dicts; for one that is damaged the reason."""
    import pyarrow as pa

    try:
        # Reading without looking first would follow damaged offsets to anywhere in memory.
        rows.validate(full=True)
        return rows.to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        if rows.num_rows == 1:
            return [f"cannot be decoded ({one_line(error)}); write the file again or remove it"]
    return [record for row in range(rows.num_rows) for record in records_of(rows.slice(row, 1))]


def line_of(record: Record | str) -> bytes:
    """A record as a line of JSON; one that is damaged keeps its place, as a line that is no JSON object."""
    return json_line(record) if isinstance(record, dict) else json.dumps(record).encode() + b"\n"


def one_line(error: BaseException) -> str:
    """What an error says, without ends of lines."""
    return " ".join(str(error).split())


class _Message(NamedTuple):
    kind: int
    start: int
    end: int
    rows: int


def _messages(file: BinaryIO, name: str) -> Iterator[_Message]:
    """The messages of a file up to the mark of its end."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    first = position = len(_FILE_MAGIC) if file.read(len(_FILE_MAGIC)) == _FILE_MAGIC else 0
    while True:
        file.seek(position)
        head = file.read(8)
        if head == _CONTINUATION + b"\0\0\0\0":
            if first and not _ends_as_file(file, size):
                raise DataError(f"{name} ends at byte {size}, before its footer does; fetch or write it again")
            return
        length = struct.unpack("<i", head[4:])[0] if len(head) == 8 else 0
        if len(head) == 8 and (head[:4] != _CONTINUATION or not 0 < length < _MAX_METADATA):
            raise DataError(
                f"{name} has at byte {position} something that is no Arrow message; fetch or write it again"
            )
        try:
            message = _parse_message(memoryview(head + file.read(length)), position)
        except (struct.error, ValueError) as error:
            message = None
            if position + 8 + length <= size and len(head) == 8:
                raise DataError(f"{name} is damaged in the message at byte {position}; fetch it again") from error
        if message is None or message.end > size:
            raise DataError(
                f"{name} ends at byte {size}, inside or before the message at byte {position}, without the mark of its end; "
                "fetch or write it again"
            )
        yield message
        position = message.end


def _ends_as_file(file: BinaryIO, size: int) -> bool:
    """Whether the file ends with the mark of the file format."""
    mark = _FILE_MAGIC.rstrip(b"\0")
    file.seek(size - len(mark))
    return file.read() == mark


def _parse_message(data: memoryview, position: int) -> _Message:
    """Kind, extent and rows of the message that begins with `data`, at byte `position` of the file.

    Raises:
        struct.error, ValueError: it is damaged.
    """
    (length,) = struct.unpack_from("<i", data, 4)
    metadata = data[8 : 8 + length]
    (root,) = struct.unpack_from("<I", metadata, 0)
    kind = _scalar(metadata, root, 1, "<B")
    body = _scalar(metadata, root, 3, "<q")
    rows = 0
    if kind == _RECORD_BATCH:
        batch = _target(metadata, root, 2)
        rows = _scalar(metadata, batch, 0, "<q")
        # The first column says it again: a flipped bit must not make a batch of 2^50 rows.
        columns = _target(metadata, batch, 1)
        if not columns or struct.unpack_from("<Iq", metadata, columns)[1] != rows:
            raise ValueError("the columns have another number of rows")
    if body < 0 or rows < 0:
        raise ValueError("negative lengths")
    return _Message(kind, position, position + 8 + length + body, rows)


def _field(data: memoryview, table: int, number: int) -> int:
    """Position of a field of a flatbuffer table, 0 where it has its default. https://flatbuffers.dev/internals"""
    (to_vtable,) = struct.unpack_from("<i", data, table)
    vtable = table - to_vtable
    if table < 0 or vtable < 0:
        raise ValueError("points before its start")
    (vtable_size,) = struct.unpack_from("<H", data, vtable)
    if 4 + 2 * number >= vtable_size:
        return 0
    (offset,) = struct.unpack_from("<H", data, vtable + 4 + 2 * number)
    return table + offset if offset else 0


def _target(data: memoryview, table: int, number: int) -> int:
    """Position of what a field of a table points to, 0 where there is none."""
    at = _field(data, table, number)
    return at + int(struct.unpack_from("<I", data, at)[0]) if at else 0


def _scalar(data: memoryview, table: int, number: int, kind: str) -> int:
    at = _field(data, table, number)
    return int(struct.unpack_from(kind, data, at)[0]) if at else 0


def _parse_schema(head: bytes, name: str) -> pa.Schema:
    import pyarrow as pa

    try:
        schema = pa.ipc.read_schema(pa.ipc.read_message(pa.py_buffer(head)))
        schema.names  # noqa: B018  (decoded only when asked for)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{name} is damaged in its schema ({one_line(error)}); fetch it again") from error
    return schema


def _file_batches(file: Any) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    batches = pa.ipc.open_file(file)
    return (batches.get_batch(number) for number in range(batches.num_record_batches))
