"""Who writes a rank's file: a process of its own from a copy in memory, or the rank itself straight from its tensors.

Both are asked for one thing at a time and answer once: {"value": …} or {"error": text}.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from training.checkpoint.image import Copying, ShardImage, Views, streamed
from training.checkpoint.writer_process import answer

_ROOT = Path(__file__).resolve().parents[2]


class Writer(Protocol):
    """Takes what is to be saved and does what storage is asked for."""

    def take(self, views: Views) -> Copying:
        """Take these slices as what the next file consists of; they may change once that is complete."""

    def ask(self, **request: Any) -> None:
        """Begin with a request (writer_process.perform)."""

    def answer(self) -> dict[str, Any] | None:
        """What came of the request, once; None while that is not known."""

    def give_up(self) -> None:
        """Don't wait for an answer any more."""

    def close(self) -> None:
        """End."""


class BackgroundWriter:
    """Copies slices into memory; another process writes them from there."""

    def __init__(self, image: ShardImage) -> None:
        self._image = image
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._ignored = 0
        """Answers to come that nobody waits for."""

    def take(self, views: Views) -> Copying:
        """Begin to copy; see `Writer`."""
        return self._image.fill(views)

    def start(self) -> None:
        """Start the process, unless it is there: it takes a moment, and is best over before the first save."""
        if self._process is not None and self._process.poll() is None:
            return
        self._received, self._ignored = b"", 0
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "training.checkpoint.writer_process", str(self._image.descriptor), str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(self._image.descriptor,),
            env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def ask(self, **request: Any) -> None:
        """Hand a request to the process; see `Writer`."""
        self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` says how it ended.
        # Nobody needs to know how that went.
        self._ignored += request["do"] == "discard"

    def answer(self) -> dict[str, Any] | None:
        """The process' answer; see `Writer`."""
        assert self._process is not None
        assert self._process.stdout is not None
        while True:
            while b"\n" in self._received:
                line, _, self._received = self._received.partition(b"\n")
                if not self._ignored:
                    found: dict[str, Any] = json.loads(line)
                    return found
                self._ignored -= 1
            received = self._process.stdout.read(1 << 16)
            if received is None:
                return None
            if not received:
                return {"error": f"the process that writes checkpoints has ended ({_cause(self._let_go())})"}
            self._received += received

    def give_up(self) -> None:
        """End the process, as far as storage lets it end; see `Writer`."""
        if self._process is not None:
            self._process.kill()
            self._let_go(seconds=1)

    def close(self) -> None:
        """End the process; see `Writer`."""
        if self._process is not None:
            self._let_go(seconds=10)
        self._image.close()

    def _let_go(self, seconds: float | None = None) -> int:
        """Have the process end, for want of requests or killed after some time; its exit code."""
        process, self._process = self._process, None
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            # One that waits for storage ends when storage lets it.
            _LEFT_BEHIND.append(process)
            return -signal.SIGKILL
        finally:
            process.stdout.close()


_LEFT_BEHIND: list[subprocess.Popen[bytes]] = []
"""Processes that were killed and could not end yet."""


class DirectWriter:
    """Writes at once, a piece at a time, while training waits: takes no memory."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self._sizes = sizes
        self._views: Views = ()
        self._answer: dict[str, Any] | None = None

    def take(self, views: Views) -> Copying:
        """Remember what to write; see `Writer`. It is written before the next step."""
        self._views = views
        return Copying()

    def ask(self, **request: Any) -> None:
        """Do it; see `Writer`."""
        views, self._views = self._views, ()
        found = answer(request, streamed(self._sizes, views))
        # Nobody needs to know how that went.
        self._answer = None if request["do"] == "discard" else found

    def answer(self) -> dict[str, Any] | None:
        """What came of it; see `Writer`."""
        found, self._answer = self._answer, None
        return found

    def give_up(self) -> None:
        """There is never anything to wait for."""

    def close(self) -> None:
        """There is nothing to end."""


def _cause(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
