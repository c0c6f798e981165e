from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.training.checkpoint.checking import verify
from tests.unit.training.checkpoint.stored import slice_of, store
from training.checkpoint.image import shard_name
from training.checkpoint.manifest import MANIFEST, Checkpoint, open_checkpoint, seal
from training.checkpoint.slices import Shards, check_parameters, overlaps, read_state
from training.errors import CheckpointError

STATES = ("exp_avg", "exp_avg_sq")


def save(root: Path, tensors: dict[str, torch.Tensor], world_size: int) -> Path:
    """A checkpoint whose optimizer states are the tensors plus 1, plus 2, …"""
    stored = {
        key: tensor + number
        for name, tensor in tensors.items()
        for number, key in enumerate([name, *(f"{name}/{state}" for state in STATES)])
    }
    parameters = {name: list(tensor.shape) for name, tensor in tensors.items()}
    states = {name: list(STATES) for name in tensors}
    # To `store` all of them are parameters; the manifest says what they are.
    path = store(root, 3, stored, world_size=world_size)
    content = json.loads((path / MANIFEST).read_text()) | {"parameters": parameters, "states": states}
    del content["schema"], content["sha256"]
    (path / MANIFEST).write_bytes(seal(content))
    return path


def load(found: Checkpoint, shapes: dict[str, tuple[int, ...]], world_size: int) -> list[dict[str, torch.Tensor]]:
    """What each rank of a world reads."""
    states = dict.fromkeys(shapes, STATES)
    return [dict(read_state(found, states, shapes, rank, world_size)) for rank in range(world_size)]


class TestResharding:
    @given(numel=st.integers(0, 60), old=st.integers(1, 9), new=st.integers(1, 9))
    def test_slices_are_cut_as_if_the_whole_had_been_cut(self, numel: int, old: int, new: int) -> None:
        whole = torch.arange(1, numel + 1, dtype=torch.float32)
        saved = [slice_of(whole, rank, old) for rank in range(old)]
        for rank in range(new):
            expected = slice_of(whole, rank, new)
            found = torch.zeros_like(expected)
            for saved_rank, there, here in overlaps(numel, old, rank, new):
                assert there.stop > there.start, "nothing is read for nothing"
                found[here] = saved[saved_rank][there]
            assert torch.equal(found, expected)

    @settings(max_examples=25, deadline=None)
    @given(
        shapes=st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=3),
        old=st.integers(1, 5), new=st.integers(1, 5),
    )  # fmt: skip
    def test_files_written_by_some_ranks_and_read_by_others(
        self, shapes: list[tuple[int, ...]], old: int, new: int
    ) -> None:
        tensors = {f"layer.{i}.weight": torch.randn(shape) for i, shape in enumerate(shapes)}
        with tempfile.TemporaryDirectory() as folder:
            found = verify(save(Path(folder), tensors, old))
            states = load(found, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, new)
        for name, tensor in tensors.items():
            for number, key in enumerate([name, *(f"{name}/{state}" for state in STATES)]):
                pieces = [state[key] for state in states]
                assert all(piece.dtype == torch.float32 for piece in pieces)
                whole = torch.cat(pieces)
                assert torch.equal(whole[: tensor.numel()].view(tensor.shape), tensor + number)
                assert not whole[tensor.numel() :].any(), "padding is zero"

    def test_only_files_with_a_part_of_a_rank_are_opened(self, tmp_path: Path) -> None:
        tensors = {"w": torch.arange(40.0), "b": torch.arange(2.0)}
        found = verify(store(tmp_path, 1, tensors, world_size=8, states=STATES))
        # Rank 1 of 4 holds w[10:20], which ranks 2 and 3 of 8 saved, and b[1:2], which rank 1 did.
        for rank in (0, *range(4, 8)):
            (found.path / shard_name(rank, 8)).unlink()
        shapes: dict[str, tuple[int, ...]] = {"w": (40,), "b": (2,)}
        state = dict(read_state(found, dict.fromkeys(shapes, STATES), shapes, 1, 4))
        assert state["w"].tolist() == list(range(10, 20))
        assert state["b"].tolist() == [1.0]
        # What rank 3 of 4 holds, ranks 6 and 7 saved.
        with pytest.raises(CheckpointError) as caught:
            dict(read_state(found, dict.fromkeys(shapes, STATES), shapes, 3, 4))
        assert str(caught.value).startswith(f"{found.path / shard_name(6, 8)}: w can't be read: ")

    def test_fewer_elements_than_ranks(self, tmp_path: Path) -> None:
        found = verify(store(tmp_path, 1, {"bias": torch.tensor([1.0, 2.0])}, states=STATES))
        pieces = [state["bias"].tolist() for state in load(found, {"bias": (2,)}, 4)]
        assert pieces == [[1.0], [2.0], [0.0], [0.0]]

    def test_a_whole_tensor(self, tmp_path: Path) -> None:
        found = verify(store(tmp_path, 1, {"w": torch.arange(7.0)}, world_size=3))
        assert Shards(found).read("w", 7).tolist() == list(range(7))

    def test_a_file_that_is_no_safetensors_file(self, tmp_path: Path) -> None:
        found = verify(store(tmp_path, 1, {"w": torch.arange(7.0)}))
        path = found.path / shard_name(0, 1)
        path.write_bytes(b"x" * path.stat().st_size)
        with pytest.raises(CheckpointError) as caught:
            Shards(found).read("w", 7)
        assert str(caught.value).startswith(f"{path}: w can't be read: ")


class TestOtherParameters:
    @pytest.fixture
    def found(self, tmp_path: Path) -> Checkpoint:
        return open_checkpoint(store(tmp_path, 1, {"a": torch.ones(2, 3), "b": torch.ones(4)}, states=STATES))

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
        self, found: Checkpoint, shapes: dict[str, tuple[int, ...]], message: str
    ) -> None:
        with pytest.raises(CheckpointError) as caught:
            load(found, shapes, 1)
        assert str(caught.value) == (
            f"{found.path}: holds other trainable parameters than this run, for example {message}"
        )

    @pytest.mark.parametrize(
        ("ours", "there", "here"),
        [
            (("exp_avg",), "exp_avg, exp_avg_sq", "exp_avg"), ((), "exp_avg, exp_avg_sq", "nothing"),
            (("exp_avg", "exp_avg_sq", "momentum"), "exp_avg, exp_avg_sq", "exp_avg, exp_avg_sq, momentum"),
        ],
    )  # fmt: skip
    def test_another_optimizer_is_refused(
        self, found: Checkpoint, ours: tuple[str, ...], there: str, here: str
    ) -> None:
        with pytest.raises(CheckpointError) as caught:
            check_parameters(found, {"a": STATES, "b": ours}, {"a": (2, 3), "b": (4,)})
        assert str(caught.value) == (
            f"{found.path}: was trained by another optimizer: of b it holds {there}, and optim.kind needs {here}"
        )
