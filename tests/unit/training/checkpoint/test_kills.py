"""A save that is killed between any two system calls, or in the middle of a write, or by a power cut, loses nothing."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.power_loss import Content, Disk, Ended, write_content
from tests.chaos.system_calls import intercepted, killed_at
from tests.unit.training.checkpoint.checking import newest_good, verify
from training.checkpoint.manifest import MANIFEST, Checkpoint, folders
from training.checkpoint.storage import tidy_up, unfinished_folder
from training.checkpoint.writer_process import perform

RANKS = ("rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors")


def content(step: int, mark: str, files: list[dict[str, object]]) -> dict[str, object]:
    empty = {name: {} for name in ("optimizer_steps", "parameters", "states", "fingerprints", "config", "stream")}
    return {"step": step, "world_size": 2, "progress": {"mark": mark}, **empty, "files": files}


def save(root: Path, step: int, mark: str, delete: tuple[int, ...] = (), attempt: str = "first") -> None:
    """What the writers of a run do together to save a step; `mark` tells it from another checkpoint of the same step."""
    folder = unfinished_folder(root, step, attempt)
    chunks = [f"{mark} {step} {part}".encode() * 50 for part in range(2)]
    files = [
        perform({"do": "write", "path": folder / name, "read_back": True}, iter([name.encode(), *chunks]))
        for name in RANKS
    ]
    described = content(step, mark, files)
    left = perform(
        {"do": "commit", "folder": folder, "final": root / str(step), "content": described, "superfluous": delete},
        iter(()),
    )
    assert left == []


def give_up(root: Path, step: int, mark: str, delete: tuple[int, ...] = (), attempt: str = "first") -> None:
    """A save of which one rank's file was written when the other's failed."""
    folder = unfinished_folder(root, step, attempt)
    perform({"do": "write", "path": folder / RANKS[0], "read_back": False}, iter([mark.encode()]))
    perform({"do": "discard", "folder": folder}, iter(()))


def marks(root: Path) -> dict[int, str]:
    """The checkpoints under their names, every one verified: nothing damaged ever has a name."""
    return {found.step: found.manifest["progress"]["mark"] for found in map(verified, folders(root))}


def verified(folder: Path) -> Checkpoint:
    found = verify(folder)
    assert found.step == int(folder.name)
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *RANKS}
    return found


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


class Case:
    """What is there before a save of step `step`, the action that is disturbed, and what must be there afterwards."""

    def __init__(self, action: Callable[..., None], step: int, *, earlier_kills: tuple[int, ...] = ()) -> None:
        self.action, self.step, self.earlier_kills = action, step, earlier_kills
        self.delete = (1,)

    def prepare(self, root: Path) -> dict[int, str]:
        """Put there what was there before; return the marks by step."""
        root.mkdir()
        for step in (1, 2, 3):
            save(root, step, "old")
        for number, point in enumerate(self.earlier_kills):
            assert killed_at(point, lambda number=number: save(root, self.step, "killed", attempt=f"e{number}"))
        return {1: "old", 2: "old", 3: "old"}

    def act(self, root: Path) -> None:
        self.action(root, self.step, "new", self.delete)

    def check(self, root: Path, before: dict[int, str], *, is_done: bool) -> None:
        """Check what a start of the run finds."""
        found = marks(root)
        newest, damages = newest_good(root)
        assert newest is not None
        assert damages == []
        is_new = found.get(self.step) == "new"
        assert is_new or not is_done or self.action is give_up
        assert newest.step == (max(self.step, 3) if is_new else max(before))
        expected = before | ({self.step: "new"} if is_new else {})
        assert {step: mark for step, mark in found.items() if step not in self.delete} == {
            step: mark for step, mark in expected.items() if step not in self.delete
        }
        # Nothing is deleted for a checkpoint that is not there yet.
        assert is_new or set(self.delete) <= found.keys()
        assert names(root) == {str(step) for step in found}, "nothing else is left"

    def recover(self, root: Path, before: dict[int, str], *, is_done: bool) -> None:
        """Check what a start finds, and that it can go on."""
        tidy_up(root)
        self.check(root, before, is_done=is_done)
        save(root, self.step + 1, "next", (1, 2), attempt="later")
        assert marks(root)[self.step + 1] == "next"
        assert not marks(root).keys() & {1, 2}
        assert names(root) == {str(step) for step in marks(root)}


CASES = {
    "a new step": Case(save, 4),
    "a step that is there already": Case(save, 3),
    "after kills": Case(save, 4, earlier_kills=(7, 14)),
    "a save that failed": Case(give_up, 4),
}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing of what it has written; what a power cut loses is the model's to say."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def every_point(tmp_path: Path, case: Case) -> Iterator[tuple[int, Path, dict[int, str], bool]]:
    """For every point of a save, a folder in which a child was killed there; at last one in which it was not."""
    point, is_killed = 0, True
    while is_killed:
        point += 1
        root = tmp_path / str(point)
        before = case.prepare(root)
        is_killed = killed_at(point, lambda root=root: case.act(root))
        yield point, root, before, not is_killed


def test_killed_between_any_two_calls(tmp_path: Path, case: Case) -> None:
    kills = 0
    for _, root, before, is_done in every_point(tmp_path, case):
        kills += not is_done
        assert marks(root).keys() <= before.keys() | {case.step}, "before anything is tidied up"
        case.recover(root, before, is_done=is_done)
    assert kills > (20 if case.action is save else 5)


def test_killed_again_while_tidying_up(tmp_path: Path, case: Case) -> None:
    """The start after the kill is killed at every point, too, and then again at every later one."""
    kills = 0
    for _, root, before, is_done in every_point(tmp_path, case):
        point = 1
        while killed_at(point, lambda root=root: tidy_up(root)):
            assert marks(root).keys() <= before.keys() | {case.step}
            point, kills = point + 1, kills + 1
        case.recover(root, before, is_done=is_done)
    assert kills > 20


def test_power_is_cut_at_any_call(tmp_path: Path, case: Case) -> None:
    """Also at any call of the start that follows a kill: what was not synchronised is gone, in several combinations."""
    source = random.Random(7)
    states: dict[str, tuple[Content, bool]] = {}
    point, is_done = 0, False
    while not is_done:
        point += 1
        root = tmp_path / f"disk-{point}"
        before = case.prepare(root)
        disk = Disk(root, ends_at=point)
        with contextlib.suppress(Ended), intercepted(disk):
            case.act(root)
            is_done = True
        disk.ends_at = None

        def cut(*call: Any, disk: Disk = disk, is_done: bool = is_done) -> Any:
            for _ in range(4):
                state = disk.after_power_loss(source)
                states[repr(state)] = state, is_done
            return disk(*call)

        with intercepted(cut):
            tidy_up(root)
            # One call more, so that what comes after the last is seen, too.
            os.close(os.open(root, os.O_RDONLY))
    for number, (state, is_done) in enumerate(states.values()):
        root = tmp_path / str(number)
        write_content(root, state)
        assert marks(root).keys() <= before.keys() | {case.step}, "before anything is tidied up"
        case.recover(root, before, is_done=is_done)
    assert len(states) > (20 if case.action is save else 3)


def test_the_model_of_a_power_cut_loses_what_was_not_synchronised(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    disk, source = Disk(root), random.Random(1)

    def survivors() -> list[dict[str, object]]:
        return [disk.after_power_loss(source) for _ in range(60)]  # type: ignore[misc]

    with intercepted(disk):
        descriptor = os.open(root / "a", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"1234")
    assert {} in survivors()
    assert {"a": b"1234"} in survivors()
    assert {"a": b""} in survivors()
    with intercepted(disk):
        os.fsync(descriptor)
        os.write(descriptor, b"56")
        os.close(descriptor)
        folder = os.open(root, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    assert {state["a"] for state in survivors()} == {b"1234", b"12345", b"123456"}  # type: ignore[arg-type]
    with intercepted(disk):
        (root / "a").rename(root / "b")
    assert {name for state in survivors() for name in state} == {"a", "b"}
    assert all(len(state) == 1 for state in survivors())
