from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from data_pipeline.files import sha256_of, shard_paths, write_atomically


def test_shards_are_the_visible_jsonl_files_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl", "c.json"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jsonl").mkdir()
    assert [path.name for path in shard_paths(tmp_path)] == ["a.jsonl", "b.jsonl"]
    assert shard_paths(tmp_path / "b.jsonl") == [tmp_path / "b.jsonl"]


def test_hash(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(content)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "x"
    write_atomically(target, lambda file: file.write(b"old"))

    def fail(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert target.read_bytes() == b"old"
    assert target.stat().st_mode & 0o777 == 0o644
