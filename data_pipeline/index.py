"""Random access to the documents of .jsonl files through an index of their byte offsets.

The index of `data/a.jsonl` is kept in `data/.index/`: `a.jsonl.json` says what it was made from and names the .npy file
with the offsets. It is made once, and again when the file's size or modification time changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import SourceConfig
from data_pipeline.errors import PipelineError
from data_pipeline.files import shard_paths, write_atomically

SCHEMA = 1
INDEX_FOLDER = ".index"
_MAX_OPEN_FILES = 64


class DataError(PipelineError):
    """A source cannot be read as asked; the message says where and what to do."""


class DamagedDocumentError(DataError):
    """One line of a file is not a document; the message has file, line number and byte offset."""


@dataclass(frozen=True)
class Shard:
    """One .jsonl file and where its documents are.

    Attributes:
        path: the file.
        offsets: byte offset of every document, then the size of the file; int64 [documents + 1]. Blank lines are none.
        sha256: hex hash of the file's bytes.
    """

    path: Path
    offsets: NDArray[np.int64]
    sha256: str

    @property
    def num_documents(self) -> int:
        """Documents in the file, empty ones too."""
        return len(self.offsets) - 1

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return int(self.offsets[-1])


def open_shard(path: Path) -> Shard:
    """Return the shard at `path` with its index, which is made (and kept if the folder can be written) where needed.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        stat = path.stat()
        if (shard := kept_index(path)) is None:
            shard = scan_shard(path)
            _write_index(shard, stat)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return shard


def scan_shard(path: Path) -> Shard:
    """Read a whole file to find its documents and its hash, looking at no index."""
    digest = hashlib.sha256()
    offsets: list[int] = []
    position = 0
    with path.open("rb") as file:
        for line in file:
            digest.update(line)
            if not line.isspace():
                offsets.append(position)
            position += len(line)
    return Shard(path, np.array([*offsets, position], dtype=np.int64), digest.hexdigest())


def _description_path(path: Path) -> Path:
    return path.parent / INDEX_FOLDER / f"{path.name}.json"


def kept_index(path: Path) -> Shard | None:
    """The shard at `path` by its kept index, or None where there is none for the file as it is now."""
    try:
        stat = path.stat()
        kept = json.loads(_description_path(path).read_text(encoding="utf-8"))
        if (kept["schema"], kept["size"], kept["mtime_ns"]) != (SCHEMA, stat.st_size, stat.st_mtime_ns):
            return None
        offsets = np.load(_description_path(path).with_name(kept["offsets"]), mmap_mode="r")
        sha256 = str(kept["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = offsets.dtype == np.int64 and len(offsets) == kept["documents"] + 1 and offsets[-1] == stat.st_size
    return Shard(path, offsets, sha256) if whole else None


def _write_index(shard: Shard, stat: os.stat_result) -> None:
    """Keep the index; the offsets first, under a name of their content, so that racing writers agree."""
    description = _description_path(shard.path)
    offsets = description.with_name(f"{shard.path.name}.{shard.sha256[:16]}.npy")
    kept: dict[str, Any] = {
        "schema": SCHEMA,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "documents": shard.num_documents,
        "sha256": shard.sha256,
        "offsets": offsets.name,
    }
    try:
        description.parent.mkdir(exist_ok=True)
        write_atomically(offsets, lambda file: np.save(file, shard.offsets))
        write_atomically(description, lambda file: file.write(json.dumps(kept).encode()))
        for stale in description.parent.glob(f"{shard.path.name}.{'?' * 16}.npy"):
            if stale != offsets:
                stale.unlink(missing_ok=True)
    except OSError:
        # Read-only or full storage: the index in memory serves as well.
        return


class Source:
    """The documents of one source, numbered over all its shards."""

    def __init__(self, name: str, config: SourceConfig) -> None:
        """Index the shards of `config`; raises DataError if there are none or they hold no document."""
        self.name = name
        self.text_field = config.text_field
        self.shards = [open_shard(path) for path in shard_paths(config.path)]
        self._first = np.cumsum([0, *(shard.num_documents for shard in self.shards)])
        self._files = _OpenFiles()
        if not self.num_documents:
            raise DataError(
                f"the source {name} at {config.path} holds no documents; "
                "give it .jsonl files with one JSON object per line, or leave it out"
            )

    @property
    def num_documents(self) -> int:
        """Documents in all shards, empty ones too."""
        return int(self._first[-1])

    @cached_property
    def fingerprint(self) -> str:
        """A hex hash of the content of all shards in their order, whatever their names."""
        return hashlib.sha256("\n".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def document(self, number: int) -> str:
        """The text of document `number`, read alone; raises DamagedDocumentError if its line holds none."""
        which = int(np.searchsorted(self._first, number, side="right")) - 1
        shard, within = self.shards[which], number - int(self._first[which])
        start, end = int(shard.offsets[within]), int(shard.offsets[within + 1])
        line = os.pread(self._files.descriptor(shard.path), end - start, start)
        return parse_document(line, self.text_field, shard.path, start)


def damaged_documents(shard: Shard, text_field: str) -> Iterator[DamagedDocumentError]:
    """Read every line of a shard; yield an error for each that is no document."""
    with shard.path.open("rb") as file:
        for start, end in zip(shard.offsets[:-1].tolist(), shard.offsets[1:].tolist(), strict=True):
            file.seek(start)
            try:
                parse_document(file.read(end - start), text_field, shard.path, start)
            except DamagedDocumentError as error:
                yield error


def parse_document(line: bytes, text_field: str, path: Path, offset: int) -> str:
    """The text in one line of `path`; raises DamagedDocumentError, which says where the line is."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise _damaged(path, offset, f"is not valid JSON ({error}); write it again or remove the line") from error
    if not isinstance(record, dict):
        raise _damaged(path, offset, f"is not a JSON object but {type(record).__name__}")
    if text_field not in record:
        fields = ", ".join(sorted(record)) or "none"
        raise _damaged(path, offset, f"has no field {text_field!r}; set text_field to one of its fields: {fields}")
    if not isinstance(text := record[text_field], str):
        raise _damaged(path, offset, f"has {type(text).__name__} in the field {text_field!r}, where text is needed")
    return text


def _damaged(path: Path, offset: int, what: str) -> DamagedDocumentError:
    line_number = 1
    with path.open("rb") as file:
        left = offset
        while left > 0 and (chunk := file.read(min(left, 1 << 20))):
            line_number += chunk.count(b"\n")
            left -= len(chunk)
    return DamagedDocumentError(f"{path}, line {line_number} (byte {offset}): {what}")


class _OpenFiles:
    """The files read last, kept open, as opening is the slow part on shared storage."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, FileIO] = OrderedDict()
        weakref.finalize(self, _close_all, self._files)

    def descriptor(self, path: Path) -> int:
        """A descriptor of `path` to read from at once."""
        if path not in self._files:
            if len(self._files) >= _MAX_OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[path] = FileIO(path)
        self._files.move_to_end(path)
        return self._files[path].fileno()


def _close_all(files: OrderedDict[Path, FileIO]) -> None:
    for file in files.values():
        file.close()
