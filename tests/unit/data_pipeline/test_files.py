from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from data_pipeline.files import is_url, sha256_of, write_atomically


def test_a_url_is_told_from_a_path() -> None:
    assert is_url("s3://bucket/a.jsonl")
    assert not is_url("/data/a:b/c.jsonl")


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
