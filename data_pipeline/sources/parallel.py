"""Work on many files, here or in worker processes, with progress in bytes."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from data_pipeline.sources.errors import DataError

Progress = Callable[[str, int, int], None]
"""(what is done, bytes done, bytes to do)."""
Advance = Callable[[int], None]
"""Tells of bytes that were read."""
Job = TypeVar("Job")
Result = TypeVar("Result")

WORTH_PROCESSES = 32 << 20
"""Bytes below which starting processes takes longer than the work."""
_SECONDS_BETWEEN_REPORTS = 0.2


def run_jobs(
    function: Callable[[Job, Advance], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    what: str,
    size: int,
    progress: Progress | None,
) -> Iterator[tuple[int, Result]]:
    """Yield (number of the job, its result) as jobs are done, in any order.

    Args:
        function: a function of a module, called with a job and what it tells of bytes that it has read.
        jobs: can be pickled, like the results.
        workers: processes; 0: this one does it all, as it does where there is too little to do.
        what: for `progress`.
        size: bytes that all jobs read.
        progress: told now and then.

    Raises:
        DataError: a worker process died.
        Exception: what a job raises; jobs that have begun are finished first.
    """
    if not jobs:
        return
    report = _Report(what, size, progress)
    if workers > 0 and len(jobs) > 1 and size >= WORTH_PROCESSES:
        yield from _in_processes(function, jobs, workers, report)
    else:
        for number, job in enumerate(jobs):
            yield number, function(job, report.advance)
    report.finish()


class _Report:
    def __init__(self, what: str, total: int, progress: Progress | None) -> None:
        self._what, self._total, self._progress = what, total, progress
        self._done, self._next = 0, 0.0

    def advance(self, size: int) -> None:
        self.reach(self._done + size)

    def reach(self, done: int) -> None:
        self._done = done
        if self._progress is not None and (now := time.monotonic()) >= self._next:
            self._next = now + _SECONDS_BETWEEN_REPORTS
            # Some files are read more than once.
            self._progress(self._what, min(done, self._total), self._total)

    def finish(self) -> None:
        if self._progress is not None:
            self._progress(self._what, self._total, self._total)


def _in_processes(
    function: Callable[[Job, Advance], Result], jobs: Sequence[Job], workers: int, report: _Report
) -> Iterator[tuple[int, Result]]:
    context = multiprocessing.get_context("spawn")
    read = context.Value("q", 0)
    with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_begin, initargs=(read,)) as pool:
        futures = {pool.submit(_run, function, job): number for number, job in enumerate(jobs)}
        waiting = set(futures)
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=_SECONDS_BETWEEN_REPORTS, return_when=FIRST_COMPLETED)
                report.reach(read.value)
                for future in done:
                    yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process that read the files died (out of memory, or for a reason it has printed); start again, perhaps "
                "with fewer workers: what was finished is kept"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_bytes_read: Any = None
"""In a worker process: the bytes read by all of them."""


def _begin(read: Any) -> None:
    global _bytes_read
    _bytes_read = read


def _count(size: int) -> None:
    with _bytes_read.get_lock():
        _bytes_read.value += size


def _run(function: Callable[[Job, Advance], Result], job: Job) -> Result:
    return function(job, _count)
