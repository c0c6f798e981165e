"""Compressed lines of JSON: .jsonl.zst whose frames hold whole lines are read in place, all else is rewritten to such.

A *framed* file is an ordinary .jsonl.zst, that any tool can read, made of many small frames; each frame says how long
its content is, ends with a line and is an extent. Format: RFC 8878 (Zstandard), §3.1.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn

from data_pipeline.sources.errors import DataError
from data_pipeline.sources.extents import Extents, HashedFile, check_length, extents_array
from data_pipeline.sources.formats import MAX_EXTENT_BYTES, MustBeRewritten, Reader, Records
from data_pipeline.sources.jsonl import parse_lines

if TYPE_CHECKING:
    import zstandard

FRAME_BYTES = 64 << 10
"""Bytes of lines in a frame that we write, at least."""
_LEVEL = 3
_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_HEADER = 18
_PIECE = 1 << 18
_BATCH = 1024


class Frame(NamedTuple):
    """A frame of a .zst file: where it starts, and its bytes."""

    start: int
    data: bytes


def scan(file: HashedFile, name: str) -> Iterator[Extents]:
    """Find the frames of a .jsonl.zst file with their checksums and numbers of documents.

    Raises:
        MustBeRewritten: a frame does not hold whole lines, or too many of them.
        DataError: a frame is damaged, or the last is not whole.
    """
    import zstandard

    decompressor = zstandard.ZstdDecompressor()
    batch: list[tuple[int, ...]] = []
    ended_inside_line = False
    for frame in frames(file, name):
        lines = _decompressed(decompressor, frame.data, name, frame.start)
        if not lines:
            continue
        if ended_inside_line:
            raise MustBeRewritten
        ended_inside_line = not lines.endswith(b"\n")
        if documents := count_documents(lines):
            check_length(len(frame.data), name, frame.start)
            batch.append((frame.start, len(frame.data), zlib.crc32(frame.data), documents))
        if len(batch) == _BATCH:
            yield extents_array(batch)
            batch = []
    yield extents_array(batch)


def frames(file: HashedFile, name: str) -> Iterator[Frame]:
    """The frames of a file, found by their headers; skippable ones are passed over.

    Raises:
        MustBeRewritten: a frame does not say the size of its content, or it is large.
        DataError: the file ends inside a frame, or something else is in it.
    """
    import zstandard

    window = _Window(file, name)
    while not window.is_at_end():
        head = window.peek(_MAX_HEADER)
        if len(head) >= 8 and head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:
            window.take(8 + int.from_bytes(head[4:8], "little"))
            continue
        if not head.startswith(_MAGIC):
            raise DataError(
                f"{name} has at byte {window.start} something that is not Zstandard; fetch or compress it again"
            )
        try:
            parameters = zstandard.get_frame_parameters(head)
        except zstandard.ZstdError as error:
            raise DataError(
                f"{name} is damaged in the frame at byte {window.start} ({error}); fetch it again"
            ) from error
        # A size that is not known is the largest number.
        if parameters.content_size > MAX_EXTENT_BYTES:
            raise MustBeRewritten
        start = window.start
        yield Frame(start, window.take(_frame_size(window, head, parameters.has_checksum)))


def _frame_size(window: _Window, head: bytes, has_checksum: bool) -> int:
    """Bytes of the frame that begins with `head`, by the headers of its blocks."""
    import zstandard

    size = int(zstandard.frame_header_size(head))
    is_last = False
    while not is_last:
        header = int.from_bytes(window.bytes_at(size, 3), "little")
        is_last, kind, length = bool(header & 1), header >> 1 & 3, header >> 3
        # A block of kind 1 is one byte, repeated.
        size += 3 + (1 if kind == 1 else length)
    return size + (4 if has_checksum else 0)


class _Window:
    """The part of a file that is being looked at; `start` is where in the file it begins."""

    def __init__(self, file: HashedFile, name: str) -> None:
        self._file, self._name = file, name
        self._buffer = bytearray()
        self._position = 0
        self.start = 0

    def is_at_end(self) -> bool:
        return not self.peek(1)

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end of the file."""
        while len(self._buffer) - self._position < size:
            # Bytes that were taken are dropped when more are read, not every time.
            del self._buffer[: self._position]
            self._position = 0
            data = self._file.read(max(_PIECE, size - len(self._buffer)))
            if not data:
                break
            self._buffer += data
        return bytes(self._buffer[self._position : self._position + size])

    def bytes_at(self, offset: int, size: int) -> bytes:
        if len(self._buffer) - self._position < offset + size:
            self.peek(offset + size)
        found = self._buffer[self._position + offset : self._position + offset + size]
        if len(found) < size:
            self.fail()
        return bytes(found)

    def take(self, size: int) -> bytes:
        taken = self.peek(size)
        if len(taken) < size:
            self.fail()
        self._position += size
        self.start += size
        return taken

    def fail(self) -> NoReturn:
        raise DataError(
            f"{self._name} ends at byte {self._file.size}, inside the frame that begins at byte {self.start}; fetch it again"
        )


