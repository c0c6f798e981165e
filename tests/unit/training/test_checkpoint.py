from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from training import checkpoint
from training.checkpoint import Checkpoint, CheckpointError, newest_good, overlaps, read_state, shard_name, verify

SUFFIXES = ("", "/exp_avg", "/exp_avg_sq")


def slices_of(tensor: torch.Tensor, world_size: int) -> list[torch.Tensor]:
    """Equal slices of the flattened tensor, the last ones padded with zeros: what DeepSpeed's ranks hold."""
    share = math.ceil(tensor.numel() / world_size)
    padded = torch.zeros(share * world_size)
    padded[: tensor.numel()] = tensor.flatten()
    return list(padded.split(share)) if share else [padded] * world_size


def save(
    root: Path, step: int, tensors: dict[str, torch.Tensor], world_size: int = 1, keep: int | None = 2, **more: Any
) -> Path:
    """A checkpoint of whole tensors, written as `world_size` ranks would write it."""
    checkpoint.start(root, step)
    folder = checkpoint.unfinished_folder(root, step)
    entries = []
    for rank in range(world_size):
        state = {
            f"{name}{suffix}": slices_of(tensor + number, world_size)[rank].clone()
            for name, tensor in tensors.items()
            for number, suffix in enumerate(SUFFIXES)
        }
        entries.append(checkpoint.write_shard(folder, state, rank, world_size))
    manifest = {
        "step": step,
        "world_size": world_size,
        "parameters": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "files": entries,
        "progress": {},
        "stream": {},
        "optimizer_steps": step,
        **more,
    }
    return checkpoint.finish(root, step, manifest, keep)


def load(found: Checkpoint, shapes: dict[str, tuple[int, ...]], world_size: int) -> list[dict[str, torch.Tensor]]:
    states = dict.fromkeys(shapes, ("exp_avg", "exp_avg_sq"))
    return [read_state(found, states, shapes, rank, world_size) for rank in range(world_size)]


class TestResharding:
    @given(numel=st.integers(0, 60), old=st.integers(1, 9), new=st.integers(1, 9))
    def test_slices_are_cut_as_if_the_whole_had_been_cut(self, numel: int, old: int, new: int) -> None:
        whole = torch.arange(1, numel + 1, dtype=torch.float32)
        saved = slices_of(whole, old)
        for rank, expected in enumerate(slices_of(whole, new)):
            found = torch.zeros_like(expected)
            for saved_rank, there, here in overlaps(numel, old, rank, new):
                assert there.stop > there.start, "nothing is read for nothing"
                found[here] = saved[saved_rank][there]
            assert torch.equal(found, expected)

    @settings(max_examples=25, deadline=None)
    @given(
        shapes=st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=3),
        old=st.integers(1, 5), new=st.integers(1, 5),
    )  # fmt: skip
    def test_files_written_by_some_ranks_and_read_by_others(
        self, shapes: list[tuple[int, ...]], old: int, new: int
    ) -> None:
        tensors = {f"layer.{i}.weight": torch.randn(shape) for i, shape in enumerate(shapes)}
        with tempfile.TemporaryDirectory() as folder:
            found = verify(save(Path(folder), 3, tensors, old))
            states = load(found, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, new)
        for name, tensor in tensors.items():
            for number, suffix in enumerate(SUFFIXES):
                pieces = [state[f"{name}{suffix}"] for state in states]
                assert all(piece.dtype == torch.float32 for piece in pieces)
                whole = torch.cat(pieces)
                assert torch.equal(whole[: tensor.numel()].view(tensor.shape), tensor + number)
                assert not whole[tensor.numel() :].any(), "padding is zero"

    def test_only_files_with_a_part_of_a_rank_are_opened(self, tmp_path: Path) -> None:
        tensors = {"w": torch.arange(40.0), "b": torch.arange(2.0)}
        folder = save(tmp_path, 1, tensors, 8)
        found = verify(folder)
        # Rank 1 of 4 holds w[10:20], which ranks 2 and 3 of 8 saved, and b[1:2], which rank 1 did.
        for rank in (0, *range(4, 8)):
            (folder / shard_name(rank, 8)).unlink()
        states = dict.fromkeys(tensors, ("exp_avg", "exp_avg_sq"))
        state = read_state(found, states, {"w": (40,), "b": (2,)}, 1, 4)
        assert state["w"].tolist() == list(range(10, 20))
        assert state["b/exp_avg"].tolist() == [2.0]
        # What rank 3 of 4 holds, ranks 6 and 7 saved.
        with pytest.raises(FileNotFoundError):
            read_state(found, states, {"w": (40,), "b": (2,)}, 3, 4)

    def test_fewer_elements_than_ranks(self, tmp_path: Path) -> None:
        tensors = {"bias": torch.tensor([1.0, 2.0])}
        found = verify(save(tmp_path, 1, tensors, 1))
        pieces = [state["bias"].tolist() for state in load(found, {"bias": (2,)}, 4)]
        assert pieces == [[1.0], [2.0], [0.0], [0.0]]


