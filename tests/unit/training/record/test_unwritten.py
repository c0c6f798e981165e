from __future__ import annotations

import errno

import pytest

from training.record import unwritten as module
from training.record.unwritten import Unwritten


class Clock:
    """Time that passes when somebody sleeps, or when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Change:
    """Something to be written, that storage refuses with `error` as long as there is one."""

    def __init__(self, clock: Clock, name: str, *, takes: float = 0.0) -> None:
        self.clock, self.name, self.takes = clock, name, takes
        self.error: int | None = None
        self.attempts = 0

    def __str__(self) -> str:
        return self.name

    def flush(self) -> None:
        self.attempts += 1
        self.clock.now += self.takes
        if self.error is not None:
            raise OSError(self.error, {errno.ENOSPC: "No space left on device", errno.EROFS: "Read-only"}[self.error])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def unwritten(told: list[str]) -> Unwritten:
    return Unwritten(told.append)


def test_what_storage_takes_is_not_talked_about(clock: Clock, unwritten: Unwritten, told: list[str]) -> None:
    change = Change(clock, "3 lines")
    unwritten.write(change)
    unwritten.write(change)
    assert (change.attempts, told, unwritten.retry(), unwritten.settle()) == (2, [], None, None)
    assert change.attempts == 2, "nothing waits"
    assert clock.now == 1000


def test_trouble_is_told_once_of_a_kind_and_when_it_is_over(
    clock: Clock, unwritten: Unwritten, told: list[str]
) -> None:
    lines, scores = Change(clock, "3 lines"), Change(clock, "evals/8.json")
    lines.error = scores.error = errno.ENOSPC
    unwritten.write(lines)
    unwritten.write(scores)
    assert told == [
        "WARNING: storage does not take 3 lines: No space left on device. Training goes on; what is missing is tried again, and "
        "lost if it still waits when the run ends"
    ]
    clock.sleep(module.PAUSE_SECONDS)
    unwritten.write(lines)
    assert len(told) == 1
    scores.error = errno.EROFS
    clock.sleep(module.PAUSE_SECONDS)
    unwritten.write(lines)
    assert told[1:] == [
        "WARNING: storage does not take evals/8.json: Read-only. Training goes on; what is missing is tried again, and "
        "lost if it still waits when the run ends"
    ]
    lines.error = scores.error = None
    clock.sleep(module.PAUSE_SECONDS)
    unwritten.write(lines)
    assert told[2:] == ["storage takes what is written again; written late: 3 lines, evals/8.json"]
    assert unwritten.retry() is None
    # New trouble of the same kind is new.
    lines.error = errno.ENOSPC
    unwritten.write(lines)
    assert len(told) == 4


def test_storage_in_trouble_is_left_alone_for_a_while(clock: Clock, unwritten: Unwritten) -> None:
    lines, scores = Change(clock, "lines"), Change(clock, "scores")
    lines.error = errno.ENOSPC
    unwritten.write(lines)
    unwritten.write(scores)
    unwritten.write(lines)
    assert (lines.attempts, scores.attempts) == (1, 0), "what follows waits, too"
    clock.sleep(module.PAUSE_SECONDS)
    unwritten.write(lines)
    assert (lines.attempts, scores.attempts) == (2, 1)
    assert unwritten.retry() == "lines (No space left on device)", "asked for now, it is tried now"
    assert (lines.attempts, scores.attempts) == (3, 1)


def test_storage_that_says_no_slowly_is_asked_less_often(clock: Clock, unwritten: Unwritten) -> None:
    slow = Change(clock, "lines", takes=60)
    slow.error = errno.ENOSPC
    unwritten.write(slow)
    clock.sleep(599)
    unwritten.write(slow)
    assert slow.attempts == 1
    clock.sleep(1)
    unwritten.write(slow)
    assert slow.attempts == 2


def test_at_the_end_it_is_tried_several_times(clock: Clock, unwritten: Unwritten) -> None:
    lines, scores = Change(clock, "lines"), Change(clock, "scores")
    lines.error = scores.error = errno.ENOSPC
    unwritten.write(lines)
    unwritten.write(scores)
    assert unwritten.settle() == "lines, scores (No space left on device)"
    assert lines.attempts == 1 + len(module.LAST_PAUSES) + 1
    assert clock.now == 1000 + sum(module.LAST_PAUSES)
    lines.error = None
    assert unwritten.settle() == "scores (No space left on device)"
    scores.error = None
    assert unwritten.settle() is None
