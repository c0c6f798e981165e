from __future__ import annotations

import os
import queue
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from training import stopping
from training.stopping import STOP_SIGNALS, StopRequest, time_to_stop


@pytest.fixture(autouse=True)
def same_handlers_afterwards() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


def in_training(run_dir: Path) -> StopRequest:
    """A request that waits for boundaries."""
    stop = StopRequest(run_dir)
    stop.listen(lambda reason: None)
    stop.hold()
    # The thread may be about to look once more.
    for thread in threading.enumerate():
        if thread.name == "stop requests":
            thread.join()
    return stop


class Left:
    """What `leave` was called with, as if the process had ended."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop
        self.reasons: queue.SimpleQueue[str] = queue.SimpleQueue()

    def __call__(self, reason: str) -> None:
        self.stop._leave = None
        self.reasons.put(reason)

    def reason(self) -> str:
        return self.reasons.get(timeout=30)


def test_nobody_asked(tmp_path: Path) -> None:
    stop = in_training(tmp_path)
    assert not stop.is_local()
    assert stop.reason is None


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_asks_instead_of_killing(tmp_path: Path, number: signal.Signals) -> None:
    stop = in_training(tmp_path)
    os.kill(os.getpid(), number)
    assert stop.is_local()
    assert stop.reason == number.name


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_before_training_a_signal_leaves_at_once_also_out_of_a_system_call(
    tmp_path: Path, number: signal.Signals
) -> None:
    stop = StopRequest(tmp_path)
    left = Left(stop)
    stop.listen(left)
    end, other = os.pipe()
    main = threading.get_ident()
    seen: list[str] = []

    def ask() -> None:
        # To the thread that is in the system call, so that Python's own handler runs after it only.
        signal.pthread_kill(main, number)
        seen.append(left.reason())
        os.write(other, b"x")

    thread = threading.Thread(target=ask)
    thread.start()
    assert os.read(end, 1) == b"x"
    thread.join()
    os.close(end)
    os.close(other)
    assert seen == [number.name]


def test_before_training_a_second_ctrl_c_changes_nothing(tmp_path: Path) -> None:
    stop = StopRequest(tmp_path)
    left = threading.Event()
    # Leaving takes its time.
    stop.listen(lambda reason: left.wait(30))
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.reason == "SIGINT"
    stop.hold()
    left.set()


def test_before_training_the_preempt_file_is_heeded_and_removed(tmp_path: Path) -> None:
    stop = StopRequest(tmp_path)
    left = Left(stop)
    (tmp_path / "PREEMPT").touch()
    stop.listen(left)
    assert left.reason() == "PREEMPT file"
    assert not (tmp_path / "PREEMPT").exists()


def test_before_training_the_time_can_be_up(tmp_path: Path) -> None:
    stop = StopRequest(tmp_path, stop_at=time.time() + 0.2)
    left = Left(stop)
    stop.listen(left)
    assert left.reason() == "wall time"


def test_when_training_has_begun_nobody_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "LOOK_SECONDS", 0.01)
    stop = StopRequest(tmp_path)
    left = Left(stop)
    before = threading.active_count()
    stop.listen(left)
    stop.hold()
    deadline = time.monotonic() + 30
    while threading.active_count() > before:
        assert time.monotonic() < deadline, "the thread that looks ends"
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.reason == "SIGTERM"
    assert left.reasons.empty()


def test_a_second_ctrl_c_means_now(tmp_path: Path) -> None:
    stop = in_training(tmp_path)
    os.kill(os.getpid(), signal.SIGINT)
    # Launchers follow Ctrl-C up with SIGTERM: the first reason stays, and it is no second Ctrl-C.
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.reason == "SIGINT"
    with pytest.raises(KeyboardInterrupt, match="a second Ctrl-C: what came after the last checkpoint is not saved"):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_schedulers_may_repeat_themselves(tmp_path: Path, number: signal.Signals) -> None:
    stop = in_training(tmp_path)
    for _ in range(3):
        os.kill(os.getpid(), number)
    assert stop.reason == number.name


def test_the_signals_of_slurm_and_the_terminal_are_among_them() -> None:
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1} == set(STOP_SIGNALS)


def test_the_preempt_file_asks(tmp_path: Path) -> None:
    stop = StopRequest(tmp_path)
    (tmp_path / "PREEMPT").touch()
    assert stop.is_local()
    assert stop.reason == "PREEMPT file"
    (tmp_path / "PREEMPT").unlink()
    assert stop.is_local(), "a request is not taken back"


def test_a_signal_is_the_reason_even_beside_the_file(tmp_path: Path) -> None:
    stop = in_training(tmp_path)
    (tmp_path / "PREEMPT").touch()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.is_local()
    assert stop.reason == "SIGUSR1"


def test_the_file_that_stopped_the_last_start_does_not_stop_this_one(tmp_path: Path) -> None:
    stop = StopRequest(tmp_path)
    (tmp_path / "PREEMPT").touch()
    stop.clear_file()
    assert not (tmp_path / "PREEMPT").exists()
    assert not stop.is_local()
    stop.clear_file()


def test_only_who_watches_sees_the_file(tmp_path: Path) -> None:
    (tmp_path / "PREEMPT").touch()
    assert StopRequest(tmp_path).is_local()
    assert not StopRequest(tmp_path, watches_file=False).is_local()


def test_a_file_from_before_the_first_start_asks_for_nothing(tmp_path: Path) -> None:
    file = tmp_path / "PREEMPT"
    file.touch()
    os.utime(file, (1_800_000_000, 1_800_000_000))
    stop = StopRequest(tmp_path, heeds_earlier=False)
    assert not stop.is_local()
    assert file.exists(), "it may be meant for another start of this run, until that is known not to be there"
    said = stop.remove_stale()
    assert re.fullmatch(r"PREEMPT from 2027-01-1\S \S+, before this start: removed; touch it again to stop", said or "")
    assert not file.exists()
    assert not stop.is_local()
    file.touch()
    assert stop.remove_stale() is None
    assert stop.is_local()


def test_a_file_that_is_touched_again_asks(tmp_path: Path) -> None:
    file = tmp_path / "PREEMPT"
    file.touch()
    os.utime(file, (1_800_000_000, 1_800_000_000))
    stop = StopRequest(tmp_path, heeds_earlier=False)
    file.touch()
    assert stop.remove_stale() is None
    assert file.exists()
    assert stop.is_local()


def test_a_file_from_before_a_restart_asks(tmp_path: Path) -> None:
    (tmp_path / "PREEMPT").touch()
    stop = StopRequest(tmp_path, heeds_earlier=True)
    assert stop.remove_stale() is None
    assert stop.is_local()


def test_a_stale_file_that_cannot_be_removed(tmp_path: Path) -> None:
    (tmp_path / "PREEMPT").mkdir()
    stop = StopRequest(tmp_path, heeds_earlier=False)
    said = stop.remove_stale()
    assert said is not None
    assert said.endswith("before this start: ignored, it can't be removed (Is a directory); touch it to stop")
    assert not stop.is_local()


def test_without_a_file_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert StopRequest(tmp_path, heeds_earlier=False).remove_stale() is None
    (tmp_path / "PREEMPT").touch()
    assert StopRequest(tmp_path, heeds_earlier=False, watches_file=False).remove_stale() is None


def test_the_time_is_up(tmp_path: Path) -> None:
    stop = StopRequest(tmp_path, stop_at=time.time() + 1000)
    assert not stop.is_local()
    stop = StopRequest(tmp_path, stop_at=time.time() - 1)
    assert stop.is_local()
    assert stop.reason == "wall time"


@pytest.mark.parametrize(
    ("wall_time", "job_end", "stop_at"),
    [
        (None, None, None),
        ("2h", None, 10_000 + 7200 - 300),
        (None, "20000", 20_000 - 300),
        ("2h", "20000", 10_000 + 7200 - 300), ("24h", "20000", 20_000 - 300),
        # Not a time; that of another job, or one that was extended.
        (None, "", None), (None, "soon", None), (None, "-5", None), (None, "0", None), (None, "9999", None),
    ],
)  # fmt: skip
def test_the_end_of_the_job_less_the_time_to_save(
    wall_time: str | None, job_end: str | None, stop_at: float | None
) -> None:
    environment = {} if job_end is None else {"SLURM_JOB_END_TIME": job_end}
    assert time_to_stop(10_000.0, environment, wall_time=wall_time, stop_before="5min") == stop_at
