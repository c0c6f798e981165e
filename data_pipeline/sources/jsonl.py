"""Files with one JSON object per line: each line that is not blank is an extent of one document."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import numpy as np

from data_pipeline.sources.extents import CHUNK, EXTENT, Extents, HashedFile, check_length
from data_pipeline.sources.formats import Reader, Record, Records

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NEWLINE = ord("\n")
_IS_SPACE = np.array([bytes([byte]).isspace() for byte in range(256)])


def scan(file: HashedFile, name: str) -> Iterator[Extents]:
    """Find the lines of a file that are not blank, with their checksums, a chunk of the file at a time.

    Nothing of a line is kept from chunk to chunk but its start, its checksum so far and whether it is blank so far.
    """
    start, crc, blank, position = 0, 0, True, 0
    while chunk := file.read(CHUNK):
        data = np.frombuffer(chunk, dtype=np.uint8)
        ends = np.flatnonzero(data == _NEWLINE) + 1
        if len(ends) == 0:
            crc, blank, position = zlib.crc32(chunk, crc), blank and chunk.isspace(), position + len(chunk)
            continue
        starts = np.concatenate(([start - position], ends[:-1]))
        crcs = _checksums(chunk, ends.tolist(), crc)
        is_document = np.ones(len(ends), dtype=np.bool_)
        is_document[0] = not (blank and chunk[: ends[0]].isspace())
        for line in (np.flatnonzero(_IS_SPACE[data[starts[1:]]]) + 1).tolist():
            is_document[line] = not chunk[starts[line] : ends[line]].isspace()
        check_length(int(ends[0] - starts[0]), name, start)
        yield _batch(starts + position, ends - starts, crcs, is_document)
        rest = chunk[ends[-1] :]
        start, crc, blank, position = (
            position + int(ends[-1]),
            zlib.crc32(rest),
            not rest.strip(),
            position + len(chunk),
        )
    if not blank:
        check_length(position - start, name, start)
        yield np.array([(start, position - start, crc)], dtype=EXTENT)


def _checksums(chunk: bytes, ends: list[int], crc: int) -> list[int]:
    """Checksums of the lines of a chunk, of which the first began with a part whose checksum is `crc`."""
    crc32, view, start = zlib.crc32, memoryview(chunk), ends[0]
    crcs = [crc32(view[:start], crc)]
    for end in ends[1:]:
        crcs.append(crc32(view[start:end]))
        start = end
    return crcs


def _batch(starts: np.ndarray, lengths: np.ndarray, crcs: list[int], is_document: np.ndarray) -> Extents:
    batch = np.empty(len(starts), dtype=EXTENT)
    batch["start"], batch["length"], batch["crc32"] = starts, lengths, crcs
    return batch[is_document]


def reader(read_head: Callable[[], bytes], name: str, columns: Sequence[str] | None) -> Reader:
    """See formats.ShardFormat; a line is decoded from its bytes alone, with all of its fields."""
    return lambda extent, line: [parse_line(line)]


def parse_line(line: bytes) -> Record | str:
    """The JSON object in a line, or why it holds none."""
    try:
        # Not json.loads(line): it takes bytes with zeros for UTF-16, and lets surrogates pass.
        record = json.loads(line.removeprefix(_BYTE_ORDER_MARK).decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"is not UTF-8 ({error.reason} at byte {error.start} of it); write it again or remove it"
    except json.JSONDecodeError as error:
        return f"is not valid JSON ({error}); write it again or remove it"
    except ValueError:
        return f"has a number of more than {sys.get_int_max_str_digits():,} digits; correct it or remove it"
    except RecursionError:
        return "is nested too deep; write it again or remove it"
    return record if isinstance(record, dict) else f"is not a JSON object but {type(record).__name__}"


def lines_at(file: BinaryIO, starts: Sequence[int]) -> list[int]:
    """How many ends of lines come before each of some bytes, in ascending order. Raises OSError."""
    found, position, newlines = [], 0, 0
    for start in starts:
        while position < start and (data := file.read(min(CHUNK, start - position))):
            newlines += data.count(b"\n")
            position += len(data)
        found.append(newlines)
    return found


def parse_lines(lines: bytes) -> Records:
    """The records of several lines; blank ones hold none."""
    return [parse_line(line) for line in lines.split(b"\n") if line and not line.isspace()]
