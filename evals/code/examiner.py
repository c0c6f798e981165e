"""The process that runs the tests, out of the program's reach, and gives the verdict.

Program and tests run in different processes. The examiner belongs to the benchmark: it executes the tests, and where
they call a function of the program, it sends the arguments to the candidate's process and receives plain data. A verdict
is "passed" only if the tests ran to their end here. So a program gains nothing by leaving (sys.exit, os._exit), printing,
or changing its own interpreter (builtins, assert, time, modules, frames): all of that happens in another process, which
is in a process namespace of its own, cannot signal or trace the examiner, and never sees the tests. Nor can it return an
object that claims to equal everything: such an object is no plain data.

What remains: a program sees the arguments that it is called with and may change those that are mutable, as it could if it
ran beside the tests; weak tests pass wrong programs; and a fault of the kernel's isolation opens everything. Tests
that pass functions or objects of their own classes to the program, or expect objects of its classes, cannot be judged
this way and fail.
"""

from __future__ import annotations

import builtins
import os
import pickle
import random
import signal
import traceback
from collections.abc import Callable
from typing import Any

from evals.code import exchange

DETAIL = 500
"""Characters of a verdict's detail."""


class _CandidateEnded(BaseException):
    """The candidate's process is gone. Not an Exception, so that no test takes it for an error it expects."""


class _Candidate:
    """The candidate's process, as seen from here: functions to call."""

    def __init__(self, pid: int, questions: int, answers: int, cpu_seconds: float) -> None:
        self.pid, self.questions, self.answers, self.cpu_seconds = pid, questions, answers, cpu_seconds
        self.end: tuple[str, str] | None = None

    def ask(self, question: bytes) -> tuple[Any, ...]:
        """Send a question and wait for its answer.

        Raises:
            _CandidateEnded: there is no answer.
            Exception: what the program raised, or a TypeError if its answer is not plain data.
        """
        try:
            exchange.send(self.questions, question)
            data = exchange.receive(self.answers)
        except BrokenPipeError:
            data = None
        except ValueError as error:
            self.end = ("too much output", str(error))
            raise _CandidateEnded from None
        if data is None:
            self.end = how_it_ended(self.pid, self.cpu_seconds)
            raise _CandidateEnded
        try:
            kind, *answer = exchange.load(data)
            if kind == "raised":
                name, text = answer
        except Exception as error:
            raise TypeError(f"what the program returned cannot be compared: {error}") from None
        if kind == "raised":
            raise _exception(str(name), str(text))
        return tuple(answer)

    def function(self, name: str) -> Callable[..., Any]:
        """A function that calls the program's function of that name."""

        def call(*args: Any, **kwargs: Any) -> Any:
            value, after = self.ask(pickle.dumps((name, args, kwargs)))
            for mine, theirs in zip(args, after, strict=True):
                _copy_changes(mine, theirs)
            return value

        call.__name__ = name
        return call


def _copy_changes(mine: Any, theirs: Any) -> None:
    """Make an argument what the program made of it."""
    if type(mine) is not type(theirs) or mine == theirs:
        return
    if isinstance(mine, list | bytearray):
        mine[:] = theirs
    elif isinstance(mine, dict | set):
        mine.clear()
        mine.update(theirs)


def _exception(name: str, text: str) -> Exception:
    """The exception that the program raised: a built-in one as itself, another as a class of that name."""
    kind = getattr(builtins, name, None)
    error: Exception
    try:
        # StopIteration would end a loop of the tests without an error.
        if not (isinstance(kind, type) and issubclass(kind, Exception)) or "Stop" in name:
            raise TypeError
        error = kind(text)
    except TypeError:
        error = type(name, (Exception,), {})(text)
    error.is_from_program = True  # type: ignore[attr-defined]
    return error


def examine(
    candidate: int, questions: int, answers: int, program: dict[str, str], cpu_seconds: float
) -> dict[str, Any]:
    """Give the source to the candidate's process, run the tests, and say what happened.

    Args:
        candidate: the candidate's process id.
        questions: the pipe to it.
        answers: the pipe from it.
        program: `source`, `test` and `entry_point` of a Program.
        cpu_seconds: the candidate's limit.

    Returns:
        `passed`, `reason` and `detail` of a Verdict.
    """
    random.seed()
    process = _Candidate(candidate, questions, answers, cpu_seconds)
    reason, detail = "passed", ""
    try:
        _run_tests(process, program)
    except _CandidateEnded:
        pass
    except BaseException as error:
        reason, detail = _reason(error), traceback.format_exception_only(error)[-1].strip()[:DETAIL]
    # Also if the tests go on without the candidate.
    if process.end is not None:
        reason, detail = process.end
    return {"passed": reason == "passed", "reason": reason, "detail": detail}


def _run_tests(process: _Candidate, program: dict[str, str]) -> None:
    (names,) = process.ask(program["source"].encode())
    # Names of builtins stay Python's own: a program's `abs` or `all` must not do the tests' work.
    own = {str(name) for name in names if not str(name).startswith("__") and not hasattr(builtins, str(name))}
    scope: dict[str, Any] = {"__name__": "tests", **{name: process.function(name) for name in own}}
    if program["entry_point"] not in names:
        raise NameError(f"the program defines no function {program['entry_point']!r}")
    entry = process.function(program["entry_point"])
    exec(compile(program["test"], "<tests>", "exec"), scope)
    check = scope.get("check")
    if check is not None:
        check(entry)


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, AssertionError) and not hasattr(error, "is_from_program"):
        return "failed assertion"
    return f"raised {type(error).__name__}"[:DETAIL]


def how_it_ended(pid: int, cpu_seconds: float) -> tuple[str, str]:
    """Wait for a process to end: a reason and a detail."""
    _, status, usage = os.wait4(pid, 0)
    if not os.WIFSIGNALED(status):
        return "ended early", f"exit status {os.waitstatus_to_exitcode(status)}"
    name = signal.Signals(os.WTERMSIG(status)).name
    seconds = usage.ru_utime + usage.ru_stime
    # The kernel kills a process that has used up its processor time.
    if name in ("SIGKILL", "SIGXCPU") and seconds > cpu_seconds - 0.5:
        return "timed out", f"{seconds:.1f} s of processor time"
    return f"killed by signal {name}", ""
