"""Rows ahead of the training step: worker processes read, tokenize and pack, and `next()` takes from memory.

The lanes of a rank are dealt to `data.workers` processes, each of which runs a TokenStream over its part. A lane's rows
do not depend on who else there is, so the rows and their order are those of a single TokenStream over all lanes.

A worker is a Python of its own that imports nothing but the pipeline (no torch, not the program that trains), so that it
is small and starts alike from a script, `python -m`, pytest and a prompt. It holds one end of a socket; when the other
one is closed, for whatever reason, it ends.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import platform
import queue
import signal
import subprocess
import threading
import traceback
import weakref
from collections.abc import Sequence
from multiprocessing import Pipe
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from data_pipeline.config import DataConfig
from data_pipeline.errors import PipelineError
from data_pipeline.processes import SECONDS_TO_DIE, start_python
from data_pipeline.stream.opening import OpenedData, Progress, open_data
from data_pipeline.stream.token_stream import Row, TokenStream
from data_pipeline.stream.worker_process import Crash, Job, Message, SentRow, widen

if TYPE_CHECKING:
    from data_pipeline.encoding.tokenizer import Tokenizer
    from data_pipeline.sources.source import Source

STEPS_AHEAD = 2
"""Optimizer steps whose rows are held ready, unless the caller says another number of rows."""

PATIENCE_SECONDS = 900.0
"""Longest wait for a row, after which its worker counts as stuck."""


class WorkerError(PipelineError):
    """A worker process has died, is stuck, or has met an error that is none of the user's; the message says which."""


def open_stream(
    config: DataConfig, *, num_lanes: int, lanes: range, seed: int, progress: Progress | None = None
) -> TokenStream | PrefetchedStream:
    """The rows of `lanes`: made by `config.workers` processes ahead of their use, or with 0 of them when asked for.

    `progress` is told about indexing and encoding; all else is as for TokenStream.
    """
    kind = PrefetchedStream if config.workers else TokenStream
    return kind(config, num_lanes=num_lanes, lanes=lanes, seed=seed, data=open_data(config, progress=progress))


class PrefetchedStream:
    """A TokenStream whose rows are made ahead by worker processes; the same rows, in the same order, with the same state.

    Its state is that after the last row handed out: rows that are ready and not taken leave no trace in it. Workers start
    with the first row or `iter()`; `close()`, the end of a `with` block and garbage collection end them.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        num_lanes: int,
        lanes: range,
        seed: int,
        data: OpenedData | None = None,
        workers: int | None = None,
        rows_ahead: int | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """Open the sources and the tokenizer, here first, so that workers find the index made.

        Args:
            config: what to read, and how to cut it.
            num_lanes: rows of the global batch, B.
            lanes: the contiguous range of lanes that this process owns.
            seed: decides the order of the documents.
            data: what open_data(config) has opened.
            workers: processes, instead of config.workers; no more than lanes are started.
            rows_ahead: rows that are held ready over all workers, at least one each; by default those of two steps.
            patience_seconds: longest wait for a row.

        Raises:
            ValueError: `workers` is below 1.
            PipelineError: as TokenStream.
        """
        workers = config.workers if workers is None else workers
        if workers < 1:
            raise ValueError(f"{workers} workers; open_stream takes 0 for a stream without")
        # Never iterated: it holds the fingerprint, and the state of every lane after its last row handed out.
        self._stream = TokenStream(config, num_lanes=num_lanes, lanes=lanes, seed=seed, data=data)
        self._shares = split(lanes, min(workers, len(lanes)))
        self._rows_ahead = max(1, (STEPS_AHEAD * len(lanes) if rows_ahead is None else rows_ahead) // len(self._shares))
        self._patience_seconds = patience_seconds
        self._state: dict[str, Any] | None = None
        self._failure: PipelineError | None = None
        self._workers: list[_Worker] = []
        # Knows the list and not the stream, or the stream would never be collected.
        self._end = weakref.finalize(self, _stop, self._workers)

    @property
    def config(self) -> DataConfig:
        """What is read, and how it is cut."""
        return self._stream.config

    @property
    def num_lanes(self) -> int:
        """Rows of the global batch."""
        return self._stream.num_lanes

    @property
    def seed(self) -> int:
        """What decides the order of the documents."""
        return self._stream.seed

    @property
    def lanes(self) -> range:
        """The lanes of this process."""
        return self._stream.lanes

    @property
    def data(self) -> OpenedData:
        """What is read, opened."""
        return self._stream.data

    @property
    def sources(self) -> Sequence[Source]:
        """The sources of documents."""
        return self._stream.sources

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return self._stream.tokenizer

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the rows, as TokenStream.fingerprint."""
        return self._stream.fingerprint

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers; none before they are started."""
        return [worker.pid for worker in self._workers]

    def __iter__(self) -> Self:
        """The stream itself, with its workers started."""
        self._start()
        return self

    def __next__(self) -> Row:
        """The next row, of the next lane in turn.

        Raises:
            WorkerError: the row's worker has died, is stuck, or has met an error of its own.
            PipelineError: what a TokenStream would raise here.
        """
        if self._failure is not None:
            raise self._failure
        self._start()
        lane = self._stream.next_lane
        worker = next(worker for worker in self._workers if lane in worker.lanes)
        try:
            row, lane_state = worker.take(self._patience_seconds)
        except PipelineError as error:
            self._failure = error
            raise
        assert row.lane == lane, f"a worker sent lane {row.lane} in the turn of lane {lane}"
        self._stream.load_lane_state(lane, lane_state)
        return widen(row)

    def state_dict(self) -> dict[str, Any]:
        """Where the lanes are after the last row handed out, as TokenStream.state_dict."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, as TokenStream.load_state_dict; rows made ahead are thrown away."""
        _stop(self._workers)
        self._failure = None
        self._stream.load_state_dict(state)
        self._state = state

    def counts(self) -> dict[str, dict[str, int]]:
        """What was left out or cut so far, by source, as TokenStream.counts."""
        return self._stream.counts()

    def close(self) -> None:
        """End the workers and close the sources. It may be called again, and at any time."""
        self._end()
        self._failure = self._failure or WorkerError("the stream of rows is closed; open another one")
        self._stream.close()

    def __enter__(self) -> Self:
        """The stream, closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the stream."""
        self.close()

    def _start(self) -> None:
        if self._workers or self._failure is not None:
            return
        config, num_lanes, seed = self._stream.config, self._stream.num_lanes, self._stream.seed
        for lanes in self._shares:
            self._workers.append(_Worker(Job(config, num_lanes, lanes, seed, self._state), self._rows_ahead))


