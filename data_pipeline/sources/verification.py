"""Reading everything again, to find all that is damaged, and where."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_pipeline.config import SourceConfig
from data_pipeline.sources.errors import DataError
from data_pipeline.sources.extents import CHUNK, HashedFile
from data_pipeline.sources.formats import Record, Stat
from data_pipeline.sources.index import index_places, last_index
from data_pipeline.sources.indexing import make_index, writable_place
from data_pipeline.sources.parallel import Advance, Progress, run_jobs
from data_pipeline.sources.shard import Shard
from data_pipeline.sources.shard_file import ShardFile, shard_format, unreadable
from data_pipeline.sources.source import shard_files

Check = Callable[[Record], str | None]
"""Says what is wrong with a record, None where nothing is."""

MAX_LISTED = 1000
"""Damages of one shard that are listed; the others are counted."""


class Damage(NamedTuple):
    """Something wrong: where ("data/a.jsonl, line 17 (byte 2048)"), and what."""

    where: str
    what: str

    def __str__(self) -> str:
        """One sentence."""
        return f"{self.where} {self.what}"


@dataclass
class ShardReport:
    """What was found in one shard.

    Attributes:
        location: path or URL.
        documents: how many it holds, 0 where that cannot be told.
        num_bytes: its size, 0 where it cannot be read.
        damages: the first MAX_LISTED, in their order in the file.
        num_damages: all of them.
        sha256: hex hash of the bytes that were indexed, empty where there is no index.
    """

    location: str
    documents: int = 0
    num_bytes: int = 0
    damages: list[Damage] = field(default_factory=list)
    num_damages: int = 0
    sha256: str = ""

    def add(self, damage: Damage) -> None:
        """Count a damage, and list it if there is room."""
        self.num_damages += 1
        if len(self.damages) < MAX_LISTED:
            self.damages.append(damage)


def _accept(record: Record) -> str | None:
    return None


def verify_source(
    name: str,
    config: SourceConfig,
    *,
    cache_dir: Path | None,
    cache_bytes: int,
    workers: int = 0,
    check: Check = _accept,
    progress: Progress | None = None,
) -> Iterator[ShardReport]:
    """Verify all shards of a source, in their order, none spared by another's damage.

    Args:
        name: the key in `data.sources`.
        config: its settings.
        cache_dir: as for open_source.
        cache_bytes: as for open_source.
        workers: processes that read; 0: this one.
        check: says what is wrong with a record; can be pickled.
        progress: told (what, bytes read, bytes to read).

    Raises:
        DataError: the source has no files, or they cannot be listed.
    """
    files = shard_files(config, cache_dir, cache_bytes)
    jobs = [(file, cache_dir, cache_bytes, check) for file in files]
    reports: dict[int, ShardReport] = {}
    told = 0
    size = sum(_size(file) for file in files)
    for number, report in run_jobs(
        _verify, jobs, workers=workers, what=f"verifying {name}", size=size, progress=progress
    ):
        reports[number] = report
        while told in reports:
            yield reports.pop(told)
            told += 1


def _size(file: ShardFile) -> int:
    try:
        return file.stat().size
    except DataError:
        return 0


def _verify(job: tuple[ShardFile, Path | None, int, Check], advance: Advance) -> ShardReport:
    file, cache_dir, cache_bytes, check = job
    return verify_shard(file, cache_dir=cache_dir, cache_bytes=cache_bytes, check=check, advance=advance)


def verify_shard(
    file: ShardFile,
    *,
    cache_dir: Path | None,
    cache_bytes: int,
    check: Check = _accept,
    advance: Advance = lambda size: None,
) -> ShardReport:
    """Compare a file with its index (which is made, where there is none), and decode all of its records.

    An index is compared even where the file's time or size has changed: a file that was cut off would else seem whole.
    """
    report = ShardReport(file.location)
    try:
        stat = file.stat()
        report.num_bytes = stat.size
        places = index_places(file.location, file.name, cache_dir)
        index = last_index(places) or make_index(file, stat, writable_place(places), cache_bytes, advance)
        shard = Shard(file, index)
        report.documents, report.sha256 = shard.num_documents, shard.sha256
        try:
            if index.copy is None:
                _verify_extents(shard, file, stat, check, advance, report)
            else:
                _verify_original(shard, advance, report)
                copy = ShardFile(str(index.copy), "jsonl.zst", shard.data.storage)
                _verify_extents(shard, copy, None, check, lambda size: None, report)
        except OSError as error:
            raise unreadable(file.location, error) from error
    except DataError as error:
        report.add(Damage(file.location, _without(str(error), file.location)))
    return report


def _without(message: str, location: str) -> str:
    """A message without the location that it begins with."""
    return message.removeprefix(location).lstrip(" :,")


def _verify_extents(
    shard: Shard, file: ShardFile, stat: Stat | None, check: Check, advance: Advance, report: ShardReport
) -> None:
    """Check the extents, which lie in `file`; of the shard itself (stat is not None) also what is between them."""
    found: list[tuple[int, str]] = []
    changed_size = stat is not None and stat.size != shard.num_bytes
    with file.open() as raw, HashedFile(raw, advance) as hashed:
        for document, what, is_mismatch in _bad_documents(shard, hashed, check):
            report.num_damages += 1
            if is_mismatch and changed_size:
                what += f"; the file has {stat.size if stat else 0} bytes now and had {shard.num_bytes}, so the rest was not compared"
            if len(found) < MAX_LISTED:
                found.append((document, what))
            if is_mismatch and changed_size:
                break
        else:
            sha256 = hashed.sha256()
            if stat is not None and sha256 != shard.sha256 and not found:
                where = "after its last record" if hashed.size > shard.num_bytes else "between its records"
                report.add(Damage(shard.location, f"is not as it was indexed, {where}; restore it, or index it again"))
    wheres = shard.positions([document for document, _ in found])
    report.damages += [Damage(where, what) for where, (_, what) in zip(wheres, found, strict=True)]


def _bad_documents(shard: Shard, file: HashedFile, check: Check) -> Iterator[tuple[int, str, bool]]:
    """Yield (document, what is wrong, whether the bytes are not those that were indexed), front to back."""
    extents = shard.index.extents
    for begin in range(0, len(extents), CHUNK // extents.itemsize):
        batch = extents[begin : begin + CHUNK // extents.itemsize]
        fields = (batch[name].tolist() for name in ("start", "length", "crc32"))
        for number, (start, length, crc) in enumerate(zip(*fields, strict=True), begin):
            file.read(start - file.size)
            data = file.read(length)
            document = shard.first_document(number)
            if len(data) < length:
                yield document, f"is cut off: the file ends at byte {file.size}; restore it", True
            elif zlib.crc32(data) != crc:
                yield (
                    document,
                    "is not as it was indexed (its checksum differs); restore the file, or index it again",
                    True,
                )
            else:
                for place, record in enumerate(shard.decode(number, data)):
                    if (what := record if isinstance(record, str) else check(record)) is not None:
                        yield document + place, what, False


def _verify_original(shard: Shard, advance: Advance, report: ShardReport) -> None:
    """Check a file that is read from a copy: its hash, and where that differs, what can be read of it."""
    with shard.file.open() as raw, HashedFile(raw, advance) as hashed:
        if hashed.sha256() == shard.sha256:
            return
    with shard.file.open() as raw:
        for _ in shard_format(shard.file.format).lines(raw, shard.location):
            pass
    report.add(Damage(shard.location, "is not as it was indexed, but can be read; restore it, or index it again"))
