from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from data_pipeline.sources import parallel
from data_pipeline.sources.errors import DataError
from data_pipeline.sources.parallel import Advance, run_jobs


def double(job: int, advance: Advance) -> tuple[int, int]:
    advance(job)
    return 2 * job, os.getpid()


def die(job: int, advance: Advance) -> None:
    os._exit(3)


def fail_or_write(job: Path | None, advance: Advance) -> None:
    if job is None:
        raise DataError("no file")
    time.sleep(0.1)
    job.touch()


@pytest.mark.parametrize("workers", [0, 2])
def test_all_jobs_are_done_and_told(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "WORTH_PROCESSES", 0)
    monkeypatch.setattr(parallel, "_SECONDS_BETWEEN_REPORTS", 0.0)
    told: list[tuple[str, int, int]] = []
    done = run_jobs(
        double, [1, 2, 3], workers=workers, what="w", size=6, progress=lambda *told_now: told.append(told_now)
    )
    results = dict(done)
    assert {number: result for number, (result, _) in results.items()} == {0: 2, 1: 4, 2: 6}
    assert (os.getpid() in {process for _, process in results.values()}) == (workers == 0)
    assert told[-1] == ("w", 6, 6)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_little_work_starts_no_process() -> None:
    done = run_jobs(double, [1, 2], workers=2, what="w", size=parallel.WORTH_PROCESSES - 1, progress=None)
    assert [result for _, result in done] == [(2, os.getpid()), (4, os.getpid())]


def test_a_dead_worker_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "WORTH_PROCESSES", 0)
    with pytest.raises(
        DataError, match=r"one of those that read the files, ended with code 3; .*fewer workers.*is kept"
    ):
        list(run_jobs(die, [1, 2, 3], workers=2, what="w", size=6, progress=None))


def test_an_error_comes_through_and_what_has_begun_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "WORTH_PROCESSES", 0)
    with pytest.raises(DataError, match="no file"):
        list(run_jobs(fail_or_write, [tmp_path / "begun", None], workers=2, what="w", size=1, progress=None))
    assert (tmp_path / "begun").exists()


def test_no_job_no_report() -> None:
    assert (
        list(run_jobs(double, [], workers=2, what="w", size=0, progress=lambda *told: pytest.fail("nothing to tell")))
        == []
    )
