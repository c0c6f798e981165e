"""The index of a shard: its extents and its hash, made once, kept on disk and mapped into memory.

`a.jsonl.json` says what an index was made from, and names the .npy file with the extents (extents.py). It is valid for
one size and version (modification time, etag) of the shard, and only if the extents are as they were written.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from data_pipeline.files import is_url, write_atomically
from data_pipeline.sources.errors import DataError
from data_pipeline.sources.extents import CHUNK, EXTENT, EXTENT_OF_MANY, Extents
from data_pipeline.sources.formats import Stat

SCHEMA = 2
INDEX_FOLDER = ".index"
HOME_CACHE = Path("~/.cache/palimpsest")
KEPT_ARRAYS = 3
"""Replaced arrays of a shard that are kept, the newest: processes of a run that is going on may yet map them by name."""
_LEFT_OVER_SECONDS = 86400.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Index:
    """What is known of a shard without reading it. May be pickled: the extents are mapped where they are used.

    Attributes:
        stat: size and version of the file it was made from.
        sha256: hex hash of the file's bytes.
        num_documents: documents in all extents.
        extents_path: the .npy file with the extents.
        copy: the framed copy that the extents lie in, where the file itself cannot be read at random.
        head_crc32: zlib.crc32 of the head (formats.ShardFormat.head) of what the extents lie in; 0 where it has none.
    """

    stat: Stat
    sha256: str
    num_documents: int
    extents_path: Path
    copy: Path | None = None
    head_crc32: int = 0

    @cached_property
    def extents(self) -> Extents:
        """Extents in ascending order, of dtype extents.EXTENT or EXTENT_OF_MANY; mapped, not loaded. Raises DataError."""
        try:
            return cast(Extents, np.load(self.extents_path, mmap_mode="r"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"the index {self.extents_path} is gone or damaged ({error}); start again to make it anew"
            ) from error

    @cached_property
    def first_documents(self) -> NDArray[np.int64] | None:
        """Number of the first document of every extent, then that of all documents; None where each extent has one."""
        if self.extents.dtype == EXTENT:
            return None
        return np.concatenate(([0], np.cumsum(self.extents["documents"], dtype=np.int64)))

    @property
    def size_on_disk(self) -> int:
        """Bytes that the index takes, without a copy of the data; 0 where it is gone."""
        try:
            return self.extents_path.stat().st_size
        except OSError:
            return 0

    def __getstate__(self) -> dict[str, Any]:
        """All but the arrays."""
        return {name: value for name, value in vars(self).items() if name not in ("extents", "first_documents")}


class Place(NamedTuple):
    """Where one shard's index may be: a folder, and how names in it begin."""

    folder: Path
    stem: str

    @property
    def description(self) -> Path:
        """The JSON file of the index."""
        return self.folder / f"{self.stem}.json"

    def copy(self, stat: Stat) -> Path:
        """Where a framed copy of this version of the shard is."""
        version = hashlib.sha256(f"{stat.size} {stat.version}".encode()).hexdigest()[:16]
        return self.folder / f"{self.stem}.{version}.jsonl.zst"


def keep_folders(location: str, cache_dir: Path | None) -> list[Path]:
    """Folders that may keep what is made from the data in `location` (a file, folder or URL), the preferred first.

    In order: the cache that is set; .index beside local data; ~/.cache/palimpsest where no cache is set.
    """
    beside = []
    if not is_url(location):
        path = Path(location)
        beside = [(path if path.is_dir() else path.parent) / INDEX_FOLDER]
    if cache_dir is not None:
        return [cache_dir / "index", *beside]
    return [*beside, HOME_CACHE.expanduser() / "index"]


def index_places(location: str, name: str, cache_dir: Path | None) -> list[Place]:
    """Places of the index of the shard at `location`, whose file is called `name`; found in any, written to the first."""
    digest = location_digest(location)
    return [
        Place(folder, name if folder.name == INDEX_FOLDER else f"{name[:100]}.{digest}")
        for folder in keep_folders(location, cache_dir)
    ]


def location_digest(location: str) -> str:
    """A short hex hash of a path (made absolute) or URL, for names of files."""
    text = location if is_url(location) else str(Path(location).absolute())
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def last_index(places: Sequence[Place]) -> Index | None:
    """The shard's index from the first place with one, for whatever size and version it had; None where there is none."""
    return next((index for place in places if (index := _read_index(place, None)) is not None), None)


def kept_index(places: Sequence[Place], stat: Stat) -> Index | None:
    """The shard's index from the first place with one for this size and version, None where there is none."""
    return next((index for place in places if (index := _read_index(place, stat)) is not None), None)


