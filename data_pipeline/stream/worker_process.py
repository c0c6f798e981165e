"""What a worker process does: read, tokenize and pack the rows of its lanes, and send them to the training process.

Started by workers.py in a Python of its own, with one end of a socket: one message comes in, the job, and after it messages
go out, a row each or the reason why there is none.
"""

from __future__ import annotations

import os
import pickle
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data_pipeline.errors import PipelineError
from data_pipeline.processes import ignore_run_signals

if TYPE_CHECKING:
    from data_pipeline.config import DataConfig
    from data_pipeline.stream.state import LaneState
    from data_pipeline.stream.token_stream import Row

_SECONDS_BETWEEN_LOOKS = 2.0


class Job(NamedTuple):
    """The lanes of one worker, and where they begin.

    Attributes:
        config: what to read, and how to cut it.
        num_lanes: rows of the global batch.
        lanes: the lanes of this worker, contiguous.
        seed: decides the order of the documents.
        state: as TokenStream.load_state_dict takes it; None at the start.
    """

    config: DataConfig
    num_lanes: int
    lanes: range
    seed: int
    state: dict[str, Any] | None


class SentRow(NamedTuple):
    """A row, with arrays of int32, and the state of its lane after it."""

    row: Row
    lane_state: LaneState


class Crash(NamedTuple):
    """The worker has met an error that is none of the user's; the text is its traceback."""

    text: str


Message = SentRow | PipelineError | Crash
"""What a worker sends: rows, and at last the reason why there is no further one."""


def serve(connection: Connection) -> None:
    """Receive a job, and send its rows until the training process closes its end or is gone."""
    parent = os.getppid()
    job = connection.recv_bytes()
    threading.Thread(target=_exit_with_parent, args=(connection, parent), daemon=True).start()
    for message in _messages(job):
        connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def _messages(job: bytes) -> Iterator[Message]:
    try:
        for row, lane_state in _rows(pickle.loads(job)):
            yield SentRow(_narrow(row, np.int32), lane_state)
    except PipelineError as error:
        yield _picklable(error)
    except Exception:
        yield Crash(traceback.format_exc())


def _rows(job: Job) -> Iterator[tuple[Row, LaneState]]:
    from data_pipeline.stream.opening import open_data
    from data_pipeline.stream.token_stream import TokenStream

    # Indexed and encoded by the training process, so that there is nothing to share among processes of this one.
    data = open_data(job.config, workers=0)
    stream = TokenStream(job.config, num_lanes=job.num_lanes, lanes=job.lanes, seed=job.seed, data=data)
    if job.state is not None:
        stream.load_state_dict(job.state)
    for row in stream:
        yield row, stream.lane_state(row.lane)


def widen(row: Row) -> Row:
    """A received row as a stream yields it, with arrays of int64."""
    return _narrow(row, np.int64)


def _narrow(row: Row, dtype: type[np.signedinteger[Any]]) -> Row:
    return row._replace(
        input_ids=row.input_ids.astype(dtype),
        labels=row.labels.astype(dtype),
        position_ids=row.position_ids.astype(dtype),
    )


def _picklable(error: PipelineError) -> PipelineError:
    """The error itself, or one with its message where its class cannot be sent."""
    try:
        sent = pickle.loads(pickle.dumps(error))
    except Exception:
        return PipelineError(str(error))
    return error if str(sent) == str(error) else PipelineError(str(error))


def _exit_with_parent(connection: Connection, parent: int) -> None:
    """End this process, whatever it does just now, when the training process has closed its end or is gone."""
    try:
        # The parent sends nothing after the job: what comes is the end of the socket. A child that the parent has forked
        # can keep that open after the parent's death, hence the look at who the parent is.
        while not connection.poll(_SECONDS_BETWEEN_LOOKS) and os.getppid() == parent:
            pass
    finally:
        os._exit(0)


def main(descriptor: int) -> None:
    """Serve the socket `descriptor`, heedless of the signals that ask a training run to stop."""
    ignore_run_signals()
    try:
        serve(Connection(descriptor))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The training process has no more use for this one.
        os._exit(0)
