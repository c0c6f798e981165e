"""One rank of a stream as a process of its own that is killed in the end; see resume_proof.py."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from data_pipeline.config import DataConfig
from data_pipeline.errors import PipelineError
from data_pipeline.stream.token_stream import Row, TokenStream

PATIENCE_SECONDS = 900.0
"""Longest wait for a row of a process."""


class ResumeProofError(PipelineError):
    """The proof cannot be carried out; the message says why."""


def hash_of(row: Row) -> bytes:
    """A hash of all that a model sees of a row, and of where it comes from."""
    digest = hashlib.blake2b(repr(row.documents).encode(), digest_size=16)
    for array in (row.input_ids, row.labels, row.position_ids):
        digest.update(array.astype("<i8").tobytes())
    return digest.digest()


class Job(NamedTuple):
    """What a process is told: as for TokenStream, the state to go on from, and how many steps to save after."""

    config: DataConfig
    num_lanes: int
    lanes: range
    seed: int
    state: dict[str, Any] | None
    save_every: int


class Rank:
    """One process, which is killed at the end of the `with` block."""

    def __init__(self, job: Job) -> None:
        self._lanes = job.lanes
        self.states: list[dict[str, Any]] = []
        self.rows = 0
        self._connection, theirs = Pipe()
        command = [
            sys.executable,
            "-P",
            "-c",
            f"from data_pipeline.stream.killed_rank import main; main({theirs.fileno()})",
        ]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._process = subprocess.Popen(
            command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, env=environment
        )
        theirs.close()
        self._connection.send(job)

    def __enter__(self) -> Rank:
        """The process."""
        return self

    def __exit__(self, *error: object) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def begin(self) -> dict[int, int]:
        """Wait for the first row, and return how many rows the lanes had before it."""
        self.seconds_to_open, self.seconds_to_first_row, lane_rows = self._receive()
        return dict(lane_rows)

    def take(self, count: int) -> list[tuple[int, bytes]]:
        """The next rows, each its lane and its hash; states that are saved on the way are kept."""
        rows: list[tuple[int, bytes]] = []
        while len(rows) < count:
            message = self._receive()
            if isinstance(message, dict):
                self.states.append(message)
            else:
                rows.append(message)
        self.rows += count
        return rows

    def _receive(self) -> Any:
        name = f"the process for lanes {self._lanes.start} to {self._lanes.stop - 1}"
        try:
            if not self._connection.poll(PATIENCE_SECONDS):
                raise ResumeProofError(f"{name} has sent no row for {PATIENCE_SECONDS:.0f} s; its storage may hang")
            message = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise ResumeProofError(f"{name} ended with code {self._process.wait()}; its message is above") from None
        if isinstance(message, Exception):
            raise message
        return message


def main(descriptor: int) -> None:
    """Be one process of a leg: receive the job on the socket `descriptor`, and send rows until it is killed."""
    # Ctrl-C is for the process that proves, which kills this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        for message in _messages(connection.recv()):
            connection.send(message)
    except (BrokenPipeError, ConnectionResetError):
        return
    except PipelineError as error:
        connection.send(PipelineError(str(error)))
    except Exception:
        connection.send(ResumeProofError(f"a process failed:\n{traceback.format_exc()}"))


def _messages(job: Job) -> Iterator[Any]:
    began = time.perf_counter()
    stream = TokenStream(job.config, num_lanes=job.num_lanes, lanes=job.lanes, seed=job.seed)
    opened = time.perf_counter()
    if job.state is not None:
        stream.load_state_dict(job.state)
    lane_rows = stream.lane_rows()
    row = next(stream)
    yield opened - began, time.perf_counter() - opened, lane_rows
    for rows in itertools.count(1):
        yield row.lane, hash_of(row)
        if rows % (job.save_every * len(job.lanes)) == 0:
            yield stream.state_dict()
        row = next(stream)
