from __future__ import annotations

import gzip
import itertools
import json
import multiprocessing
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq

from data_pipeline.config import SourceConfig
from data_pipeline.sources import source as source_module
from data_pipeline.sources.errors import DamagedRecordError, DataError
from data_pipeline.sources.source import Source, open_source

Write = Callable[[Path, Sequence[str]], Path]


def open_at(path: Path, cache_dir: Path | None = None) -> Source:
    return open_source("a", SourceConfig(path=str(path)), cache_dir=cache_dir, cache_bytes=10**9)


def all_records(source: Source) -> list[object]:
    blocks = itertools.pairwise(source.block_starts.tolist())
    return [record for start, stop in blocks for record in source.records(start, stop)]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.text(), max_size=12), min_size=1, max_size=4), st.sampled_from([1, 3, 2**16]), st.data())
def test_documents_are_those_of_the_lines(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[str]], blocks: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("source")
    for number, texts in enumerate(shards):
        kind = data.draw(st.sampled_from(["jsonl", "jsonl.gz"]))
        content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        (folder / f"{number}.{kind}").write_bytes(content if kind == "jsonl" else gzip.compress(content))
    expected = [{"text": text} for texts in shards for text in texts]
    if not expected:
        with pytest.raises(DataError, match=r"the source a at .* holds no documents; give it some, or leave it out"):
            open_at(folder)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "BLOCKS", blocks)
        for _ in ("made", "kept"):
            source = open_at(folder)
            assert source.num_documents == len(expected)
            assert all_records(source) == expected
            assert all(source.records(number, number + 1) == [record] for number, record in enumerate(expected))
        ends = set(np.cumsum([len(texts) for texts in shards]).tolist())
        assert ends <= {0, *source.block_starts.tolist()}, "no block crosses a shard"
        assert (np.diff(source.block_starts) > 0).all()


@pytest.mark.parametrize(("blocks", "size"), [(2**16, 1), (100, 10), (99, 11)])
def test_blocks_of_lines(
    tmp_path: Path, write_jsonl: Write, blocks: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "BLOCKS", blocks)
    source = open_at(write_jsonl(tmp_path / "a.jsonl", ["x"] * 1000))
    assert source.block_starts.tolist() == [*range(0, 1000, size), 1000]
    assert source.block_starts.dtype == np.int64