def _read_index(place: Place, stat: Stat | None) -> Index | None:
    try:
        kept = json.loads(place.description.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        return _damaged(place, str(error))
    try:
        of = Stat(int(kept["size"]), str(kept["version"]))
        if kept["schema"] != SCHEMA or stat not in (None, of):
            return None
        index = Index(
            stat=of,
            sha256=str(kept["sha256"]),
            num_documents=int(kept["documents"]),
            extents_path=place.folder / kept["extents"],
            copy=place.copy(of) if kept["copy_size"] is not None else None,
            head_crc32=int(kept["head_crc32"]),
        )
        if index.copy is not None and index.copy.stat().st_size != kept["copy_size"]:
            return _damaged(place, f"{index.copy} has another size than when it was written")
        if _crc32_of(index.extents_path) != kept["extents_crc32"]:
            return _damaged(place, f"{index.extents_path.name} is not as it was written")
        if index.extents.dtype not in (EXTENT, EXTENT_OF_MANY):
            return _damaged(place, f"{index.extents_path.name} holds something else")
        if index.num_documents != _count_documents(index.extents):
            return _damaged(place, f"{index.extents_path.name} holds another number of documents")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, DataError) as error:
        return _damaged(place, f"{type(error).__name__}: {error}")
    return index


def _damaged(place: Place, what: str) -> Index | None:
    _LOG.warning("the index %s cannot be used and is made again (%s)", place.description, what)
    return None


def _count_documents(extents: Extents) -> int:
    return len(extents) if extents.dtype == EXTENT else int(extents["documents"].sum())


def _crc32_of(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            crc = zlib.crc32(data, crc)
    return crc


class ExtentsWriter:
    """Writes batches of extents to a .npy file as they come, so that no more than one is in memory."""

    def __init__(self, file: BinaryIO) -> None:
        """Begin `file`, which is empty."""
        self._file = file
        self.num_documents = self.num_extents = 0
        self._dtype = EXTENT
        self._write_header()

    def _write_header(self) -> None:
        self._file.seek(0)
        # Of one length for any number of extents: numpy leaves room for it to grow.
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": self._dtype.descr, "fortran_order": False, "shape": (self.num_extents,)}
        )

    def write(self, batch: Extents) -> None:
        """Add extents, all batches of one dtype."""
        if self.num_extents == 0 and batch.dtype != self._dtype:
            self._dtype = batch.dtype
            self._write_header()
        assert batch.dtype == self._dtype or len(batch) == 0
        self._file.write(batch.tobytes())
        self.num_extents += len(batch)
        self.num_documents += _count_documents(batch)

    def finish(self) -> None:
        """Write how many there are."""
        self._write_header()
        self._file.seek(0, 2)


def write_index(
    place: Place,
    stat: Stat,
    batches: Iterator[Extents],
    sha256: Callable[[], str],
    copy: Path | None = None,
    head: Callable[[], bytes] = bytes,
) -> Index:
    """Keep an index at `place`.

    Args:
        place: where; its folder exists.
        stat: of the file as it was before it was read.
        batches: its extents.
        sha256: called after the last batch, gives the hex hash of the file.
        copy: the framed copy that the extents lie in.
        head: called after the last batch, gives the head of what they lie in.

    Raises:
        OSError: the place cannot be written.
    """
    # Named by the version, not only by the shard: an index in use stays what it is while another is made.
    extents_path = place.copy(stat).with_suffix("").with_suffix(".npy")
    writer: ExtentsWriter | None = None

    def write(file: BinaryIO) -> None:
        nonlocal writer
        writer = ExtentsWriter(file)
        for batch in batches:
            writer.write(batch)
        writer.finish()

    write_atomically(extents_path, write)
    assert writer is not None
    index = Index(stat, sha256(), writer.num_documents, extents_path, copy, zlib.crc32(head()))
    kept = {
        "schema": SCHEMA,
        "size": stat.size,
        "version": stat.version,
        "sha256": index.sha256,
        "documents": index.num_documents,
        "extents": extents_path.name,
        "extents_crc32": _crc32_of(extents_path),
        "copy_size": None if copy is None else copy.stat().st_size,
        "head_crc32": index.head_crc32,
    }
    replaces = place.description.exists()
    write_atomically(place.description, lambda file: file.write(json.dumps(kept).encode()))
    if replaces:
        _remove_replaced(place, {extents_path, copy})
    return index


def _remove_replaced(place: Place, current: set[Path | None]) -> None:
    """Remove copies and arrays that other versions of the shard had, but for the newest arrays."""
    versions = f"{glob.escape(place.stem)}.{'[0-9a-f]' * 16}"
    arrays = [path for path in place.folder.glob(f"{versions}.npy") if path not in current]
    copies = [path for path in place.folder.glob(f"{versions}.jsonl.zst") if path not in current]
    for path in sorted(arrays, key=_changed_at, reverse=True)[KEPT_ARRAYS:] + copies:
        path.unlink(missing_ok=True)


def _changed_at(path: Path) -> float:
    """When a file was written; 0 where another process has removed it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def can_write(folder: Path) -> str | None:
    """Make a folder of indexes where needed; return why no file can be written in it, None if one can.

    What writers that were killed left in it is removed after a day.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return f"{folder}: {error.strerror}"
    for path in folder.glob(".*.npy.*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _LEFT_OVER_SECONDS:
                path.unlink()
    return None
