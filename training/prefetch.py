"""The stream's rows as steps, the next one made while the present one is trained on."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import torch

from data_pipeline.stream.token_stream import Row, TokenStream
from data_pipeline.stream.workers import PrefetchedStream
from training.batches import StepBatch, take_step
from training.config import Config
from training.model.sequence_parallel import shard_step


class StepBatches:
    """This rank's steps in order, without an end.

    A thread takes rows, stacks them and, for a GPU, puts them into page-locked memory. What is ready and was not taken
    leaves no trace in the state, which is that after the last step handed out.
    """

    def __init__(self, stream: TokenStream | PrefetchedStream, config: Config, *, rank: int = 0) -> None:
        """Read from `stream`, which nobody else may use from now on; `rank` says which part of shared rows is wanted."""
        self._stream = stream
        self._num_parts = config.train.sequence_parallel
        self._part = rank % self._num_parts
        self._num_rows = len(stream.lanes)
        self._micro_batch_rows = config.train.micro_batch_rows
        self._state, self._counts = stream.state_dict(), stream.counts()
        self._ready: queue.Queue[_Ready] = queue.Queue(maxsize=1)
        self._thread: threading.Thread | None = None
        self._is_closed = threading.Event()
        self.waited_seconds = 0.0
        """How long the last step was waited for."""

    def start(self) -> None:
        """Begin to make steps, unless that has begun."""
        if self._thread is None:
            self._is_closed.clear()
            self._thread = threading.Thread(target=self._make, name="step batches", daemon=True)
            self._thread.start()

    def take(self) -> StepBatch:
        """The next step.

        Raises:
            PipelineError: the stream's.
        """
        self.start()
        began = time.perf_counter()
        ready = self._ready.get()
        self.waited_seconds = time.perf_counter() - began
        if ready.error is not None:
            self.close()
            raise ready.error
        assert ready.batch is not None
        self._state, self._counts = ready.state, ready.counts
        return ready.batch

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is after the last step handed out."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; what is ready is thrown away."""
        self.close()
        self._stream.load_state_dict(state)
        self._state, self._counts = self._stream.state_dict(), self._stream.counts()

    def counts(self) -> dict[str, dict[str, int]]:
        """What was left out or cut so far, by source."""
        return self._counts

    def close(self) -> None:
        """End the thread; the stream stays open, and is ahead of `state_dict`."""
        if self._thread is None:
            return
        self._is_closed.set()
        while self._thread.is_alive():
            # It may wait for a place in the queue.
            drain(self._ready)
            self._thread.join(timeout=0.01)
        drain(self._ready)
        self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make(self) -> None:
        rows: Iterator[Row] = iter(self._stream)
        is_pinned = torch.cuda.is_available()
        while not self._is_closed.is_set():
            try:
                batch = take_step(rows, num_rows=self._num_rows, micro_batch_rows=self._micro_batch_rows)
                if self._num_parts > 1:
                    batch = shard_step(batch, self._part, self._num_parts)
                batch = batch.pinned() if is_pinned else batch
                self._ready.put(_Ready(batch, self._stream.state_dict(), self._stream.counts()))
            except BaseException as error:
                self._ready.put(_Ready(None, {}, {}, error))
                return


class _Ready:
    """A step and the stream's state after it, or why there is none."""

    def __init__(
        self,
        batch: StepBatch | None,
        state: dict[str, Any],
        counts: dict[str, dict[str, int]],
        error: BaseException | None = None,
    ) -> None:
        self.batch, self.state, self.counts, self.error = batch, state, counts, error


def drain(waiting: queue.Queue[Any]) -> None:
    """Throw away what is in a queue."""
    try:
        while True:
            waiting.get_nowait()
    except queue.Empty:
        return
