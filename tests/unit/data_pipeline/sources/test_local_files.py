from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from data_pipeline.sources import local_files
from data_pipeline.sources.errors import DataError
from data_pipeline.sources.local_files import LocalFiles
from data_pipeline.sources.shard_file import ShardFile


def num_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_ranges_and_the_bound_of_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "_MAX_OPEN_FILES", 3)
    paths = [tmp_path / str(number) for number in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(b"0123456789" + bytes([number]))
    before = num_open()
    files = LocalFiles()
    for number in (0, 1, 2, 3, 0, 4, 5, 5, 1):
        assert files.read_range(str(paths[number]), 8, 11) == b"89" + bytes([number])
        assert num_open() <= before + 3
    assert files.read_range(str(paths[0]), 9, 100) == b"9\0"
    assert files.read_range(str(paths[0]), 20, 30) == b""
    copy = pickle.loads(pickle.dumps(files))
    assert copy.read_range(str(paths[0]), 0, 2) == b"01"
    del files, copy
    assert num_open() == before


def test_afresh_opens_the_file_anew(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    files = LocalFiles()
    assert files.read_range(str(path), 0, 3) == b"old"
    path.unlink()
    path.write_bytes(b"new")
    assert files.read_range(str(path), 0, 3) == b"old"
    assert files.read_range(str(path), 0, 3, afresh=True) == b"new"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        files.read_range(str(path), 0, 3, afresh=True)


def test_data_files_and_stat(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.parquet", "c.md", ".d.jsonl", "e/f.txt", "e/g.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    files = LocalFiles()
    assert files.data_files(str(tmp_path)) == [str(tmp_path / name) for name in ("a.parquet", "b.jsonl")]
    assert files.data_files(str(tmp_path / "c.md")) == [str(tmp_path / "c.md")]
    os.utime(tmp_path / "b.jsonl", ns=(0, 5))
    assert files.stat(str(tmp_path / "b.jsonl")) == (2, "5")


def test_nobody_waits_for_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.arrow")
    with pytest.raises(DataError, match=r"a\.arrow cannot be read: it is a FIFO, which would be waited for"):
        ShardFile(str(tmp_path / "a.arrow"), "arrow", LocalFiles()).stat()
