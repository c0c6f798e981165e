from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from training import files
from training.files import read_json, sha256, sync_file, sync_folder, write_json


def test_what_is_written_is_read(tmp_path: Path) -> None:
    content = {"schema": 1, "text": "ä\n", "nested": {"list": [1, 2.5, None]}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert (tmp_path / "a.json").read_text().endswith("}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "\x00", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_what_is_no_json_object_is_not_there(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert read_json(tmp_path / "a.json") is None


def test_a_missing_file_a_folder_and_no_text_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_bytes(b"\xff{}")
    assert read_json(tmp_path / "a.json") is None
    assert read_json(tmp_path) is None
    assert read_json(tmp_path / "b.json") is None


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"step": 1})
    with pytest.raises(TypeError):
        write_json(path, {"step": 2, "more": object()})
    assert read_json(path) == {"step": 1}


def test_the_name_is_given_only_after_the_content_has_reached_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, events = tmp_path / "a.json", []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        events.append("folder" if os.path.samestat(os.fstat(descriptor), tmp_path.stat()) else "content")
        if events[-1] == "content":
            (temporary,) = tmp_path.iterdir()
            assert json.loads(temporary.read_text()) == {"step": 1}
        real_fsync(descriptor)

    def replace(self: Path, target: Any) -> Path:
        events.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_json(path, {"step": 1})
    assert events == ["content", "rename", "folder"]


def test_a_temporary_file_is_hidden_and_named_after_the_process(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"more": object()})
    assert [path.name for path in tmp_path.iterdir()] == [f".a.json.{os.getpid()}.tmp"]


def test_hashes_are_those_of_sha256(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_syncing_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    sync_file(tmp_path / "a")
    sync_folder(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"x"
    with pytest.raises(FileNotFoundError):
        sync_file(tmp_path / "b")
