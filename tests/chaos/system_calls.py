"""The calls of `os` that change what is on a disk, intercepted: counted, with a kill between any two of them, or watched.

What goes through `os` is seen, and so pathlib, shutil and tempfile; of `open()` the opening is, what its file object writes
is not.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import Any

NAMES = (
    "open", "close", "write", "writev", "pwrite", "pwritev", "sendfile", "copy_file_range", "truncate", "ftruncate",
    "posix_fallocate", "fsync", "fdatasync", "mkdir", "rmdir", "unlink", "remove", "rename", "replace", "link", "symlink",
)  # fmt: skip

TRAINING, WRITER = "training.main", "training.checkpoint.writer_process"
"""The programs that can be told to kill themselves: a rank, and what writes its part of checkpoints."""

Perform = Callable[..., Any]
Handler = Callable[[str, Perform, tuple[Any, ...], dict[str, Any]], Any]
"""Gets the name of a call, the call itself and its arguments; returns what the caller is to get."""


def intercept(handler: Handler) -> Callable[[], None]:
    """Have every such call of this process go through `handler`; return what ends that."""
    real = {name: getattr(os, name) for name in NAMES}
    opening = builtins.open

    def undo() -> None:
        for name, perform in real.items():
            setattr(os, name, perform)
        builtins.open = io.open = opening

    for name, perform in real.items():
        setattr(os, name, _through(handler, name, perform))
    builtins.open = io.open = _through(handler, "open", opening)  # type: ignore[assignment]
    return undo


@contextlib.contextmanager
def intercepted(handler: Handler) -> Iterator[None]:
    """The same for the block."""
    undo = intercept(handler)
    try:
        yield
    finally:
        undo()


def _through(handler: Handler, name: str, perform: Perform) -> Perform:
    def call(*arguments: Any, **options: Any) -> Any:
        return handler(name, perform, arguments, options)

    return call


class Killer:
    """A handler that kills the process at its n-th point: one is before every call but opening something to read, one in the
    middle of every write."""

    def __init__(self, point: int, tell: Callable[[str], object] = lambda call: None) -> None:
        """Count points from 1; `tell` gets the name of the call before the end."""
        self._left, self._tell = point, tell

    def __call__(self, name: str, perform: Perform, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if name == "open" and not _may_write(*arguments, **options):
            return perform(*arguments, **options)
        self._pass(f"before {name}")
        if name == "write":
            descriptor, data = arguments
            view = memoryview(data).cast("B")
            if self._left == 1:
                perform(descriptor, view[: len(view) // 2])
            self._pass("in the middle of write")
        return perform(*arguments, **options)

    def _pass(self, where: str) -> None:
        self._left -= 1
        if self._left == 0:
            self._tell(where)
            os.kill(os.getpid(), signal.SIGKILL)


def _may_write(path: Any, how: Any = "r", *rest: Any, mode: Any = None, **options: Any) -> bool:
    """Whether `os.open` or `open` with these arguments can change anything."""
    how = mode if isinstance(mode, str) else how
    return bool(set(how) & set("wax+")) if isinstance(how, str) else how & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) != 0


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
                traceback.print_exc()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert status == 0, f"the child ended with wait status {status}"
    return False


def kill_where_asked(program: str) -> None:
    """In a process that is about to run `program`: have it kill itself where CHAOS_KILL says, if that names it.

    CHAOS_KILL is a JSON object: `program`; `point`; `words`, a file to be made, in which it says where. The next process that
    runs the program, in place of the dead one, lives.
    """
    asked = json.loads(os.environ.get("CHAOS_KILL", "{}"))
    if asked.get("program") != program or os.path.exists(asked["words"]):
        return
    who, point, words = (
        f"{'writer' if program == WRITER else 'rank'} {os.environ.get('RANK')}",
        asked["point"],
        asked["words"],
    )
    # Not what is intercepted from then on.
    make, say = os.open, os.write

    def tell(where: str) -> None:
        say(make(words, os.O_WRONLY | os.O_CREAT, 0o666), f"{who} killed itself {where}, point {point}".encode())

    intercept(Killer(point, tell))
