"""Helper processes: Pythons of their own, which never run the caller's program, and jobs done in several of them.

What `multiprocessing` spawns runs the main module once more, which a program on stdin does not have and a script without
a guard does not survive. A helper here imports what it is told to and nothing else, so that it starts alike from a
script, `python -m`, pytest, a notebook and a prompt. It holds one end of a socket; when the other one is closed, for
whatever reason, it ends.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import platform
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import IO, Any, NamedTuple, TypeVar

from data_pipeline.sources.errors import DataError

RUN_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Reach a helper together with the process it helps, which heeds them: it ends the helper in its own time, or writes its stacks."""

SECONDS_TO_DIE = 5.0
"""Longest wait for a process that was killed: only a read that the kernel cannot interrupt outlasts that."""

Advance = Callable[[int], None]
"""Tells of bytes that were read."""
Job = TypeVar("Job")
Result = TypeVar("Result")

_LINES_SHOWN = 20
_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_BETWEEN_REPORTS = 0.1


def start_python(code: str, descriptor: int, stderr: int | None = None) -> subprocess.Popen[bytes]:
    """Start a Python that runs `code`, and that inherits the socket `descriptor`.

    The run's signals are blocked in it until it calls `ignore_run_signals`.
    """
    environment = os.environ | {
        # What is importable here is importable there.
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),
        # A helper is one of many; threads of its libraries would take the cores of the others.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    # Not with -m: what the module sends would then be of classes of __main__.
    command = [sys.executable, "-P", "-c", code]
    # A signal that comes before the helper ignores them would end it: it inherits this mask.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, RUN_SIGNALS)
    try:
        return subprocess.Popen(
            command, pass_fds=(descriptor,), stdin=subprocess.DEVNULL, stderr=stderr, env=environment
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def ignore_run_signals() -> None:
    """In a helper: leave the signals that are for the run to the process it helps."""
    for number in RUN_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, RUN_SIGNALS)


def run_in_processes(
    begin: Callable[..., Callable[[Job], Result]],
    arguments: tuple[Any, ...],
    jobs: Sequence[Job],
    *,
    workers: int,
    doing: str,
    advance: Advance = lambda size: None,
) -> Iterator[tuple[int, Result]]:
    """Yield (number of the job, its result) as jobs are done, in any order.

    Nothing that is sent may be of the main module, which a helper does not have. After a failure no job is begun, and
    those that have begun are finished; helpers are killed where the caller is interrupted or takes no more results.

    Args:
        begin: a function of a module; `begin(tell, *arguments)` is called once in each process and returns what is called
            with every job. `tell(size)` calls `advance` here, now and then and with sums.
        arguments: can be pickled, like the jobs and their results.
        jobs: what to do.
        workers: processes; no more than jobs are started.
        doing: what they do ("read the files"), for messages.
        advance: told of bytes.

    Raises:
        DataError: a process died.
        Exception: what a job or `begin` raised, with the helper's traceback as its cause.
    """
    waiting = deque(enumerate(jobs))
    helpers: list[_Helper] = []
    failure: Exception | None = None
    try:
        helpers += (_Helper() for _ in range(min(workers, len(waiting))))
        beginning = pickle.dumps((begin, arguments))
        for helper in helpers:
            helper.send(beginning)
            helper.send(pickle.dumps(waiting.popleft()))
        busy = {helper.connection: helper for helper in helpers}
        while busy:
            for connection in wait(list(busy)):
                helper = busy[connection]  # type: ignore[index]
                message = helper.receive()
                if isinstance(message, _Told):
                    advance(message.size)
                    continue
                if isinstance(message, _Done) and waiting:
                    helper.send(pickle.dumps(waiting.popleft()))
                else:
                    del busy[helper.connection]
                if isinstance(message, _Done):
                    yield message.number, message.result
                else:
                    waiting.clear()
                    failure = failure or (helper.death(doing) if message is None else message.as_raised())
        if failure is not None:
            raise failure
    finally:
        for helper in helpers:
            helper.stop()


class _Told(NamedTuple):
    size: int


class _Done(NamedTuple):
    number: int
    result: Any


