from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zstandard

from data_pipeline.sources import index as index_module
from data_pipeline.sources import indexing, parallel
from data_pipeline.sources.errors import DataError
from data_pipeline.sources.formats import Stat
from data_pipeline.sources.index import Index
from data_pipeline.sources.indexing import open_indexes
from data_pipeline.sources.local_files import LocalFiles
from data_pipeline.sources.shard_file import ShardFile
from data_pipeline.sources.text import TextFiles

LINES = b"".join(json.dumps({"text": f"document {number}"}).encode() + b"\n" for number in range(5000))


def file_of(path: Path, kind: str = "jsonl") -> ShardFile:
    return ShardFile(str(path), kind, LocalFiles())


def open_them(
    *files: ShardFile, cache_dir: Path | None = None, cache_bytes: int = 10**9, workers: int = 0
) -> list[Index]:
    return open_indexes(
        files, cache_dir=cache_dir, cache_bytes=cache_bytes, workers=workers, what="indexing", progress=None
    )


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    locations: list[str] = []
    make = indexing.make_index
    monkeypatch.setattr(
        indexing, "make_index", lambda file, *rest: locations.append(file.location) or make(file, *rest)
    )
    return locations


def test_an_index_is_made_once_and_again_when_the_file_changes(tmp_path: Path, made: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    first, second = open_them(file_of(path)), open_them(file_of(path))
    assert first == second
    assert first[0].sha256 == hashlib.sha256(LINES).hexdigest()
    assert isinstance(first[0].extents, np.memmap)
    assert len(made) == 1

    os.utime(path, ns=(0, 12345))
    assert open_them(file_of(path))[0].sha256 == first[0].sha256
    path.write_bytes(LINES + b"{}\n")
    assert open_them(file_of(path))[0].num_documents == 5001
    assert len(made) == 3
    assert {entry.name.split(".")[-1] for entry in (tmp_path / ".index").iterdir()} == {"json", "npy"}
    # With the arrays of both earlier versions.
    assert len(list((tmp_path / ".index").iterdir())) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_only_what_is_missing_is_made(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "WORTH_PROCESSES", 0)
    files = []
    for number in range(5):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(LINES[: 100 * number])
        files.append(file_of(path))
    open_them(files[1], files[3])
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / ".index").iterdir()}
    indexes = open_them(*files, workers=workers)
    assert [index.stat.size for index in indexes] == [0, 100, 200, 300, 400]
    assert [index.num_documents for index in indexes] == [
        len(LINES[: 100 * number].splitlines()) for number in range(5)
    ]
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in kept.items())


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_bytes(LINES)
        files.append(file_of(tmp_path / f"{name}.jsonl"))
    real = indexing.make_index

    def stop_at_c(file: ShardFile, *rest: object) -> Index:
        if file.location.endswith("c.jsonl"):
            raise KeyboardInterrupt
        return real(file, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "make_index", stop_at_c)
        with pytest.raises(KeyboardInterrupt):
            open_them(*files)
    made.clear()
    open_them(*files)
    assert made == [files[2].location]


def test_racing_writers_agree(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(LINES))
    files = [file_of(tmp_path / "a.jsonl"), file_of(tmp_path / "b.jsonl.gz", "jsonl.gz")]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: open_them(*files), range(4)))
    assert all(result == results[0] for result in results)
    assert open_them(*files) == results[0]


def test_no_index_beside_the_data_goes_home(tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "a.jsonl"
    path.write_bytes(LINES)
    (tmp_path / "data" / ".index").write_bytes(b"a file where the folder would be")
    index = open_them(file_of(path))[0]
    assert index.extents_path.is_relative_to(tmp_path / "home" / ".cache" / "palimpsest" / "index")
    assert open_them(file_of(path)) == [index]
    assert len(made) == 1


def test_nowhere_to_keep_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    (tmp_path / ".index").touch()
    (tmp_path / "a.jsonl").write_bytes(LINES)
    with pytest.raises(
        DataError, match=r"an index can be kept nowhere \(.*\.index: .*; .*palimpsest.*\); set data.cache_dir"
    ):
        open_them(file_of(tmp_path / "a.jsonl"))


def test_an_index_beside_the_data_serves_where_a_cache_is_set(tmp_path: Path, made: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    beside = open_them(file_of(path))
    assert open_them(file_of(path), cache_dir=tmp_path / "cache") == beside
    path.write_bytes(LINES + LINES)
    index = open_them(file_of(path), cache_dir=tmp_path / "cache")[0]
    assert index.extents_path.parent == tmp_path / "cache" / "index"
    assert len(made) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "WORTH_PROCESSES", 0)
    with pytest.raises(DataError, match=r"gone\.jsonl cannot be read: No such file.*; restore it, or name the files"):
        open_them(file_of(tmp_path / "gone.jsonl"), workers=workers)
    (tmp_path / "a.jsonl").mkdir()
    (tmp_path / "b.jsonl").write_bytes(LINES)
    with pytest.raises(DataError, match=r"a\.jsonl cannot be read: Is a directory; look after the storage"):
        open_them(file_of(tmp_path / "a.jsonl"), file_of(tmp_path / "b.jsonl"), workers=workers)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: LocalFiles, location: str) -> None:
        raise PermissionError(13, "Permission denied", location)

    (tmp_path / "a.jsonl").write_bytes(LINES)
    monkeypatch.setattr(LocalFiles, "open", refuse)
    with pytest.raises(DataError, match=r"a\.jsonl cannot be read: Permission denied; let this user read it \(chmod"):
        open_them(file_of(tmp_path / "a.jsonl"))


