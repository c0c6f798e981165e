from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.training.checkpoint.checking import newest_good, verify
from tests.unit.training.checkpoint.stored import store
from training.checkpoint import storage
from training.checkpoint.image import shard_name
from training.checkpoint.manifest import MANIFEST
from training.checkpoint.storage import commit, discard, tidy_up, unfinished_folder, write_file

W = {"w": torch.arange(3.0)}


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def content_of(folder: Path, *, step: int = 7) -> dict[str, Any]:
    """An attempt with one file, and what belongs into its manifest."""
    entry = write_file(folder / shard_name(0, 1), [b"slices"], read_back=False)
    return {
        "step": step, "world_size": 1, "progress": {}, "optimizer_steps": {}, "parameters": {}, "states": {},
        "fingerprints": {}, "config": {}, "stream": {}, "files": [entry],
    }  # fmt: skip


class TestWriteFile:
    @pytest.mark.parametrize("read_back", [False, True])
    def test_pieces_become_a_file_and_its_entry(self, tmp_path: Path, read_back: bool) -> None:
        pieces = [b"one", memoryview(b"two"), b"", torch.arange(5.0).numpy()]
        path = tmp_path / "checkpoints" / ".7.x.unfinished" / "file"
        entry = write_file(path, pieces, read_back=read_back)
        content = b"onetwo" + torch.arange(5.0).numpy().tobytes()
        assert path.read_bytes() == content
        assert entry == {"name": "file", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def test_a_write_that_takes_only_a_part(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        own = os.write
        monkeypatch.setattr(storage.os, "write", lambda descriptor, content: own(descriptor, content[:7]))
        content = os.urandom(100)
        entry = write_file(tmp_path / "root" / "folder" / "file", [content[:50], content[50:]], read_back=True)
        assert (tmp_path / "root" / "folder" / "file").read_bytes() == content
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()

    def test_a_disk_that_gives_back_something_else(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        own = os.fsync

        def spoil(descriptor: int) -> None:
            os.pwrite(descriptor, b"X", 1)
            own(descriptor)

        path = tmp_path / "root" / "folder" / "file"
        monkeypatch.setattr(storage.os, "fsync", spoil)
        with pytest.raises(OSError, match="reads differently from what was written") as caught:
            write_file(path, [b"content"], read_back=True)
        assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))
        write_file(path, [b"content"], read_back=False)
        assert path.read_bytes() == b"cXntent", "so the test is one"

    def test_a_run_directory_that_is_away_is_not_made_anew(self, tmp_path: Path) -> None:
        path = tmp_path / "run" / "checkpoints" / ".7.x.unfinished" / "file"
        with pytest.raises(FileNotFoundError):
            write_file(path, [b"x"], read_back=False)
        assert not (tmp_path / "run").exists()


class TestCommit:
    def test_the_layout_on_disk(self, tmp_path: Path) -> None:
        path = store(tmp_path, 7, W, world_size=2, note="kept")
        assert path == tmp_path / "7"
        assert names(tmp_path) == ["7"]
        assert names(path) == [MANIFEST, shard_name(0, 2), shard_name(1, 2)]
        manifest = json.loads((path / MANIFEST).read_text())
        assert (manifest["schema"], manifest["step"], manifest["note"]) == (3, 7, "kept")
        assert load_file(path / shard_name(1, 2))["w"].tolist() == [2.0, 0.0]
        for entry in manifest["files"]:
            content = (path / entry["name"]).read_bytes()
            assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())

    def test_saving_a_step_again_replaces_it(self, tmp_path: Path) -> None:
        store(tmp_path, 7, W, world_size=2)
        found = verify(store(tmp_path, 7, {"w": torch.ones(3)}))
        assert load_file(found.path / shard_name(0, 1))["w"].tolist() == [1, 1, 1]
        assert names(tmp_path) == ["7"]
        assert len(names(found.path)) == 2

    def test_others_are_deleted_once_it_is_there(self, tmp_path: Path) -> None:
        for step in (1, 2, 3):
            store(tmp_path, step, W)
        folder = unfinished_folder(tmp_path, 7, "x")
        assert commit(folder, tmp_path / "7", content_of(folder), [1, 3, 5]) == []
        assert names(tmp_path) == ["2", "7"]

    def test_what_cannot_be_deleted_is_told_and_stays_good(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for step in (1, 2):
            store(tmp_path, step, W)
        folder = unfinished_folder(tmp_path, 7, "x")
        content = content_of(folder)
        own = Path.rename

        def refuse(path: Path, target: Path) -> Path:
            if path.name == "1":
                raise PermissionError(errno.EACCES, "Permission denied")
            return own(path, target)

        monkeypatch.setattr(Path, "rename", refuse)
        assert commit(folder, tmp_path / "7", content, [1, 2]) == [1]
        assert names(tmp_path) == ["1", "7"]
        assert verify(tmp_path / "1").step == 1

    @pytest.mark.parametrize("damage", ["missing", "short"])
    def test_a_file_that_another_rank_wrote_and_that_never_appears(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
    ) -> None:
        store(tmp_path, 1, W)
        monkeypatch.setattr(storage, "VISIBLE_SECONDS", 0.1)
        folder = unfinished_folder(tmp_path, 7, "x")
        content = content_of(folder)
        path = folder / shard_name(0, 1)
        if damage == "missing":
            path.unlink()
        else:
            os.truncate(path, 2)
        what = "is not there" if damage == "missing" else "has 2 bytes instead of 6"
        with pytest.raises(OSError, match=f"{what} although another rank has written it") as caught:
            commit(folder, tmp_path / "7", content, [1])
        assert caught.value.filename == str(path)
        assert verify(tmp_path / "1").step == 1

    def test_an_attempt_is_no_checkpoint_even_with_a_manifest(self, tmp_path: Path) -> None:
        store(tmp_path, 5, W)
        folder = unfinished_folder(tmp_path, 10, "x")
        folder.mkdir()
        for path in (tmp_path / "5").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        found, damages = newest_good(tmp_path)
        assert found is not None
        assert (found.step, damages) == (5, [])

    def test_the_earlier_one_stays_where_the_name_cannot_be_given(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store(tmp_path, 7, W, note="earlier")
        folder = unfinished_folder(tmp_path, 7, "x")
        content = content_of(folder)
        own = Path.rename

        def refuse(path: Path, target: Path) -> Path:
            if path == folder:
                raise OSError(errno.EIO, "Input/output error")
            return own(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", refuse)
            with pytest.raises(OSError, match="Input/output error"):
                commit(folder, tmp_path / "7", content, [])
        assert verify(tmp_path / "7").manifest["note"] == "earlier"
        discard(folder)
        assert names(tmp_path) == ["7"]

    def test_leftovers_of_attempts_that_could_not_be_discarded_go_with_the_next_one(self, tmp_path: Path) -> None:
        for name in (".3.a1.unfinished", ".4.a2.unfinished", ".2.deleted"):
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / "file").touch()
        store(tmp_path, 5, W)
        assert names(tmp_path) == ["5"]


class TestTidyingUp:
    def test_what_killed_starts_left_behind(self, tmp_path: Path) -> None:
        store(tmp_path, 5, W)
        for name in (".6.a1.unfinished", ".2.deleted", ".5.replaced"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").touch()
        others = [".git", ".6.unfinished.bak", "notes", "7.unfinished", "set-aside-1"]
        for name in others:
            (tmp_path / name).mkdir()
        tidy_up(tmp_path)
        assert names(tmp_path) == sorted(["5", *others])
        assert verify(tmp_path / "5").step == 5

    def test_killed_between_the_old_and_the_new_one(self, tmp_path: Path) -> None:
        store(tmp_path, 5, W).rename(tmp_path / ".5.replaced")
        (tmp_path / ".5.a1.unfinished").mkdir()
        tidy_up(tmp_path)
        assert names(tmp_path) == ["5"]
        assert verify(tmp_path / "5").step == 5

    def test_nothing_there(self, tmp_path: Path) -> None:
        tidy_up(tmp_path / "none")
        discard(tmp_path / "none")
        assert names(tmp_path) == []