def _decompressed(decompressor: zstandard.ZstdDecompressor, frame: bytes, name: str, start: int) -> bytes:
    import zstandard

    try:
        return decompressor.decompress(frame)
    except zstandard.ZstdError as error:
        raise DataError(f"{name} is damaged in the frame at byte {start} ({error}); fetch it again") from error


def count_documents(lines: bytes) -> int:
    """How many lines are not blank."""
    return sum(1 for line in lines.split(b"\n") if line and not line.isspace())


def reader(read_head: Callable[[], bytes], name: str, columns: Sequence[str] | None) -> Reader:
    """See formats.ShardFormat; a frame is decoded from its bytes alone, with all fields."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor()

    def read(extent: int, frame: bytes) -> Records:
        # Its bytes are those that were decompressed when the index was made.
        return parse_lines(decompressor.decompress(frame))

    return read


def write_frames(file: BinaryIO, lines: Iterable[bytes], check_size: Callable[[], None]) -> Iterator[Extents]:
    """Write lines as frames of FRAME_BYTES or more, and yield the extents.

    Args:
        file: is written from where it stands.
        lines: each with a newline at its end, but for the last.
        check_size: called now and then, to raise where the file becomes too large.
    """
    import zstandard

    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True, write_content_size=True)
    batch: list[tuple[int, ...]] = []
    for content in _grouped(lines):
        frame = compressor.compress(content)
        start = file.tell()
        file.write(frame)
        if documents := count_documents(content):
            batch.append((start, len(frame), zlib.crc32(frame), documents))
        if len(batch) == _BATCH:
            check_size()
            yield extents_array(batch)
            batch = []
    check_size()
    yield extents_array(batch)


def _grouped(lines: Iterable[bytes]) -> Iterator[bytes]:
    group: list[bytes] = []
    size = 0
    for line in lines:
        group.append(line)
        size += len(line)
        if size >= FRAME_BYTES:
            yield b"".join(group)
            group, size = [], 0
    if group:
        yield b"".join(group)


def lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The lines of a .jsonl.gz or .jsonl.zst file, as they are.

    Raises:
        DataError: the file ends early or is damaged; the message has the line and the byte.
    """
    pieces = _decompressed_pieces(file, _new_gzip if name.endswith(".gz") else _new_zstd)
    number, parts = 0, [b""]
    try:
        for piece in pieces:
            # Not splitlines, which ends lines at other characters too.
            *whole, rest = piece.split(b"\n")
            for line in whole:
                parts.append(line)
                yield b"".join(parts) + b"\n"
                number, parts = number + 1, []
            parts.append(rest)
    except _DamageError as error:
        raise DataError(f"{name} {error}, inside line {number + 1}; fetch it again") from error
    if last := b"".join(parts):
        yield last


def lines_of(file: BinaryIO, name: str, documents: Sequence[int]) -> list[int]:
    """The lines, from 0, of some documents in ascending order. Raises DataError like `lines`."""
    found: list[int] = []
    document = 0
    for number, line in enumerate(lines(file, name)):
        if len(found) == len(documents):
            break
        if not line.isspace():
            if document == documents[len(found)]:
                found.append(number)
            document += 1
    return found


class _DamageError(Exception):
    """Compressed data that cannot be read; says what and where."""


def _new_gzip() -> Any:
    return zlib.decompressobj(wbits=31)


def _new_zstd() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


def _decompressed_pieces(file: BinaryIO, new_decompressor: Callable[[], Any]) -> Iterator[bytes]:
    """Decompress a file of any number of members (gzip) or frames (Zstandard)."""
    import zstandard

    decompressor: Any = None
    data, position = b"", 0
    while data or (data := file.read(_PIECE)):
        if decompressor is None:
            if new_decompressor is _new_gzip and not (data := data.lstrip(b"\0")):
                continue  # Zeros may fill a file of gzip up to a block of the tape.
            decompressor = new_decompressor()
        try:
            piece = decompressor.decompress(data)
        except (zlib.error, zstandard.ZstdError) as error:
            raise _DamageError(f"is damaged between its bytes {position} and {file.tell()} ({error})") from error
        if piece:
            yield piece
        data, position = b"", file.tell()
        if decompressor.eof:
            data, decompressor = decompressor.unused_data, None
    if decompressor is not None:
        raise _DamageError(f"ends at byte {position}, before its compressed stream does")


def json_line(record: dict[str, Any]) -> bytes:
    """A record as a line, for formats that have none; a value that JSON has not comes out as no text."""
    return (
        json.dumps(record, ensure_ascii=False, default=lambda value: {"not JSON": type(value).__name__}).encode()
        + b"\n"
    )