class TestFinding:
    def test_nothing_there(self, tmp_path: Path) -> None:
        assert newest_good(tmp_path / "none") == (None, [])
        assert newest_good(tmp_path) == (None, [])

    def test_the_newest_by_number(self, tmp_path: Path) -> None:
        for step in (9, 10, 100):
            save(tmp_path, step, {"w": torch.ones(3)}, keep=9)
        (tmp_path / "notes").mkdir()
        found, damages = newest_good(tmp_path)
        assert found is not None
        assert (found.step, found.path, damages) == (100, tmp_path / "100", [])

    def test_an_unfinished_one_is_never_found(self, tmp_path: Path) -> None:
        save(tmp_path, 5, {"w": torch.ones(3)})
        checkpoint.start(tmp_path, 10)
        folder = checkpoint.unfinished_folder(tmp_path, 10)
        checkpoint.write_shard(folder, {"w": torch.ones(3)}, 0, 1)
        # Even with a manifest: it has not been given its name.
        (folder / "MANIFEST.json").write_text((tmp_path / "5" / "MANIFEST.json").read_text())
        found, damages = newest_good(tmp_path)
        assert found is not None
        assert (found.step, damages) == (5, [])

    def test_starting_again_begins_empty(self, tmp_path: Path) -> None:
        checkpoint.start(tmp_path, 10)
        folder = checkpoint.unfinished_folder(tmp_path, 10)
        (folder / "rank-00001-of-00002.safetensors").write_bytes(b"left over")
        checkpoint.start(tmp_path, 10)
        assert list(folder.iterdir()) == []

    def test_the_layout_on_disk(self, tmp_path: Path) -> None:
        path = save(tmp_path, 7, {"w": torch.arange(3.0)}, 2, note="kept")
        assert path == tmp_path / "7"
        assert sorted(file.name for file in path.iterdir()) == [
            "MANIFEST.json", "rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors",
        ]  # fmt: skip
        manifest = json.loads((path / "MANIFEST.json").read_text())
        assert (manifest["schema"], manifest["step"], manifest["note"]) == (2, 7, "kept")
        assert load_file(path / shard_name(1, 2))["w"].tolist() == [2.0, 0.0]
        assert [entry["bytes"] for entry in manifest["files"]] == [
            (path / entry["name"]).stat().st_size for entry in manifest["files"]
        ]

    def test_saving_a_step_again_replaces_it(self, tmp_path: Path) -> None:
        save(tmp_path, 7, {"w": torch.zeros(3)}, 2)
        found = verify(save(tmp_path, 7, {"w": torch.ones(3)}, 1))
        assert load(found, {"w": (3,)}, 1)[0]["w"].tolist() == [1, 1, 1]
        assert len(list(found.path.iterdir())) == 2


