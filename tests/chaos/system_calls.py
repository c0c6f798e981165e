"""The calls of `os` that change what is on a disk, intercepted: counted, with a kill between any two of them, or watched.

What goes through `os` is seen, and so pathlib, shutil and tempfile; of `open()` the opening is, what its file object writes
is not.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

NAMES = (
    "open", "close", "write", "writev", "pwrite", "pwritev", "sendfile", "copy_file_range", "truncate", "ftruncate",
    "posix_fallocate", "fsync", "fdatasync", "mkdir", "rmdir", "unlink", "remove", "rename", "replace", "link", "symlink",
)  # fmt: skip

Perform = Callable[..., Any]
Handler = Callable[[str, Perform, tuple[Any, ...], dict[str, Any]], Any]
"""Gets the name of a call, the call itself and its arguments; returns what the caller is to get."""


@contextlib.contextmanager
def intercepted(handler: Handler) -> Iterator[None]:
    """Have every such call of this process go through `handler`."""
    real = {name: getattr(os, name) for name in NAMES}
    opening = builtins.open
    try:
        for name, perform in real.items():
            setattr(os, name, _through(handler, name, perform))
        builtins.open = io.open = _through(handler, "open", opening)  # type: ignore[assignment]
        yield
    finally:
        for name, perform in real.items():
            setattr(os, name, perform)
        builtins.open = io.open = opening


def _through(handler: Handler, name: str, perform: Perform) -> Perform:
    def call(*arguments: Any, **options: Any) -> Any:
        return handler(name, perform, arguments, options)

    return call


class Killer:
    """A handler that kills the process at its n-th point: one is before every call, one in the middle of every write."""

    def __init__(self, point: int) -> None:
        """Count points from 1."""
        self._left = point

    def __call__(self, name: str, perform: Perform, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        self._pass()
        if name == "write":
            descriptor, data = arguments
            view = memoryview(data).cast("B")
            if self._left == 1:
                perform(descriptor, view[: len(view) // 2])
            self._pass()
        return perform(*arguments, **options)

    def _pass(self) -> None:
        self._left -= 1
        if self._left == 0:
            kill_this_process()


def kill_this_process() -> NoReturn:
    """End it at once, without any cleaning up."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("outlived SIGKILL")


def killed_at(point: int, action: Callable[[], object]) -> bool:
    """Whether a child that runs `action` is killed at its n-th point; False when it came to its end before.

    Raises:
        AssertionError: it failed in another way, which is on stderr.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with intercepted(Killer(point)):
                action()
            code = 0
        finally:
            if code:
                import traceback

                traceback.print_exc()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert status == 0, f"the child ended with wait status {status}"
    return False
