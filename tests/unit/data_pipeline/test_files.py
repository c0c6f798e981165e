from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from data_pipeline.files import is_url, resolve, sha256_of, write_atomically
from tests.permissions import locked


def test_a_url_is_told_from_a_path() -> None:
    assert is_url("s3://bucket/a.jsonl")
    assert not is_url("/data/a:b/c.jsonl")


@pytest.mark.parametrize(
    ("text", "as_path", "as_name"),
    [
        ("a/b.jsonl", "/data/a/b.jsonl", "a/b.jsonl"),
        ("./a/b", "/data/a/b", "/data/a/b"),
        ("a/b/c", "/data/a/b/c", "/data/a/b/c"),
        ("../a", "/a", "/a"),
        ("/x/../y", "/y", "/y"),
        ("~/z", "/home/me/z", "/home/me/z"),
        ("$CORPUS/a", "/corpus/a", "/corpus/a"),
        ("${CORPUS}", "/corpus", "/corpus"),
        ("s3://b/c/../$CORPUS", "s3://b/c/..//corpus", "s3://b/c/..//corpus"),
    ],
)
def test_paths(text: str, as_path: str, as_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("CORPUS", "/corpus")
    assert resolve(text, Path("/data")) == as_path
    assert resolve(text, Path("/data"), is_name_allowed=True) == as_name


def test_below_a_folder_that_exists_a_name_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "owner").mkdir()
    assert resolve("owner/name", tmp_path, is_name_allowed=True) == str(tmp_path / "owner" / "name")


def test_a_variable_that_is_not_set() -> None:
    with pytest.raises(ValueError, match="the environment variable NO_SUCH_VARIABLE is not set"):
        resolve("$NO_SUCH_VARIABLE/a", Path("/"))


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\0b", "is no path: it has a zero byte, or more than 4,095 bytes"), ("a/" * 2048 + "b", "more than 4,095 bytes"),
        ("a/" + "é" * 128, "is no path: a name in it has 256 bytes, above 255"), ("\ud800", "surrogates not allowed"),
    ],
)  # fmt: skip
def test_what_can_be_no_path(text: str, message: str) -> None:
    for is_name_allowed in (False, True):
        with pytest.raises(ValueError, match=message):
            resolve(text, Path("/data"), is_name_allowed=is_name_allowed)
    assert resolve("a/" + "é" * 127, Path("/data")) == "/data/a/" + "é" * 127


def test_a_name_below_a_link_that_cannot_be_followed_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "owner").symlink_to(tmp_path / "private" / "x")
    with locked(tmp_path / "private"):
        assert resolve("owner/name", tmp_path, is_name_allowed=True) == "owner/name"