class TestDamage:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        """Checkpoints of steps 1 and 2; the newer one's folder."""
        save(tmp_path, 1, {"w": torch.arange(100.0)}, 2)
        return save(tmp_path, 2, {"w": torch.arange(100.0)}, 2)

    def check(self, folder: Path, message: str) -> None:
        """The folder is refused with this message, and the older checkpoint is used."""
        with pytest.raises(CheckpointError) as caught:
            verify(folder)
        assert str(caught.value) == message
        found, damages = newest_good(folder.parent)
        assert found is not None
        assert (found.step, damages) == (1, [message])

    def test_a_missing_file(self, saved: Path) -> None:
        path = saved / shard_name(1, 2)
        path.unlink()
        self.check(saved, f"{path}: missing")

    def test_a_truncated_file(self, saved: Path) -> None:
        path = saved / shard_name(0, 2)
        size = path.stat().st_size
        path.write_bytes(path.read_bytes()[:-1])
        self.check(saved, f"{path}: has {size - 1} bytes instead of {size}")

    @pytest.mark.parametrize("place", [0, 8, -1])
    def test_a_flipped_bit(self, saved: Path, place: int) -> None:
        path = saved / shard_name(0, 2)
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
        self.check(saved, f"{path}: content differs from what was written (SHA-256)")

    @pytest.mark.parametrize("text", [None, "", '{"schema": 2, "st'])
    def test_no_manifest(self, saved: Path, text: str | None) -> None:
        path = saved / "MANIFEST.json"
        path.unlink()
        if text is not None:
            path.write_text(text)
        self.check(saved, f"{path}: missing or unreadable, so the checkpoint was never completed")

    @pytest.mark.parametrize("schema", [0, 1, 3, None])
    def test_another_schema(self, saved: Path, schema: int | None) -> None:
        path = saved / "MANIFEST.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema": schema}))
        self.check(saved, f"{path}: schema {schema} is not the 2 read here")

    @pytest.mark.parametrize("key", ["files", "stream"])
    def test_an_incomplete_manifest(self, saved: Path, key: str) -> None:
        path = saved / "MANIFEST.json"
        manifest = json.loads(path.read_text())
        del manifest[key]
        path.write_text(json.dumps(manifest))
        self.check(saved, f"{path}: says nothing about {key}")

    @pytest.mark.parametrize("files", [[{"nom": "x"}], 3, [5]])
    def test_a_list_of_files_that_makes_no_sense(self, saved: Path, files: Any) -> None:
        path = saved / "MANIFEST.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "files": files}))
        with pytest.raises(CheckpointError, match="its list of files makes no sense"):
            verify(saved)

    def test_none_is_good(self, saved: Path) -> None:
        for folder in (saved, saved.parent / "1"):
            (folder / "MANIFEST.json").unlink()
        found, damages = newest_good(saved.parent)
        assert found is None
        assert [damage.split(":")[0] for damage in damages] == [
            f"{saved}/MANIFEST.json", f"{saved.parent}/1/MANIFEST.json",
        ]  # fmt: skip

    def test_unknown_keys_of_a_manifest_are_tolerated(self, saved: Path) -> None:
        path = saved / "MANIFEST.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "from_the_future": {"a": 1}}))
        assert verify(saved).step == 2


class TestKeeping:
    def steps(self, root: Path) -> list[int]:
        return sorted(int(path.name) for path in root.iterdir())

    def test_all_are_kept_when_asked_for(self, tmp_path: Path) -> None:
        for step in (8, 9, 10):
            save(tmp_path, step, {"w": torch.ones(1)}, keep=None)
        assert self.steps(tmp_path) == [8, 9, 10]

    @pytest.mark.parametrize("keep", [1, 2, 3])
    def test_the_newest_are_kept(self, tmp_path: Path, keep: int) -> None:
        for step in (8, 9, 10, 11):
            save(tmp_path, step, {"w": torch.ones(1)}, keep=keep)
        assert self.steps(tmp_path) == [8, 9, 10, 11][-keep:]

    def test_a_damaged_later_one_does_not_push_out_the_new_one(self, tmp_path: Path) -> None:
        save(tmp_path, 10, {"w": torch.ones(1)}, keep=1)
        later = save(tmp_path, 20, {"w": torch.ones(1)}, keep=2)
        (later / "MANIFEST.json").unlink()
        # The run resumed from 10 and was stopped at 12.
        save(tmp_path, 12, {"w": torch.ones(1)}, keep=1)
        found, _ = newest_good(tmp_path)
        assert found is not None
        assert found.step == 12
        assert self.steps(tmp_path) == [12, 20]


class TestOtherParameters:
    @pytest.mark.parametrize(
        ("shapes", "message"),
        [
            ({"a": (2, 3)}, "b: (4,) there, None here"),
            ({"a": (2, 3), "b": (4,), "c": (1,)}, "c: None there, (1,) here"),
            ({"a": (3, 2), "b": (4,)}, "a: (2, 3) there, (3, 2) here"),
            ({}, "a: (2, 3) there, None here"),
        ],
    )
    def test_they_are_refused_with_an_example(
        self, tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str
    ) -> None:
        found = verify(save(tmp_path, 1, {"a": torch.ones(2, 3), "b": torch.ones(4)}))
        with pytest.raises(CheckpointError) as caught:
            load(found, shapes, 1)
        assert str(caught.value) == (
            f"{tmp_path}/1: holds other trainable parameters than this run, for example {message}"
        )


def test_leftovers_of_killed_saves_are_removed(tmp_path: Path) -> None:
    checkpoint.start(tmp_path, 5)
    (checkpoint.unfinished_folder(tmp_path, 5) / "half").touch()
    checkpoint.start(tmp_path, 9)
    assert [path.name for path in tmp_path.iterdir()] == [".9.unfinished"]
    assert list(checkpoint.unfinished_folder(tmp_path, 9).iterdir()) == []
