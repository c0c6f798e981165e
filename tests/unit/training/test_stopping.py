from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from training.stopping import STOP_SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def same_handlers_afterwards() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def alone(flag: bool) -> bool:
    """The collective or of a world of one."""
    return flag


def test_nobody_asked(tmp_path: Path) -> None:
    stop = StopRequest(tmp_path)
    stop.listen()
    assert not stop.is_local()
    assert stop.reason is None
    assert not stop.any_rank(alone)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_asks_instead_of_killing(tmp_path: Path, number: signal.Signals) -> None:
    stop = StopRequest(tmp_path)
    stop.listen()
    os.kill(os.getpid(), number)
    assert stop.is_local()
    assert stop.reason == number.name
    assert stop.any_rank(alone)


def test_a_second_ctrl_c_means_now(tmp_path: Path) -> None:
    stop = StopRequest(tmp_path)
    stop.listen()
    os.kill(os.getpid(), signal.SIGINT)
    # Launchers follow Ctrl-C up with SIGTERM: the first reason stays, and it is no second Ctrl-C.
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.reason == "SIGINT"
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_schedulers_may_repeat_themselves(tmp_path: Path, number: signal.Signals) -> None:
    stop = StopRequest(tmp_path)
    stop.listen()
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
    stop = StopRequest(tmp_path)
    stop.listen()
    (tmp_path / "PREEMPT").touch()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.is_local()
    assert stop.reason == "SIGUSR1"


def test_another_ranks_request_is_this_ranks_too(tmp_path: Path) -> None:
    stop = StopRequest(tmp_path)
    given: list[bool] = []

    def two_ranks(flag: bool) -> bool:
        given.append(flag)
        return flag or True

    assert stop.any_rank(two_ranks)
    assert given == [False]
    assert not stop.is_local()


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
