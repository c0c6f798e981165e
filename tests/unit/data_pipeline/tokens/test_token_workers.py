"""Worker processes: results, errors and deaths."""

from __future__ import annotations

import os
import signal

import pytest

from data_pipeline.sources.errors import DataError
from data_pipeline.tokens.token_workers import run_in_processes

_begun: list[int] = []


def begin(value: int) -> None:
    _begun.append(value)


def begin_badly(value: int) -> None:
    os._exit(3)


def add(job: int) -> int:
    return job + _begun[0]


def fail(job: int) -> int:
    raise DataError(f"job {job} cannot be done")


def die(job: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return job


def heed_no_signal(job: int) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    return job


def test_every_result_comes_once() -> None:
    assert sorted(run_in_processes(add, range(5), 2, begin, (10,))) == [10, 11, 12, 13, 14]


def test_errors_of_a_job_come_with_the_traceback_of_the_worker() -> None:
    with pytest.raises(DataError, match="job 7 cannot be done") as caught:
        list(run_in_processes(fail, [7], 1, begin, (0,)))
    assert "in fail" in str(caught.value.__cause__)


def test_a_killed_worker_is_an_error() -> None:
    for run, begins in ((die, begin), (add, begin_badly)):
        with pytest.raises(DataError, match=r"was killed \(out of memory\?\).*what was finished is kept"):
            list(run_in_processes(run, [1, 2], 1, begins, (0,)))


def test_signals_to_the_job_do_not_end_a_worker() -> None:
    assert list(run_in_processes(heed_no_signal, [1], 1, begin, (0,))) == [1]
