"""Tokens on disk: the encoded documents of a part of one shard, each checked by a checksum whenever it is read.

`<name>.tokens` holds a block of bytes per document, its tokens and, for examples, its target mask as packed bits; after
the blocks an entry per document says where its block is and where its targets begin. `<name>.json` is written last and makes the file exist: it
has what the tokens were made from, the layout and the checksum of the entries. All numbers are little-endian.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_pipeline.encoding.examples import BadRecordError, Example
from data_pipeline.files import write_atomically
from data_pipeline.sources.errors import DamagedRecordError
from data_pipeline.sources.local_files import LocalFiles

SCHEMA = 2
BAD = -1
"""The length of a record that holds no document."""

_ENTRY = np.dtype([("start", "<i8"), ("length", "<i4"), ("first_target", "<i4"), ("crc32", "<u4")])
_MAX_LISTED = 100
_LOG = logging.getLogger(__name__)


class DamagedTokensError(Exception):
    """A file of tokens is not as it was written; it can be made again."""


@dataclass(frozen=True)
class TokenFile:
    """An open file of tokens. May be pickled.

    Attributes:
        path: the .tokens file.
        dtype: of a token, "<u2" or "<u4".
        has_targets: whether a target mask follows the tokens of each document.
        entries_start: byte where the entries begin.
        lengths: tokens of each document, BAD where there is none, int32 [documents].
        first_targets: the first token of each document that is predicted, its length where none is, int32 [documents]; None
            without target masks.
    """

    path: Path
    dtype: str
    has_targets: bool
    entries_start: int
    lengths: NDArray[np.int32]
    first_targets: NDArray[np.int32] | None

    def example(self, number: int, files: LocalFiles) -> Example:
        """The document `number` of this file, read through `files`.

        Raises:
            DamagedTokensError: its bytes are not those that were written.
        """
        length = int(self.lengths[number])
        if length <= 0:
            return Example(np.empty(0, dtype=np.int32))
        try:
            at = self.entries_start + number * _ENTRY.itemsize
            entry = np.frombuffer(files.read_range(str(self.path), at, at + _ENTRY.itemsize), dtype=_ENTRY)
            if len(entry) != 1 or int(entry["length"][0]) != length:
                raise DamagedTokensError(f"{self.path}: entry {number} has changed")
            start = int(entry["start"][0])
            size = length * np.dtype(self.dtype).itemsize
            block = files.read_range(str(self.path), start, start + size + (_mask_size(length) * self.has_targets))
        except OSError as error:
            raise DamagedTokensError(f"{self.path} cannot be read: {error.strerror}") from error
        if zlib.crc32(block) != int(entry["crc32"][0]):
            raise DamagedTokensError(f"{self.path}: the tokens of document {number} have another checksum")
        ids = np.frombuffer(block, dtype=self.dtype, count=length).astype(np.int32)
        if not self.has_targets:
            return Example(ids)
        bits = np.unpackbits(np.frombuffer(block, dtype=np.uint8, offset=size), count=length)
        return Example(ids, bits.view(np.bool_))


Encoded = Example | BadRecordError | DamagedRecordError


def write_token_file(
    path: Path, documents: Iterable[Encoded], made_from: dict[str, Any], *, vocab_size: int, has_targets: bool
) -> None:
    """Write `path` and its description, each whole or not at all; no more than a document is in memory.

    Args:
        path: ends in .tokens; its folder exists.
        documents: in order; an error stands for a record without a document.
        made_from: all that decides the tokens, as JSON.
        vocab_size: tokens are below it.
        has_targets: whether to keep target masks; if not, all tokens are targets.

    Raises:
        OSError: the files cannot be written.
    """
    dtype = "<u2" if vocab_size <= 1 << 16 else "<u4"
    entries: list[tuple[int, int, int, int]] = []
    bad: list[list[Any]] = []
    table = np.empty(0, dtype=_ENTRY)
    position = 0

    def write(file: BinaryIO) -> None:
        nonlocal table, position
        for number, document in enumerate(documents):
            if isinstance(document, Exception):
                bad.append([number, str(document)])
                entries.append((position, BAD, 0, 0))
            else:
                block = _block(document, dtype, has_targets)
                entries.append((position, len(document.ids), _first_target(document), zlib.crc32(block)))
                position += file.write(block)
        table = np.array(entries, dtype=_ENTRY)
        file.write(table.tobytes())

    write_atomically(path, write)
    description = {
        "schema": SCHEMA,
        "made_from": made_from,
        "dtype": dtype,
        "has_targets": has_targets,
        "documents": len(table),
        "tokens": int(table["length"][table["length"] > 0].sum(dtype=np.int64)),
        "bad_records": len(bad),
        "first_bad_records": bad[:_MAX_LISTED],
        "entries_start": position,
        "entries_crc32": zlib.crc32(table.tobytes()),
    }
    write_atomically(path.with_suffix(".json"), lambda file: file.write(json.dumps(description).encode()))


def open_token_file(path: Path, made_from: dict[str, Any]) -> TokenFile | None:
    """Open `path`; None where there is no such file that was made from this, or not as it was written (logged)."""
    try:
        kept = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        _log_damage(path, str(error))
        return None
    try:
        if (kept["schema"], kept["made_from"]) != (SCHEMA, made_from):
            return None
        start, size = int(kept["entries_start"]), int(kept["documents"]) * _ENTRY.itemsize
        with path.open("rb") as file:
            file.seek(start)
            table = file.read()
        if len(table) != size or zlib.crc32(table) != kept["entries_crc32"]:
            _log_damage(path, "its end is not as it was written")
            return None
        entries, has_targets = np.frombuffer(table, dtype=_ENTRY), bool(kept["has_targets"])
        lengths = entries["length"].astype(np.int32)
        first_targets = entries["first_target"].astype(np.int32) if has_targets else None
        return TokenFile(path, str(np.dtype(kept["dtype"]).str), has_targets, start, lengths, first_targets)
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        _log_damage(path, f"{type(error).__name__}: {error}")
        return None


def _log_damage(path: Path, what: str) -> None:
    _LOG.warning("the tokens in %s cannot be used and are made again (%s)", path, what)


def _block(document: Example, dtype: str, has_targets: bool) -> bytes:
    ids, is_target = document
    assert not len(ids) or (ids.min() >= 0 and ids.max() <= np.iinfo(dtype).max), "an id beyond the vocabulary"
    if not has_targets:
        assert is_target is None, "targets of a document all of whose tokens are targets"
        return ids.astype(dtype).tobytes()
    return (
        ids.astype(dtype).tobytes() + np.packbits(np.ones(len(ids), bool) if is_target is None else is_target).tobytes()
    )


def _first_target(document: Example) -> int:
    """The first token that is predicted, which the first of all never is; the number of tokens where none is."""
    ids, is_target = document
    if is_target is None:
        return min(1, len(ids))
    return 1 + int(is_target[1:].argmax()) if is_target[1:].any() else len(ids)


def _mask_size(length: int) -> int:
    return (length + 7) // 8
