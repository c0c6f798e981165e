"""One file of a source: its documents, read a range at a time and checked against its index."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data_pipeline.files import is_url
from data_pipeline.sources import framed, jsonl
from data_pipeline.sources.decoded import DecodedExtents
from data_pipeline.sources.errors import DamagedRecordError, DataError
from data_pipeline.sources.formats import Reader, Record, Records
from data_pipeline.sources.index import Index
from data_pipeline.sources.local_files import LocalFiles
from data_pipeline.sources.shard_file import ShardFile, read_head, shard_format, unreadable
from data_pipeline.sources.text import TextFiles

MAX_READ_FOR_LINES = 10**9
"""Bytes of a file above which it is not read to tell the line of a record: its number and byte are known without."""


@dataclass(frozen=True, eq=False)
class Shard:
    """A file with its index. May be pickled; files are opened where they are read.

    Attributes:
        file: the file, as the user knows it.
        index: of the file as it was when the source was opened.
        columns: fields that are needed, where reading fewer is cheaper; None for all.
    """

    file: ShardFile
    index: Index
    columns: Sequence[str] | None = None

    @property
    def location(self) -> str:
        """Path or URL."""
        return self.file.location

    @property
    def num_documents(self) -> int:
        """Documents in the file, damaged ones too."""
        return self.index.num_documents

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return self.index.stat.size

    @property
    def sha256(self) -> str:
        """Hex hash of the file's bytes."""
        return self.index.sha256

    @property
    def num_extents(self) -> int:
        """What is read as one."""
        return len(self.index.extents)

    @cached_property
    def data(self) -> ShardFile:
        """Where the extents lie: the file, or its framed copy."""
        if self.index.copy is None:
            return self.file
        return ShardFile(str(self.index.copy), "jsonl.zst", LocalFiles())

    @cached_property
    def _reader(self) -> Reader:
        return shard_format(self.data.format).reader(self._checked_head, self.data.location, self.columns)

    def _checked_head(self) -> bytes:
        """What the reader needs besides the extents, if it is as it was when the index was made."""
        try:
            head = read_head(self.data)
        except OSError as error:
            raise unreadable(self.data.location, error) from error
        if zlib.crc32(head) != self.index.head_crc32:
            raise self._changed(f"{self.location}, what describes its records,")
        return head

    def __getstate__(self) -> dict[str, Any]:
        """All but what is opened."""
        return {name: value for name, value in vars(self).items() if name not in ("data", "_reader")}

    def records(
        self, start: int, stop: int, decoded: DecodedExtents | None = None
    ) -> list[Record | DamagedRecordError]:
        """The documents [start, stop) of this shard, read at once; see Source.records.

        Raises:
            DataError: the bytes are not those that were indexed, or cannot be read.
        """
        first, last = self.extent_of(start), self.extent_of(stop - 1) + 1
        skipped = start - self.first_document(first)
        part = slice(skipped, skipped + stop - start)
        is_part = last == first + 1 and stop - start < self.first_document(last) - self.first_document(first)
        if decoded is not None and is_part:
            # Copied, for the next reader is to find what was read.
            records = copy.deepcopy(decoded.get((self, first), lambda: self._decoded(first, last))[part])
        else:
            records = self._decoded(first, last)[part]
        # Where they are takes reading to tell, and nobody asks where they are passed over.
        return [DamagedRecordError(record) if isinstance(record, str) else record for record in records]

    def _decoded(self, first: int, last: int) -> Records:
        """The records of the extents [first, last), read at once."""
        extents = zip(range(first, last), self._read(first, last), strict=True)
        return [record for extent, data in extents for record in self.decode(extent, data)]

    def extent_of(self, document: int) -> int:
        """The extent that holds a document."""
        firsts = self.index.first_documents
        return document if firsts is None else int(np.searchsorted(firsts, document, side="right")) - 1

    def first_document(self, extent: int) -> int:
        """The first document of an extent."""
        firsts = self.index.first_documents
        return extent if firsts is None else int(firsts[extent])

    def _read(self, first: int, last: int) -> list[bytes]:
        """The bytes of extents [first, last), in one read; once more where they are not as indexed."""
        extents = self.index.extents[first:last]
        starts, lengths, crcs = (extents[field].tolist() for field in ("start", "length", "crc32"))
        for afresh in (False, True):
            data = self._range(starts[0], starts[-1] + lengths[-1], afresh)
            view = memoryview(data)
            pieces = [view[start - starts[0] :][:length] for start, length in zip(starts, lengths, strict=True)]
            differs = [number for number, piece in enumerate(pieces) if zlib.crc32(piece) != crcs[number]]
            if not differs:
                return [bytes(piece) for piece in pieces]
        raise self._changed(self.where(self.first_document(first + differs[0])))

    def _range(self, start: int, end: int, afresh: bool) -> bytes:
        data = self.data
        try:
            return data.storage.read_range(data.location, start, end, afresh=afresh)
        except OSError as error:
            if afresh or isinstance(error, FileNotFoundError | PermissionError):
                raise unreadable(data.location, error) from error
        # A server of shared storage may forget an open file.
        return self._range(start, end, afresh=True)

    def _changed(self, where: str) -> DataError:
        """An error for a part of the file whose bytes are not those that were indexed."""
        if self.index.copy is not None:
            return DataError(
                f"{where} is damaged in its rewritten copy {self.index.copy}; remove that file: it is made again from the original"
            )
        try:
            stat = self.file.stat()
        except DataError as error:
            return error
        if stat != self.index.stat:
            how = f"has {stat.size} bytes, and had {self.num_bytes}"
            if stat.size == self.num_bytes:
                how = "was written anew, with as many bytes as before"
            return DataError(
                f"{where} was changed since it was indexed (the file {how}); restore the file, or start again if the new "
                "content is meant"
            )
        return DataError(
            f"{where} is not as it was indexed: its checksum differs, though size and time of the file are the same; the storage "
            f"is damaged: restore the file (its sha256 was {self.sha256})"
        )

    def decode(self, extent: int, data: bytes) -> list[Record | str]:
        """The records in the bytes of an extent, or for each the reason why it cannot be decoded."""
        records = self._reader(extent, data)
        documents = self.first_document(extent + 1) - self.first_document(extent)
        assert len(records) == documents, "a reader gives as many records as were counted"
        return records

    def where(self, document: int) -> str:
        """Where a document is, for messages. May have to read the file up to there."""
        return self.positions([document])[0]

    def positions(self, documents: Sequence[int]) -> list[str]:
        """Where some documents are, in ascending order; reads the file once."""
        if isinstance(self.file.storage, TextFiles):
            files = self.file.storage.files
            return [files[document] for document in documents]
        lines = self._lines_of(documents)
        if self.file.format == "jsonl":
            starts = self.index.extents["start"][list(documents)].tolist()
            bytes_of = [f" (byte {start})" for start in starts]
        elif lines is None and self.index.copy is None:
            bytes_of = [
                f" (in its part {self.extent_of(document) + 1} of {self.num_extents})" for document in documents
            ]
        else:
            bytes_of = ["" for _ in documents]
        if lines is None:
            records = [f"record {document + 1}" for document in documents]
        else:
            records = [f"line {line + 1}" for line in lines]
        return [f"{self.location}, {record}{at}" for record, at in zip(records, bytes_of, strict=True)]

    def _lines_of(self, documents: Sequence[int]) -> list[int] | None:
        """Lines of some documents in the file, from 0; None where it has none, is far away or too large, or is unreadable."""
        if is_url(self.location) or not self.file.format.startswith("jsonl") or self.num_bytes > MAX_READ_FOR_LINES:
            return None
        try:
            with self.data.open() as file:
                if self.file.format == "jsonl":
                    return jsonl.lines_at(file, self.index.extents["start"][list(documents)].tolist())
                return framed.lines_of(file, self.data.location, documents)
        except (OSError, DataError):
            return None
