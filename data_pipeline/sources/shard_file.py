"""One file of a source, before its index is known."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import BinaryIO, cast

from data_pipeline.sources.errors import DataError
from data_pipeline.sources.formats import HEADED, ShardFormat, Stat, Storage
from data_pipeline.sources.index import location_digest

TEXTS = "texts"


@dataclass(frozen=True)
class ShardFile:
    """One file of a source (or a folder of text files, which are one shard), before it is indexed.

    Attributes:
        location: path or URL, as messages call it.
        format: a value of suffixes.FORMATS, or "mds".
        storage: where it is read from.
    """

    location: str
    format: str
    storage: Storage

    @property
    def name(self) -> str:
        """What files made from it are called: apart from those of all other files and folders in the same place."""
        if self.format == "text" and self.storage.data_files(self.location) != [self.location]:
            return f"{TEXTS}.{location_digest(self.location)}"
        return self.location.rstrip("/").rsplit("/", 1)[-1]

    def stat(self) -> Stat:
        """Size and version. Raises DataError."""
        try:
            return self.storage.stat(self.location)
        except OSError as error:
            raise unreadable(self.location, error) from error

    def open(self) -> BinaryIO:
        """The file, open for reading. Raises OSError."""
        return self.storage.open(self.location)


def unreadable(location: str, error: OSError) -> DataError:
    """An error that says why a file cannot be read, and what to do."""
    cures = {
        FileNotFoundError: "restore it, or name the files that there are",
        PermissionError: "let this user read it (chmod +r, and +x for its folders)",
    }
    cure = cures.get(type(error), "look after the storage, then start again")
    return DataError(f"{location} cannot be read: {error.strerror or error}; {cure}")


def read_head(file: ShardFile) -> bytes:
    """The head of a file (formats.ShardFormat.head), empty where its format has none. Raises DataError or OSError."""
    if file.format not in HEADED:
        return b""
    with file.open() as opened:
        return shard_format(file.format).head(opened, file.location)


def shard_format(name: str) -> ShardFormat:
    """The module that reads files of a format."""
    modules = {"jsonl.gz": "framed", "jsonl.zst": "framed"}
    return cast(ShardFormat, importlib.import_module(f"data_pipeline.sources.{modules.get(name, name)}"))
