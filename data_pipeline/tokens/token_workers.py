"""Run jobs in worker processes that end with their parent, and whose death is an error."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from data_pipeline.sources.errors import DataError

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_in_processes(
    run: Callable[[Job], Result],
    jobs: Iterable[Job],
    workers: int,
    begin: Callable[..., None],
    arguments: tuple[Any, ...],
) -> Iterator[Result]:
    """Yield the result of every job as it comes; `begin(*arguments)` is called once in each of the `workers` processes.

    Raises:
        DataError: a process was killed.
        Exception: what a job raised, with the worker's traceback as its cause.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(begin, arguments)) as pool:
        try:
            for future in as_completed([pool.submit(run, job) for job in jobs]):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process that encoded was killed (out of memory?), or could not start; start again, perhaps with "
                "fewer workers: what was finished is kept"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin(begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    # Signals to the whole job are for the parent to heed.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    begin(*arguments)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
