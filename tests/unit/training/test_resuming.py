"""Which checkpoint a start goes on from, with one rank; several are in tests/distributed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training.checkpoint.stored import store
from training import resuming
from training.checkpoint.image import shard_name
from training.checkpoint.manifest import MANIFEST
from training.errors import CheckpointError
from training.origin import Origin
from training.world import World

ALONE = World(rank=0, size=1, local_rank=0, local_size=1, launcher="none", master_addr="localhost", master_port=1)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "from_rank_0", lambda compute, world: compute())
    monkeypatch.setattr(resuming, "gather", lambda value, world: [value])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Checkpoints of steps 4, 8 and 12."""
    for step in (4, 8, 12):
        store(tmp_path / "checkpoints", step, {"w": torch.arange(9.0)})
    return tmp_path / "checkpoints"


def flip(folder: Path) -> Path:
    """Change a byte of a checkpoint; the file."""
    shard = folder / shard_name(0, 1)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    return shard


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestNewestGood:
    def test_the_newest(self, root: Path) -> None:
        said: list[str] = []
        found = resuming.newest_good(root, said.append, ALONE)
        assert found is not None
        assert (found.path, said, names(root)) == (root / "12", [], ["12", "4", "8"])

    def test_none_at_all(self, tmp_path: Path) -> None:
        assert resuming.newest_good(tmp_path / "checkpoints", print, ALONE) is None

    def test_damaged_ones_are_set_aside(self, root: Path) -> None:
        """Read again one day, they would be taken for the future of a run that has gone another way."""
        said: list[str] = []
        shard = flip(root / "12")
        (root / "8" / MANIFEST).rename(root / "8" / "away")
        for _ in range(2):
            found = resuming.newest_good(root, said.append, ALONE)
            assert found is not None
            assert (found.step, names(root), names(root / "set-aside-1")) == (4, ["4", "set-aside-1"], ["12", "8"])
        assert said == [
            f"damaged checkpoint ignored: {shard}: content differs from what was written (SHA-256)",
            f"damaged checkpoint ignored: {root / '8' / MANIFEST}: missing, so the checkpoint was never completed",
            f"checkpoints that are not continued were moved to {root / 'set-aside-1'}: 8, 12",
        ]
        assert (root / "set-aside-1" / "8" / "away").exists(), "whole, for whoever can repair them"

    def test_older_damaged_ones_stay(self, root: Path) -> None:
        flip(root / "8")
        found = resuming.newest_good(root, print, ALONE)
        assert found is not None
        assert (found.step, names(root)) == (12, ["12", "4", "8"])

    def test_one_of_another_step_than_its_name(self, root: Path) -> None:
        said: list[str] = []
        shutil.copytree(root / "8", root / "99")
        found = resuming.newest_good(root, said.append, ALONE)
        assert found is not None
        assert (found.step, names(root)) == (12, ["12", "4", "8", "set-aside-1"])
        assert said[0] == f"damaged checkpoint ignored: {root / '99'}: is that of step 8; was it renamed?"

    def test_all_damaged(self, root: Path) -> None:
        for step in (4, 8, 12):
            flip(root / str(step))
        with pytest.raises(CheckpointError) as caught:
            resuming.newest_good(root, lambda line: None, ALONE)
        assert str(caught.value) == (
            f"{root}: every checkpoint is damaged; restore one, or remove the run directory to begin the run anew"
        )
        assert names(root) == ["12", "4", "8"], "nothing is touched"

    def test_damage_that_another_rank_sees(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resuming, "gather", lambda value, world: [value, "what it sees"])
        with pytest.raises(CheckpointError, match="what it sees"):
            resuming.good(root / "12", ALONE)

    @pytest.mark.parametrize("call", ["iterdir", "rename"])
    def test_a_folder_that_storage_does_not_let_us_put_in_order(
        self, root: Path, call: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*arguments: Any) -> Any:
            raise OSError(13, "Permission denied", str(root / "12"))

        flip(root / "12")
        monkeypatch.setattr(Path, call, refuse)
        with pytest.raises(CheckpointError) as caught:
            resuming.newest_good(root, lambda line: None, ALONE)
        assert str(caught.value) == (
            f"{root / '12'}: what an earlier start has left there can't be put in order: Permission denied"
        )


class TestWhereToBegin:
    Begin = Callable[..., int | None]

    @pytest.fixture
    def begin(self, root: Path) -> Begin:
        def step(**values: Any) -> int | None:
            found = resuming.where_to_begin(Origin(**values), root, lambda line: None, ALONE)
            return None if found is None else found.step

        return step

    def test_its_own_come_first(self, root: Path, begin: Begin) -> None:
        assert begin(root=root, checkpoint=root / "4") == 12
        assert begin(checkpoint=root / "4") == 4
        assert begin(root=root.parent / "none", checkpoint=root / "4") == 4
        assert begin(root=root.parent / "none") is None

    def test_a_given_one_has_no_substitute(self, root: Path, begin: Begin) -> None:
        flip(root / "8")
        with pytest.raises(CheckpointError, match="content differs"):
            begin(checkpoint=root / "8")
        assert names(root) == ["12", "4", "8"]

    def test_what_a_killed_start_left_is_put_in_order_first(self, root: Path, begin: Begin) -> None:
        (root / "12").rename(root / ".12.replaced")
        assert begin(root=root) == 12