class _Worker:
    """One worker process, and the thread that receives its rows."""

    def __init__(self, job: Job, rows_ahead: int) -> None:
        self.lanes = job.lanes
        self._owner = os.getpid()
        self._is_stopped = False
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        # The thread receives only where there is room, and a worker that is ahead waits in sending.
        self._room = threading.Semaphore(rows_ahead)
        self._connection, theirs = Pipe()
        self._process = start_python(
            f"from data_pipeline.stream.worker_process import main; main({theirs.fileno()})", theirs.fileno()
        )
        theirs.close()
        self._thread = threading.Thread(
            target=self._receive, args=(pickle.dumps(job),), name=f"rows of worker {self.pid}", daemon=True
        )
        self._thread.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def take(self, seconds: float) -> SentRow:
        """The worker's next row, waited for no longer than `seconds`."""
        try:
            message = self._messages.get(timeout=seconds)
        except queue.Empty:
            raise WorkerError(
                f"{self._name} has sent no row for {seconds:.0f} s, though it runs; its storage may hang (does `python -m "
                "data_pipeline verify` come to an end?), or the node is overloaded. Then start the run again"
            ) from None
        if isinstance(message, SentRow):
            self._room.release()
            return message
        raise self._error(message)

    def stop(self) -> None:
        """End the process and the thread."""
        if os.getpid() != self._owner:
            # A forked child has a copy of this object, and is not the one to end the process.
            return
        # It owns nothing that would have to be put away, and does not heed milder signals.
        self._is_stopped = True
        self._process.kill()
        self._room.release()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(SECONDS_TO_DIE)
        # Garbage is collected in any thread, this one too.
        if self._thread is not threading.current_thread():
            self._thread.join(SECONDS_TO_DIE)
        self._connection.close()

    @property
    def _name(self) -> str:
        lanes = f"lanes {self.lanes.start} to {self.lanes.stop - 1}"
        return f"the data worker with process id {self.pid} on {platform.node()} ({lanes})"

    def _receive(self, job: bytes) -> None:
        """Send the job, then fill the queue with messages; None is the end of the process."""
        try:
            self._connection.send_bytes(job)
            while self._room.acquire() and not self._is_stopped:
                self._messages.put(pickle.loads(self._connection.recv_bytes()))
        except (EOFError, OSError):
            self._messages.put(None)
        except Exception:
            self._messages.put(Crash(traceback.format_exc()))

    def _error(self, message: PipelineError | Crash | None) -> PipelineError:
        if isinstance(message, PipelineError):
            return message
        if isinstance(message, Crash):
            return WorkerError(f"{self._name} failed:\n{message.text}")
        code = self._process.wait()
        if code < 0:
            return WorkerError(
                f"{self._name} was killed by {signal.Signals(-code).name}; if nobody did that, the machine ran out of memory: "
                "give the job more, or lower data.workers. Then start the run again"
            )
        return WorkerError(f"{self._name} ended with code {code}; what it printed is in the output of this run")


def split(lanes: range, parts: int) -> list[range]:
    """Contiguous parts of `lanes`, in order, whose sizes differ by one at most."""
    bounds = [lanes.start + len(lanes) * part // parts for part in range(parts + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(bounds)]


def _stop(workers: list[_Worker]) -> None:
    """End all workers and forget them."""
    while workers:
        workers.pop().stop()