def test_a_file_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    stats = iter([Stat(5, "0"), Stat(6, "0")])
    monkeypatch.setattr(LocalFiles, "stat", lambda self, location: next(stats))
    with pytest.raises(DataError, match=r"a\.jsonl was changed while its index was made; start again when"):
        open_them(file_of(tmp_path / "a.jsonl"))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "jsonl.gz": gzip.compress,
    "jsonl.zst": lambda data: (
        zstandard.ZstdCompressor().compressobj().compress(data)
        + b"".join(zstandard.ZstdCompressor().compress(data[at : at + 999]) for at in range(0, len(data), 999))
    ),
}


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_copy_is_made_of_what_cannot_be_read_at_random(tmp_path: Path, kind: str, made: list[str]) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(COMPRESS[kind](LINES))
    index = open_them(file_of(path, kind))[0]
    assert index.copy is not None
    assert index.num_documents == 5000
    assert index.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    copied = zstandard.ZstdDecompressor().stream_reader(index.copy.read_bytes(), read_across_frames=True).read()
    assert copied == LINES
    assert open_them(file_of(path, kind)) == [index]
    index.copy.write_bytes(b"cut off")
    assert open_them(file_of(path, kind)) == [index]
    index.copy.unlink()
    assert open_them(file_of(path, kind)) == [index]
    assert len(made) == 3
    assert index.copy.exists()

    again = open_them(file_of(index.copy, "jsonl.zst"), cache_dir=tmp_path / "cache")[0]
    assert again.copy is None
    assert again.extents.tolist() == index.extents.tolist()


def test_copies_are_bounded_and_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing.framed, "_BATCH", 1)
    paths = [tmp_path / f"{name}.jsonl.gz" for name in "ab"]
    for path in paths:
        path.write_bytes(gzip.compress(LINES * 10))
    first = open_them(file_of(paths[0], "jsonl.gz"))[0]
    assert first.copy is not None
    size = first.copy.stat().st_size
    left = sorted(path.name for path in (tmp_path / ".index").iterdir())
    for bound in (size - 1, int(1.5 * size)):
        with pytest.raises(
            DataError,
            match=r"b\.jsonl\.gz \(.* GB\) cannot be read at random .* raise data\.cache_gb, set data\.cache_dir",
        ):
            open_them(file_of(paths[1], "jsonl.gz"), cache_bytes=bound)
        assert sorted(path.name for path in (tmp_path / ".index").iterdir()) == left
    open_them(file_of(paths[1], "jsonl.gz"), cache_bytes=3 * size)


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES))
    index = open_them(file_of(path, "jsonl.gz"))[0]
    assert index.copy is not None
    index.copy.unlink()
    old, new = (index.copy.with_name(f".{index.copy.name}.{end}") for end in ("old", "new"))
    for left_over in (old, new):
        left_over.write_bytes(b"half a copy")
    os.utime(old, (time.time() - 3600,) * 2)
    open_them(file_of(path, "jsonl.gz"))
    assert not old.exists()
    assert new.exists()


def test_many_text_files_are_one_index(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number:03}.txt" for number in range(200)]
    for number, path in enumerate(paths):
        path.write_bytes(b"x" * number)
    file = ShardFile(str(tmp_path), "text", TextFiles(LocalFiles(), [str(path) for path in paths]))
    index = open_them(file)[0]
    assert index.extents["length"].tolist() == list(range(200))
    assert len(list((tmp_path / ".index").iterdir())) == 2
    paths[7].write_bytes(b"y" * 7)
    os.utime(paths[7], ns=(0, 1))
    other = open_them(ShardFile(str(tmp_path), "text", TextFiles(LocalFiles(), [str(path) for path in paths])))[0]
    assert other.sha256 != index.sha256
    assert other.num_documents == 200


def test_the_hash_tells_text_files_apart(tmp_path: Path) -> None:
    hashes = set()
    for number, contents in enumerate([(b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"abc", b"")]):
        (tmp_path / str(number)).mkdir()
        for place, content in enumerate(contents):
            (tmp_path / str(number) / f"{place}.txt").write_bytes(content)
        storage = LocalFiles()
        files = storage.data_files(str(tmp_path / str(number)))
        hashes.add(open_them(ShardFile(str(tmp_path / str(number)), "text", TextFiles(storage, files)))[0].sha256)
    assert len(hashes) == 4


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "a.jsonl").write_bytes(LINES)
    monkeypatch.setattr(index_module, "write_atomically", write)
    with pytest.raises(
        DataError, match=r"index of .*a\.jsonl cannot be written to .*\.index: No space .*; make room there, or set"
    ):
        open_them(file_of(tmp_path / "a.jsonl"))