class _Failed(NamedTuple):
    error: Exception
    trace: str

    def as_raised(self) -> Exception:
        self.error.__cause__ = _HelperTraceback(f"in the helper process:\n{self.trace}")
        return self.error


class _HelperTraceback(Exception):
    """The traceback of an error that was raised in a helper."""


class _Helper:
    """A process that does jobs, seen from here. What it prints as errors is printed here, and its end kept."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        number = theirs.fileno()
        code = f"from data_pipeline.processes import main; main({number}, {os.getpid()})"
        self._process = start_python(code, number, stderr=subprocess.PIPE)
        theirs.close()
        self._printed: deque[bytes] = deque(maxlen=_LINES_SHOWN)
        assert self._process.stderr is not None
        self._printing = threading.Thread(target=self._print, args=(self._process.stderr,), daemon=True)
        self._printing.start()

    def send(self, message: bytes) -> None:
        """Send what was pickled. That a process has died is seen when it is to answer."""
        with contextlib.suppress(OSError):
            self.connection.send_bytes(message)

    def receive(self) -> _Told | _Done | _Failed | None:
        """The next message; None is the end of the process."""
        try:
            message: _Told | _Done | _Failed = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return None
        return message

    def death(self, doing: str) -> DataError:
        """Why the process has ended."""
        code = self._process.wait()
        self._printing.join(SECONDS_TO_DIE)
        how = f"ended with code {code}"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name} (if nobody did that, the machine ran out of memory)"
        printed = b"".join(self._printed).decode(errors="replace").rstrip()
        return DataError(
            f"the process {self._process.pid} on {platform.node()}, one of those that {doing}, {how}; start again, perhaps "
            "with fewer workers: what was finished is kept" + (f". It printed last:\n{printed}" if printed else "")
        )

    def stop(self) -> None:
        """End the process: it has done its jobs, or nobody asks for them any more."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(SECONDS_TO_DIE)
        self._printing.join(SECONDS_TO_DIE)
        self.connection.close()

    def _print(self, lines: IO[bytes]) -> None:
        with lines:
            for line in lines:
                self._printed.append(line)
                with contextlib.suppress(OSError):
                    os.write(2, line)


def main(descriptor: int, parent: int) -> None:
    """In a helper: do the jobs that come through the socket `descriptor` from the process `parent`."""
    ignore_run_signals()
    connection = Connection(descriptor)
    received: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, parent, received), daemon=True).start()
    tell = _Teller(connection)
    try:
        begin, arguments = pickle.loads(received.get())
        run = begin(tell, *arguments)
        while True:
            number, job = pickle.loads(received.get())
            message = pickle.dumps(_Done(number, run(job)))
            tell.flush()
            _send(connection, message)
    except BaseException as error:  # a panic of a native library is no Exception
        _send(connection, pickle.dumps(_Failed(_as_sent(error), traceback.format_exc())))


class _Teller:
    """Sends how much was read, now and then."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._size, self._next = 0, 0.0

    def __call__(self, size: int) -> None:
        self._size += size
        if (now := time.monotonic()) >= self._next:
            self._next = now + _SECONDS_BETWEEN_REPORTS
            self.flush()

    def flush(self) -> None:
        if self._size:
            _send(self._connection, pickle.dumps(_Told(self._size)))
            self._size = 0


def _receive(connection: Connection, parent: int, received: queue.SimpleQueue[bytes]) -> None:
    """Receive until the other end is closed or its process gone; then end this process, whatever it does just now."""
    try:
        while True:
            # A child that the parent has forked can keep its end open after its death, hence the look at who the parent is.
            while not connection.poll(_SECONDS_BETWEEN_LOOKS):
                if os.getppid() != parent:
                    return
            received.put(connection.recv_bytes())
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)


def _send(connection: Connection, message: bytes) -> None:
    try:
        connection.send_bytes(message)
    except OSError:
        # Nobody is there to be told.
        os._exit(0)


def _as_sent(error: BaseException) -> Exception:
    """The error itself, or one that says the same where it cannot be sent or would not be caught as an error."""
    if isinstance(error, Exception):
        with contextlib.suppress(Exception):
            if str(pickle.loads(pickle.dumps(error))) == str(error):
                return error
        if isinstance(error, DataError):
            return DataError(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")
