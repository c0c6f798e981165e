"""One reader under test, and one try of it: what may come of any input, and what is a failure.

Any input is read, or refused by an error that its reader names, with a message that says of which file or setting. A failure
is: another exception, a warning, an assertion of the target about what was read, a reader that takes too long or too much memory, or one that
writes outside its folder or starts a process.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.folders import Content, Files, inputs, put

MAX_SECONDS = 5.0
"""CPU time for one input; a valid one takes milliseconds."""
MAX_BYTES = 1 << 30
"""Address space that one input may add to the process."""
PACKAGES = ("launch", "training", "monteclora", "data_pipeline", "evals")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader of files.

    Attributes:
        name: of the target.
        make: a valid folder, from which inputs are made; the reader must take it.
        read: calls the reader on a folder, and asserts what must hold of what it gives.
        errors: those that it names.
        says: words of which a message may have one instead of the name of a file.
        share: of all inputs, relative to other targets; slow readers get fewer.
    """

    name: str
    make: Callable[[], Mapping[str, bytes]]
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...] = ()
    says: tuple[str, ...] = ()
    share: float = 1.0

    @cached_property
    def valid(self) -> Mapping[str, bytes]:
        """The valid folder, made once."""
        return self.make()

    @cached_property
    def strategy(self) -> st.SearchStrategy[dict[str, Content]]:
        """Inputs."""
        return inputs(self.valid)


@dataclass(frozen=True)
class Failure:
    """An input that came to something that it must not come to."""

    kind: str
    """What happened and where: equal for the same bug."""
    text: str
    files: Files = field(repr=False)


class TooLong(BaseException):
    """Raised in a reader that does not come to an end; nothing in it may take this for an error of its own."""


class Forbidden(BaseException):
    """A reader wrote outside its folder, or started a process."""


def attempt(target: Target, files: Files, folder: Path) -> str | Failure:
    """Try one input in an empty folder; the name of the error that refused it, "read", or the failure."""
    put(files, folder)
    try:
        with _limits(folder), warnings.catch_warnings():
            warnings.simplefilter("error")
            target.read(folder)
    except target.errors as error:
        names = [*target.says, *(part for name in (*files, *target.valid) for part in name.split("/"))]
        if not any(name in str(error) for name in names):
            return _failure(error, files, note="names neither file nor setting: ")
        return type(error).__name__
    except (Exception, TooLong, Forbidden) as error:
        return _failure(error, files)
    except BaseException as error:
        # A Rust library's panic is one.
        if type(error).__name__ == "PanicException":
            return _failure(error, files)
        raise
    return "read"


def _failure(error: BaseException, files: Files, note: str = "") -> Failure:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if _is_ours(frame.filename)] or frames
    place = f"{os.path.relpath(ours[-1].filename, _ROOT)}:{ours[-1].name}"
    kind = f"{note}{type(error).__name__} in {place}"
    text = "".join(traceback.format_exception(error, chain=False))
    return Failure(kind, text[-4000:], files)


def _is_ours(file: str) -> bool:
    path = Path(file)
    return path.is_relative_to(_ROOT) and path.relative_to(_ROOT).parts[0] in PACKAGES


@contextmanager
def _limits(folder: Path) -> Iterator[None]:
    """Time, memory and places to write while a reader runs."""
    _forbid()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MAX_BYTES, hard))
    # CPU time, so that a busy machine is no hang. Waiting for ever is: whoever tries inputs has an eye on the clock.
    before = signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    _Allowed.folder = str(folder)
    try:
        yield
    finally:
        _Allowed.folder = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _too_long(*_: object) -> None:
    raise TooLong(f"not done after {MAX_SECONDS:g} s of CPU time")


class _Allowed:
    """Where may be written now; None: anywhere."""

    folder: str | None = None


_PROCESSES = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.fork", "os.forkpty", "socket.connect")
_CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "os.link",
    "os.symlink",
    "shutil.rmtree",
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@cache
def _forbid() -> None:
    """Look at what Python code opens and changes from now on; a hook can't be taken back."""
    sys.addaudithook(_look)


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    if _Allowed.folder is None:
        return
    if event == "open":
        path, _, flags = arguments
        if flags & _WRITES and not _is_inside(path):
            raise Forbidden(f"opened {path} for writing")
    elif event in _CHANGES:
        if not _is_inside(arguments[0]):
            raise Forbidden(f"{event} {arguments[0]}")
    elif event in _PROCESSES:
        raise Forbidden(f"{event} {arguments}")


def _is_inside(path: Any) -> bool:
    if isinstance(path, int) or path == "/dev/null":
        return True
    text = os.path.abspath(os.fsdecode(path))
    return text == _Allowed.folder or text.startswith(f"{_Allowed.folder}/")
