from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import zstandard

from data_pipeline.config import SourceConfig
from data_pipeline.sources import parallel, verification
from data_pipeline.sources.formats import Record
from data_pipeline.sources.source import open_source
from data_pipeline.sources.verification import ShardReport, verify_source

Write = Callable[[Path, Sequence[str]], Path]


def has_text(record: Record) -> str | None:
    return None if "text" in record else f"has no text, but {', '.join(record) or 'nothing'}"


def verify(path: Path, workers: int = 0) -> dict[str, ShardReport]:
    reports = verify_source(
        "a", SourceConfig(path=str(path)), cache_dir=None, cache_bytes=10**9, workers=workers, check=has_text
    )
    return {Path(report.location).name: report for report in reports}


def damages(path: Path) -> list[str]:
    (report,) = verify(path).values()
    assert report.num_damages == len(report.damages)
    return [str(damage).removeprefix(str(report.location)) for damage in report.damages]


def index(path: Path) -> None:
    open_source("a", SourceConfig(path=str(path)), cache_dir=None, cache_bytes=10**9)


def flip(path: Path, *places: int, keep_time: bool = False) -> None:
    stat, data = path.stat(), bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 1
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("indexed", [False, True])
def test_whole_files_have_no_damage(tmp_path: Path, write_jsonl: Write, indexed: bool) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", ["one", "two"]).read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
    if indexed:
        index(tmp_path)
    reports = verify(tmp_path)
    assert [(report.documents, report.damages) for report in reports.values()] == [(2, [])] * 3
    assert list(reports) == ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst"]
    assert reports["a.jsonl"].num_bytes == len(lines)


@pytest.mark.parametrize("keep_time", [False, True])
def test_every_flipped_line_is_found(tmp_path: Path, write_jsonl: Write, keep_time: bool) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["a"] * 50)
    size = len(json.dumps({"text": "a"})) + 1
    index(path)
    flip(path, 10, 3 * size + 10, 49 * size + 12, keep_time=keep_time)
    what = "is not as it was indexed (its checksum differs); restore the file, or index it again"
    assert damages(path) == [f", line {line + 1} (byte {line * size}) {what}" for line in (0, 3, 49)]


def test_a_file_cut_off_at_a_line_is_found(tmp_path: Path, write_jsonl: Write) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["a"] * 10)
    index(path)
    os.truncate(path, 5 * (path.stat().st_size // 10))
    (damage,) = damages(path)
    assert damage == (
        ", line 6 (byte 70) is cut off: the file ends at byte 70; restore it; "
        "the file has 70 bytes now and had 140, so the rest was not compared"
    )


def test_bytes_between_and_after_the_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n \n{"text": "a"}\n')
    index(path)
    path.write_bytes(b'\n\t\n{"text": "a"}\n')
    assert damages(path) == [" is not as it was indexed, between its records; restore it, or index it again"]
    path.write_bytes(b'\n \n{"text": "a"}\n{"text": "b"}\n')
    assert damages(path) == [" is not as it was indexed, after its last record; restore it, or index it again"]


def test_a_new_time_alone_is_no_damage(tmp_path: Path, write_jsonl: Write) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["a"])
    index(path)
    os.utime(path, ns=(0, 1))
    assert damages(path) == []


def test_records_that_hold_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n{"test": 1, "b": 2}\n{"text": "\xff"}\n{}\n{"text": "a')
    found = damages(path)
    assert found[0] == ", line 3 (byte 15) has no text, but test, b"
    assert found[1].startswith(", line 4 (byte 35) is not UTF-8")
    assert found[2] == ", line 5 (byte 49) has no text, but nothing"
    assert found[3].startswith(", line 6 (byte 52) is not valid JSON")
    assert len(found) == 4
    (report,) = verify_source("a", SourceConfig(path=str(path)), cache_dir=None, cache_bytes=0)
    assert report.num_damages == 2, "those that cannot be decoded, where nothing is asked of a record"


def test_damage_in_compressed_files(tmp_path: Path, write_jsonl: Write) -> None:
    lines = write_jsonl(tmp_path / "x.jsonl", [f"document {number}" for number in range(3000)]).read_bytes()
    (tmp_path / "x.jsonl").unlink()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines)[:-100])
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(lines))
    reports = verify(tmp_path)
    assert [report.num_damages for report in reports.values()] == [0, 1, 0, 0]
    assert "before its compressed stream does, inside line" in str(reports["b.jsonl.gz"].damages[0])
    flip(tmp_path / "a.jsonl.gz", 5000)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines + b"{}\n"))
    flip(tmp_path / "d.jsonl.zst", 2000)
    reports = verify(tmp_path)
    assert [report.num_damages for report in reports.values()] == [1, 1, 1, 1]
    assert "inside line" in str(reports["a.jsonl.gz"].damages[0])
    assert str(reports["c.jsonl.gz"].damages[0]).endswith(
        "is not as it was indexed, but can be read; restore it, or index it again"
    )
    assert str(reports["d.jsonl.zst"].damages[0]).startswith(f"{tmp_path}/d.jsonl.zst, record 1")


def test_a_damaged_copy_and_a_bad_record_in_a_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n\n{"text"\n{"text": "a"}\n'))
    (damage,) = damages(path)
    assert damage.startswith(", line 3 is not valid JSON")
    (copy,) = (tmp_path / ".index").glob("*.jsonl.zst")
    flip(copy, 12)
    (damage,) = damages(path)
    assert "is not as it was indexed (its checksum differs)" in damage


@pytest.mark.parametrize("workers", [0, 2])
def test_all_shards_are_read_in_spite_of_each_other(
    tmp_path: Path, write_jsonl: Write, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "WORTH_PROCESSES", 0)
    for name in "abcd":
        write_jsonl(tmp_path / f"{name}.jsonl", ["one", "two"])
    (tmp_path / "e.jsonl").write_bytes(b"{\n")
    index(tmp_path)
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "e.jsonl")
    flip(tmp_path / "c.jsonl", 3)
    reports = verify(tmp_path, workers=workers)
    assert list(reports) == [f"{name}.jsonl" for name in "abcde"]
    assert [report.num_damages for report in reports.values()] == [0, 1, 1, 0, 1]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert damages(tmp_path / "gone.jsonl") == [
        " cannot be read: No such file or directory; restore it, or name the files that there are"
    ]


def test_damages_beyond_the_bound_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "MAX_LISTED", 3)
    (tmp_path / "a.jsonl").write_bytes(b"{\n" * 10 + json.dumps({"text": "a"}).encode())
    (report,) = verify(tmp_path).values()
    assert (len(report.damages), report.num_damages, report.documents) == (3, 10, 11)


def test_text_files(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "d.txt").write_bytes(b"\xff")
    index(tmp_path)
    (tmp_path / "b.txt").write_text("x")
    (report,) = verify(tmp_path).values()
    assert [str(damage).split(" (")[0] for damage in report.damages] == [
        f"{tmp_path}/b.txt is not as it was indexed",
        f"{tmp_path}/d.txt is not UTF-8",
    ]


def test_progress(tmp_path: Path, write_jsonl: Write) -> None:
    told: list[tuple[str, int, int]] = []
    path = write_jsonl(tmp_path / "a.jsonl", ["a"] * 9)
    reports = verify_source(
        "a", SourceConfig(path=str(path)), cache_dir=None, cache_bytes=0, progress=lambda *now: told.append(now)
    )
    assert len(list(reports)) == 1
    assert told[-1] == ("verifying a", path.stat().st_size, path.stat().st_size)