def test_blocks_are_made_of_whole_extents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["x" * 1000, *["y"] * 150_000, "z" * 1000]
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
    source = open_at(tmp_path)
    firsts = source.shards[0].index.first_documents
    assert firsts is not None
    assert source.block_starts.tolist() == firsts.tolist(), "each extent has more than a block needs"
    monkeypatch.setattr(source_module, "BLOCKS", 10)
    few = open_at(tmp_path).block_starts
    assert set(few.tolist()) <= set(firsts.tolist())
    sizes = np.diff(few)
    assert (sizes <= -(-source.num_documents // 10)).all()
    assert (sizes[:-1] + np.diff(firsts).max() > -(-source.num_documents // 10)).all(), (
        "no block could take one more extent"
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt"])
def test_bytes_of_extents(tmp_path: Path, kind: str) -> None:
    texts = ["x" * size for size in range(1, 41)]
    if kind == "jsonl":
        lines = [json.dumps({"text": text}) for text in texts]
        for number, half in enumerate((lines[:25], lines[25:])):
            (tmp_path / f"{number}.jsonl").write_text("\n".join(half) + "\n")
        expected = [len(line) for line in lines]
    elif kind == "txt":
        for number, text in enumerate(texts):
            (tmp_path / f"{number:02}.txt").write_text(text)
        expected = [len(text) for text in texts]
    else:
        pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=10)  # type: ignore[no-untyped-call]
    source = open_at(tmp_path)
    if kind == "parquet":
        # A document's bytes are those of what has to be read for it.
        groups = [source.extent_bytes(start, start + 10) for start in range(0, 40, 10)]
        assert [source.extent_bytes(number, number + 1) for number in range(40)] == np.repeat(groups, 10).tolist()
        assert source.extent_bytes(5, 25) == sum(groups[:3])
        assert 0 < sum(groups) <= source.num_bytes
    else:
        assert [source.extent_bytes(number, number + 1) for number in range(40)] == pytest.approx(expected, abs=1)
        assert source.extent_bytes(26, 40) == sum(source.extent_bytes(number, number + 1) for number in range(26, 40))


def test_a_block_is_one_read(tmp_path: Path, write_jsonl: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "BLOCKS", 10)
    source = open_at(write_jsonl(tmp_path / "a.jsonl", [str(number) for number in range(1000)]))
    reads: list[int] = []
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda *arguments: reads.append(1) or read(*arguments))
    assert len(source.records(100, 200)) == 100
    assert len(reads) == 1


def test_the_fingerprint_is_of_contents(tmp_path: Path, write_jsonl: Write) -> None:
    for name in ("x", "y"):
        write_jsonl(tmp_path / name / f"{name}1.jsonl", ["one"])
        write_jsonl(tmp_path / name / f"{name}2.jsonl", ["two"])
    write_jsonl(tmp_path / "z" / "1.jsonl", ["two"])
    write_jsonl(tmp_path / "z" / "2.jsonl", ["one"])
    x, y, z = (open_at(tmp_path / name).fingerprint for name in "xyz")
    assert x == y != z
    os.utime(tmp_path / "x" / "x1.jsonl", ns=(0, 1))
    assert open_at(tmp_path / "x", cache_dir=tmp_path / "cache").fingerprint == x


def read_in_another_process(source: Source) -> list[object]:
    return all_records(source)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_source_goes_to_other_processes(tmp_path: Path, write_jsonl: Write, method: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", [str(number) for number in range(2000)])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "c.txt").write_bytes(b"text")
    source = open_at(tmp_path)
    here = all_records(source)
    assert len(pickle.dumps(source)) < 10_000
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(read_in_another_process, (source,)) == here
    assert all_records(source) == here


def test_where_documents_are(tmp_path: Path) -> None:
    lines = b'\n{"text": "a"}\n\n \n{"text": "b"}\r\n{"text": "c"}'
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    source = open_at(tmp_path)
    assert all_records(source) == [{"text": text} for text in "abcabc"]
    assert [source.where(number) for number in range(6)] == [
        f"{tmp_path}/a.jsonl, line 2 (byte 1)",
        f"{tmp_path}/a.jsonl, line 5 (byte 18)",
        f"{tmp_path}/a.jsonl, line 6 (byte 33)",
        f"{tmp_path}/b.jsonl.gz, line 2",
        f"{tmp_path}/b.jsonl.gz, line 5",
        f"{tmp_path}/b.jsonl.gz, line 6",
    ]
    (tmp_path / "a.jsonl").unlink()
    assert source.where(1) == f"{tmp_path}/a.jsonl, record 2 (byte 18)"
    (tmp_path / "texts" / "sub").mkdir(parents=True)
    (tmp_path / "texts" / "sub" / "c.txt").write_text("d")
    assert open_at(tmp_path / "texts").where(0) == f"{tmp_path}/texts/sub/c.txt"


def test_damaged_records_come_as_errors_in_their_places(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": \n{"text": "\xff"}\n{"text": "b"}\n{"text": "c')
    source = open_at(tmp_path)
    (tmp_path / "b.txt").write_bytes(b"\xff")
    records = all_records(source) + all_records(open_at(tmp_path / "b.txt"))
    assert [record if isinstance(record, dict) else str(record).split(" (")[0] for record in records] == [
        {"text": "a"},
        "is not valid JSON",
        "is not UTF-8",
        {"text": "b"},
        "is not valid JSON",
        "is not UTF-8",
    ]
    assert all(isinstance(records[place], DamagedRecordError) for place in (1, 2, 4, 5))


def damage_nothing(path: Path) -> None:
    """Only what the test does with the time of the file."""


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, 20)


def replace(path: Path) -> None:
    content = path.read_bytes().upper() + b"{}\n"
    path.unlink()
    path.write_bytes(content)


def write_anew(path: Path) -> None:
    flip(path)
    os.utime(path, ns=(0, 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            write_anew,
            r"line 2 \(byte 16\) was changed since it was indexed \(the file was written anew, with as many bytes as before\); ",
        ),
        (
            flip,
            r"line 2 \(byte 16\) is not as it was indexed: its checksum differs.* the storage is damaged: restore .* sha256 was",
        ),
        (
            truncate,
            r"line 2 \(byte 16\) was changed since it was indexed \(the file has 20 bytes, and had 48\); restore the file, or",
        ),
        (
            replace,
            r"line 1 \(byte 0\) was changed since it was indexed \(the file has 51 bytes, and had 48\); restore the file, or",
        ),
        (Path.unlink, r"a\.jsonl cannot be read: No such file or directory; restore it"),
    ],
)
@pytest.mark.parametrize("is_open", [False, True])
def test_damage_between_index_and_read(
    tmp_path: Path, write_jsonl: Write, damage: Callable[[Path], None], message: str, is_open: bool
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "two", "tri"])
    stat = path.stat()
    source = open_at(path)
    first = source.records(0, 1) if is_open else None
    damage(path)
    if damage is flip:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    if is_open and damage in (replace, Path.unlink):
        # The file that was opened is still there, under no name.
        assert source.records(0, 3) == [*(first or []), {"text": "two"}, {"text": "tri"}]
        return
    with pytest.raises(DataError, match=message) as raised:
        source.records(0, 3)
    assert not isinstance(raised.value, DamagedRecordError), "not to be skipped"


def test_another_time_with_the_same_content_does_no_harm(tmp_path: Path, write_jsonl: Write) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    source = open_at(path)
    os.utime(path, ns=(0, 1))
    assert all_records(source) == all_records(open_at(path)) == [{"text": "one"}, {"text": "two"}]


def test_a_text_file_that_changes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    source = open_at(tmp_path)
    (tmp_path / "b.txt").write_text("2")
    with pytest.raises(DataError, match=r"b\.txt was changed since it was indexed"):
        all_records(source)


def test_a_damaged_copy_names_itself(tmp_path: Path, write_jsonl: Write) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", ["one"] * 100).read_bytes()
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    source = open_at(tmp_path)
    copy = source.shards[0].index.copy
    assert copy is not None
    flip(copy)
    with pytest.raises(
        DataError, match=r"a\.jsonl\.gz, record 1 is damaged in its rewritten copy .*\.jsonl\.zst; remove that file"
    ):
        source.records(0, 1)
    copy.unlink()
    assert len(all_records(open_at(tmp_path))) == 100


def test_a_forgotten_file_is_opened_again(tmp_path: Path, write_jsonl: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_at(write_jsonl(tmp_path / "a.jsonl", ["one", "two"]))
    read, failures = os.pread, iter([116, 0, 5, 5])

    def pread(*arguments: int) -> bytes:
        if number := next(failures):
            raise OSError(number, os.strerror(number))
        return read(*arguments)

    monkeypatch.setattr(os, "pread", pread)
    assert source.records(0, 1) == [{"text": "one"}]
    with pytest.raises(DataError, match=r"a\.jsonl cannot be read: Input/output error; look after the storage"):
        source.records(0, 1)


def test_sources_that_cannot_be_opened(tmp_path: Path, write_jsonl: Write) -> None:
    with pytest.raises(DataError, match=r"the source a: .*gone\.jsonl cannot be read: No such file"):
        open_at(tmp_path / "gone.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no \.jsonl, .* file; name one that does"):
        open_at(tmp_path / "empty")
    content = gzip.compress(write_jsonl(tmp_path / "a.jsonl", ["one"] * 1000).read_bytes())
    (tmp_path / "b.jsonl.gz").write_bytes(content[:-30])
    with pytest.raises(
        DataError,
        match=r"the source a: .*b\.jsonl\.gz ends at byte \d+, before its compressed stream does, inside line",
    ):
        open_at(tmp_path)


def test_progress_is_told_in_bytes(tmp_path: Path, write_jsonl: Write) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["one"] * 100)
    told: list[tuple[str, int, int]] = []
    for _ in ("made", "kept"):
        open_source(
            "a", SourceConfig(path=str(path)), cache_dir=None, cache_bytes=0, progress=lambda *now: told.append(now)
        )
    assert told[-1] == ("indexing a", path.stat().st_size, path.stat().st_size)
    assert len([now for now in told if now[1] == now[2]]) <= 2, "nothing to tell where all is kept"


def test_copies_and_parts_of_remote_files_share_the_cache(tmp_path: Path) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    lines = b"".join(json.dumps({"text": str(number)}).encode() + b"\n" for number in range(1000))
    try:
        files.pipe("/share/a.jsonl.gz", gzip.compress(lines))
        files.pipe("/share/b.jsonl", lines)
        config = SourceConfig(path="memory://share")
        source = open_source("a", config, cache_dir=tmp_path, cache_bytes=100_000)
        copy = source.shards[0].index.copy
        assert copy is not None
        storage = source.shards[1].file.storage
        assert storage._cache.max_bytes == 100_000 - copy.stat().st_size
        assert all_records(source) == [json.loads(line) for line in lines.splitlines()] * 2
        assert source.where(1001).endswith("/share/b.jsonl, record 2 (byte 14)")
    finally:
        files.rm("/share", recursive=True)
