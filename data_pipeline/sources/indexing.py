"""Making the indexes of shards that have none, each in one pass over its file, many at once in worker processes."""

from __future__ import annotations

import errno
import functools
import glob
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from data_pipeline.files import write_atomically
from data_pipeline.sources import framed, jsonl
from data_pipeline.sources.errors import DataError
from data_pipeline.sources.extents import EXTENT, EXTENT_OF_MANY, Extents, HashedFile, with_checksums
from data_pipeline.sources.formats import MustBeRewritten, Stat
from data_pipeline.sources.index import Index, Place, can_write, index_places, kept_index, write_index
from data_pipeline.sources.parallel import Advance, Progress, run_jobs
from data_pipeline.sources.shard_file import ShardFile, read_head, shard_format, unreadable
from data_pipeline.sources.text import TextFiles

_LEFT_OVER_SECONDS = 600.0


def open_indexes(
    files: Sequence[ShardFile],
    *,
    cache_dir: Path | None,
    cache_bytes: int,
    workers: int,
    what: str,
    progress: Progress | None,
) -> list[Index]:
    """Return the index of every file, making those that are not kept: in this process (workers 0), or in that many.

    An index is kept as soon as it is made, so that a run that was stopped goes on where it was but for the files in
    progress. `progress` is told (`what`, bytes read, bytes to read).

    Raises:
        DataError: a file cannot be read, a copy does not fit into `cache_bytes`, no place for an index can be written,
            or a worker process died.
    """
    stats = [file.stat() for file in files]
    places = [index_places(file.location, file.name, cache_dir) for file in files]
    found = [kept_index(where, stat) for where, stat in zip(places, stats, strict=True)]
    writable = functools.cache(can_write)
    jobs = {
        number: (files[number], stats[number], writable_place(places[number], writable), cache_bytes)
        for number, index in enumerate(found)
        if index is None
    }
    made = run_jobs(
        _make,
        list(jobs.values()),
        workers=workers,
        what=what,
        size=sum(stats[number].size for number in jobs),
        progress=progress,
    )
    numbers = list(jobs)
    for which, index in made:
        found[numbers[which]] = index
    return [index for index in found if index is not None]


def writable_place(places: Sequence[Place], reason: Callable[[Path], str | None] = can_write) -> Place:
    """The first place that can be written, by `reason`, which says of a folder why it cannot. Raises DataError."""
    reasons = []
    for place in places:
        if (why := reason(place.folder)) is None:
            return place
        reasons.append(why)
    raise DataError(
        f"an index can be kept nowhere ({'; '.join(reasons)}); set data.cache_dir to a folder that can be written"
    )


def _make(job: tuple[ShardFile, Stat, Place, int], advance: Advance) -> Index:
    return make_index(*job, advance)


def make_index(file: ShardFile, stat: Stat, place: Place, cache_bytes: int, advance: Advance) -> Index:
    """Read a file and keep its index at `place`; a file that must be rewritten is read twice.

    Raises:
        DataError: the file cannot be read, changes meanwhile, or its copy does not fit.
    """
    try:
        try:
            with file.open() as raw, HashedFile(raw, advance) as hashed:
                index = write_index(place, stat, _scan(file, hashed), hashed.sha256, head=lambda: read_head(file))
        except MustBeRewritten:
            index = _rewrite(file, stat, place, cache_bytes, advance)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise DataError(
                f"the index of {file.location} cannot be written to {place.folder}: {error.strerror}; make room there, or set "
                "data.cache_dir to another disk"
            ) from error
        raise unreadable(file.location, error) from error
    if file.stat() != stat:
        raise DataError(f"{file.location} was changed while its index was made; start again when it no longer changes")
    return index


def _scan(file: ShardFile, hashed: HashedFile) -> Iterator[Extents]:
    if file.format == "jsonl":
        return jsonl.scan(hashed, file.location)
    if file.format == "jsonl.zst":
        return framed.scan(hashed, file.location)
    if isinstance(file.storage, TextFiles):
        return with_checksums(hashed, file.storage.extents(), file.location, EXTENT)
    return _scan_by_format(file, hashed)


def _scan_by_format(file: ShardFile, hashed: HashedFile) -> Iterator[Extents]:
    if file.format == "jsonl.gz":
        raise MustBeRewritten
    with file.open() as raw:
        extents = shard_format(file.format).scan(raw, file.location)
        yield from with_checksums(hashed, extents, file.location, EXTENT if file.format == "mds" else EXTENT_OF_MANY)


def _rewrite(file: ShardFile, stat: Stat, place: Place, cache_bytes: int, advance: Advance) -> Index:
    with file.open() as raw, HashedFile(raw, advance) as hashed:
        sha256 = hashed.sha256()
    batches: list[Extents] = []
    copy = place.copy(stat)
    remove_left_over(copy)

    def write(out: BinaryIO) -> None:
        check = functools.partial(_check_copies, file, stat, copy.parent, cache_bytes)
        check()
        with file.open() as raw:
            lines = shard_format(file.format).lines(raw, file.location)
            batches.extend(framed.write_frames(out, lines, check))

    write_atomically(copy, write)
    return write_index(place, stat, iter(batches), lambda: sha256, copy)


def _check_copies(file: ShardFile, stat: Stat, folder: Path, cache_bytes: int) -> None:
    used = copies_size(folder)
    if used > cache_bytes:
        raise DataError(
            f"{file.location} ({stat.size / 1e9:.3g} GB) cannot be read at random and is rewritten into {folder}, where copies "
            f"would now take more than {cache_bytes / 1e9:.3g} GB; raise data.cache_gb, set data.cache_dir to another disk, or "
            "write the data as plain .jsonl"
        )


def copies_size(folder: Path) -> int:
    """Bytes that copies take in a folder, those in the making too; 0 where there is no folder."""
    size = 0
    if not folder.is_dir():
        return size
    for path in folder.iterdir():
        if ".jsonl.zst" in path.name:
            with suppress(FileNotFoundError):
                size += path.stat().st_size
    return size


def remove_left_over(copy: Path) -> None:
    """Remove what a killed writer of this copy left, which nobody has touched for a while."""
    for path in copy.parent.glob(f".{glob.escape(copy.name)}.*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEFT_OVER_SECONDS:
                path.unlink()
