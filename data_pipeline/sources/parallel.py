"""Work on many files, here or in worker processes, with progress in bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from data_pipeline.processes import Advance, run_in_processes

__all__ = ["WORTH_PROCESSES", "Advance", "Progress", "run_jobs"]

Progress = Callable[[str, int, int], None]
"""(what is done, bytes done, bytes to do)."""
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
        yield from run_in_processes(
            _begin, (function,), jobs, workers=workers, doing="read the files", advance=report.advance
        )
    else:
        for number, job in enumerate(jobs):
            yield number, function(job, report.advance)
    report.finish()


class _Report:
    def __init__(self, what: str, total: int, progress: Progress | None) -> None:
        self._what, self._total, self._progress = what, total, progress
        self._done, self._next = 0, 0.0

    def advance(self, size: int) -> None:
        self._done += size
        if self._progress is not None and (now := time.monotonic()) >= self._next:
            self._next = now + _SECONDS_BETWEEN_REPORTS
            # Some files are read more than once.
            self._progress(self._what, min(self._done, self._total), self._total)

    def finish(self) -> None:
        if self._progress is not None:
            self._progress(self._what, self._total, self._total)


def _begin(advance: Advance, function: Callable[[Job, Advance], Result]) -> Callable[[Job], Result]:
    return lambda job: function(job, advance)
