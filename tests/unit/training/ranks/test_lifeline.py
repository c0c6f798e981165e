"""A rank on its own: before it is connected, or when rank 0 has gone. Whole processes are in tests/integration/test_dying.py."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from training.ranks import distributed
from training.ranks import lifeline as module
from training.ranks.lifeline import Lifeline
from training.ranks.verdict import Verdict
from training.record.run_record import RunRecord
from training.watch.display import Display
from training.world import World

WORLD = World(rank=0, size=4, local_rank=0, local_size=4, master_addr="x", master_port=1, launcher="none")
DEATH = Verdict(kind="death", rank=0, text="rank 0 died", error="rank 0 died", exit_code=1)


@pytest.fixture
def lifeline(tmp_path: Path) -> Iterator[Callable[[int], Lifeline]]:
    made: list[Lifeline] = []

    def make(rank: int) -> Lifeline:
        world = dataclasses.replace(WORLD, rank=rank)
        record = RunRecord(tmp_path, world)
        made.append(Lifeline(world, record, Display(label="run", steps=5, is_shown=rank == 0)))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def connected(lifeline: Callable[[int], Lifeline], monkeypatch: pytest.MonkeyPatch) -> Callable[[], Lifeline]:
    """Rank 0, alone in the world, and connected to itself."""
    monkeypatch.setattr(distributed, "from_rank_0", lambda compute, world: compute())
    monkeypatch.setattr(distributed, "raise_on_all_ranks", lambda problem, kind, world: None)

    def make() -> Lifeline:
        found = lifeline(0)
        found._world = dataclasses.replace(WORLD, size=1)
        found.connect(hang_timeout=600.0)
        return found

    return make


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("lifeline")]


def test_after_a_goodbye_the_end_of_rank_0_is_no_death(
    connected: Callable[[], Lifeline], exits: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    rank = connected()
    assert len(threads()) == 2
    rank.at("step 1: data")
    rank.close()
    # Not even when this process takes its time to end.
    for thread in threads():
        thread.join(30)
    assert threads() == []
    assert exits == []
    assert capsys.readouterr().err == ""


def test_an_error_of_the_only_rank(connected: Callable[[], Lifeline], capsys: pytest.CaptureFixture[str]) -> None:
    rank = connected()
    rank.at("step 1: data")
    with pytest.raises(ValueError, match="boom") as caught:
        raise ValueError("boom")
    assert rank.fail(caught.value, is_user_error=False) == 1
    said = capsys.readouterr().err
    assert said.count("Traceback") == 1
    assert said.splitlines()[-1] == "ValueError: boom"


class Left(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes that this process would have ended with."""
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise Left

    monkeypatch.setattr(os, "_exit", leave)
    return codes


def test_a_user_error_before_the_ranks_are_connected_is_said_once(
    lifeline: Callable[[int], Lifeline], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    codes = [lifeline(rank).fail(ValueError("lower optim.lr"), is_user_error=True) for rank in (1, 0)]
    assert codes == [2, 2]
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "\nlower optim.lr\n\n")
    assert not (tmp_path / "run.json").exists()


def test_in_training_a_user_error_is_a_failure(
    lifeline: Callable[[int], Lifeline], capsys: pytest.CaptureFixture[str]
) -> None:
    rank = lifeline(0)
    rank.at("step 1: data")
    assert rank.fail(ValueError("lower optim.lr"), is_user_error=True) == 1
    assert capsys.readouterr().err == "\nlower optim.lr\n\n"


@pytest.mark.parametrize("number", [0, 2])
def test_another_error_has_its_traceback_on_every_rank_and_in_its_log(
    lifeline: Callable[[int], Lifeline],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    with pytest.raises(KeyError) as caught:
        {}["model.norm"]
    with caplog.at_level(logging.ERROR, "palimpsest"):
        assert lifeline(number).fail(caught.value, is_user_error=False) == 1
    said = capsys.readouterr().err
    assert said.count("Traceback") == 1
    assert said.splitlines()[-1] == "KeyError: 'model.norm'"
    assert 'failed in "start-up"' in caplog.text
    assert "Traceback" in caplog.text


def test_a_stop_before_the_ranks_are_connected(
    lifeline: Callable[[int], Lifeline], capsys: pytest.CaptureFixture[str], exits: list[int]
) -> None:
    for number in (1, 0):
        with pytest.raises(Left):
            lifeline(number).stop("SIGTERM")
    assert exits == [85, 85]
    why = "stopped by SIGTERM during start-up, nothing was lost; start it again to continue\n"
    assert capsys.readouterr().out == f"rank 1: {why}run: {why}"


def test_the_record_is_closed_by_who_speaks(
    lifeline: Callable[[int], Lifeline], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Rank 0 with what it knows, another rank with what is on storage."""
    (tmp_path / "run.json").write_text(json.dumps({"status": "running", "step": 7, "config": {}}))
    other = lifeline(3)
    other._speak(DEATH)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running", "of another start"
    other._record.content.update(status="running")
    other._speak(DEATH)
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["finished"]
    del found["finished"]
    assert found == {"status": "failed", "step": 7, "config": {}, "error": "rank 0 died"}
    first = lifeline(0)
    first._record.content.update(status="running", step=9)
    first._speak(Verdict(kind="stop", rank=2, text="stopped by SIGUSR1", error="SIGUSR1", exit_code=85))
    found = json.loads((tmp_path / "run.json").read_text())
    assert (found["status"], found["step"], found["stopped_by"]) == ("preempted", 9, "SIGUSR1")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("run: stopped by SIGUSR1\n", "rank 0 died\n" * 2)


def test_storage_that_has_gone_does_not_keep_the_cause(
    lifeline: Callable[[int], Lifeline], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = threading.Event()
    monkeypatch.setattr(module, "WRITE_SECONDS", 0.1)
    monkeypatch.setattr(module, "write_json", lambda path, content: gone.wait(60))
    other = lifeline(1)
    other._record.content.update(status="running")
    other._speak(DEATH)
    assert capsys.readouterr().err == "rank 0 died\n"
    gone.set()


def test_one_of_those_that_are_left_speaks(lifeline: Callable[[int], Lifeline], tmp_path: Path) -> None:
    left = [lifeline(rank) for rank in (1, 2, 3)]
    for each in left:
        each._token = "abc"
    assert [each._is_first_to_speak() for each in left] == [True, False, False]
    # A new start has a new one; what can't be settled is said by all.
    left[1]._token = "def"
    assert left[1]._is_first_to_speak()
    (tmp_path / ".ended-def").unlink()
    tmp_path.rename(tmp_path.with_name("gone"))
    assert left[1]._is_first_to_speak()
    assert left[2]._record.dir == tmp_path


def test_whatever_keeps_the_process_does_not_do_so_for_long(
    lifeline: Callable[[int], Lifeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    left = threading.Event()

    def leave(code: int) -> None:
        codes.append(code)
        left.set()

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(module, "LEAVE_SECONDS", 0.05)
    rank = lifeline(0)
    rank._leave_in_time(85)
    rank._leave_in_time(1)
    assert left.wait(30)
    assert codes == [85]
