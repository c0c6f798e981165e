"""The process that runs the tests, out of the program's reach, and gives the verdict.

Program and tests run in different processes. The examiner belongs to the benchmark: it executes the tests, and where
they call a function of the program, it sends the arguments to the candidate's process and receives plain data
(`evals.code.values`). A verdict is "passed" only if the tests ran to their end here. So a program gains nothing by
leaving (sys.exit, os._exit), printing, or changing its own interpreter (builtins, assert, time, modules, frames): all of
that happens in another process, which is in a process namespace of its own, cannot signal or trace the examiner, and never
sees the tests. Nor can it return an object that claims to equal everything: such an object is no plain data.

What remains: a program sees the arguments that it is called with and may change those that are mutable, as it could if it
ran beside the tests; weak tests pass wrong programs; and a fault of the kernel's isolation opens everything.

What can differ from running program and tests in one interpreter:

- Values are data types, iterators, views of dictionaries, and the types of the standard library that `evals.code.values`
  lists. Instances of their subclasses become instances of these types: a named tuple is a tuple, a member of an IntEnum
  an int, a time zone its offset; a defaultdict keeps a default factory only if it is a built-in type. Anything else that
  a program returns, raises in an exception's arguments, or puts in an argument (functions, objects of its own classes) is
  a TypeError in the tests, or for an exception left out. Tests reach a program's functions and classes only by calling
  them; its constants are not there. What tests pass may be anything else that pickle can copy, such as `len` or an
  iterator over a list, but not their own functions, generators or classes.
- Objects are copied in every call. Lists, dictionaries, sets, deques and bytearrays that were passed, at any depth, are
  after the call what the program made of them, and are the same objects where it returns them. What either side keeps
  and changes later, the other does not see; two calls that return the same object return two. Other objects that were
  passed do not change: an iterator's place is that of before.
- Every iterator that a program returns is a generator in the tests and lazy as it was: it runs when the tests ask for
  the next item, at most `ITEMS` times. It has no send, throw or close that reaches the program, ends with its first
  exception, and what it does to arguments after its call has returned is not seen.
- Exceptions keep their name, text, built-in bases and plain arguments, but no other attributes, cause or traceback, and
  are no instances of the program's classes. StopIteration is an Exception that does not stop a loop.
- What is one in an interpreter is two here: modules and their attributes, random generators, threads, warnings,
  sys.path, standard output. Identity of numbers, strings and bytes is not kept.
- The tests' names are not visible to the program, and names of builtins are Python's own in the tests.
"""

from __future__ import annotations

import builtins
import os
import pickle
import random
import signal
import traceback
from collections.abc import Callable, Generator, Sequence
from typing import Any

from evals.code import exchange, values

DETAIL = 500
"""Characters of a verdict's detail."""

ITEMS = 100_000
"""Items of one iterator that tests may ask for; all together take at most `exchange.LONGEST` bytes."""


class _CandidateEnded(BaseException):
    """The candidate's process is gone. Not an Exception, so that no test takes it for an error it expects."""


class _Candidate:
    """The candidate's process, as seen from here: functions to call, and iterators that it returned."""

    def __init__(self, pid: int, questions: int, answers: int, cpu_seconds: float) -> None:
        self.pid, self.questions, self.answers, self.cpu_seconds = pid, questions, answers, cpu_seconds
        self.iterators: dict[int, Generator[Any, None, None]] = {}
        self.end: tuple[str, str] | None = None

    def ask(self, *question: Any) -> tuple[list[Any], int]:
        """Send a question (see `evals.code.candidate`), wait for its answer, and bring arguments up to date.

        Returns:
            Nothing in a list if an iterator has ended, else what was returned; and the answer's size in bytes.

        Raises:
            _CandidateEnded: there is no answer.
            BaseException: what the program raised, or a TypeError if its answer is not plain data.
        """
        message, objects = values.encode(question, self._describe)
        try:
            exchange.send(self.questions, message)
            data = exchange.receive(self.answers)
        except BrokenPipeError:
            data = None
        except ValueError as problem:
            raise self._ended("too much output", str(problem)) from None
        if data is None:
            raise self._ended(*how_it_ended(self.pid, self.cpu_seconds))
        try:
            (kind, *answer), _ = values.decode(data, self._restore, objects)
            error = _exception(*answer) if kind == "raised" else None
        except Exception as problem:
            raise TypeError(f"what the program returned cannot be compared: {problem}") from None
        if error is not None:
            raise error
        return answer, len(data)

    def _ended(self, reason: str, detail: str) -> _CandidateEnded:
        self.end = (reason, detail)
        return _CandidateEnded()

    def function(self, name: str) -> Callable[..., Any]:
        """A function that calls the program's function of that name."""

        def call(*args: Any, **kwargs: Any) -> Any:
            (value,), _ = self.ask("call", name, args, kwargs)
            return value

        call.__name__ = name
        return call

    def _items(self, number: int) -> Generator[Any, None, None]:
        """The items of an iterator of the program, each when it is asked for."""
        size = 0
        for _ in range(ITEMS):
            answer, length = self.ask("next", self.iterators[number])
            size += length
            if size > exchange.LONGEST:
                raise self._ended("too much output", f"an iterator of more than {exchange.LONGEST} bytes")
            if not answer:
                return
            yield answer[0]
        raise self._ended("too much output", f"an iterator of more than {ITEMS} items")

    def _describe(self, value: Any) -> values.Described:
        for number, iterator in self.iterators.items():
            if iterator is value:
                return "iterator", number
        return "pickled", pickle.dumps(value)

    def _restore(self, kind: str, option: Any) -> Any:
        if kind != "iterator" or type(option) is not int:
            raise ValueError(f"{kind} is not plain data")
        if option not in self.iterators:
            self.iterators[option] = self._items(option)
        return self.iterators[option]


def _exception(name: str, bases: Sequence[str], args: Sequence[Any], text: str) -> BaseException:
    """The exception that the program raised: a built-in one as itself, another as a class of that name and bases."""
    kinds = [getattr(builtins, each, None) for each in bases]
    known = tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseException))
    # StopIteration would end a loop of the tests without an error.
    if not known or any(issubclass(kind, StopIteration | StopAsyncIteration) for kind in known):
        known = (Exception,)
    name, text = name if name.isidentifier() else "Exception", str(text)
    error: BaseException
    try:
        error = known[0](*args)
        if type(error).__name__ != name or str(error) != text:
            error = type(name, known, {"__str__": lambda self: text})(*args)
    except Exception:
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
    (names,), _ = process.ask("define", program["source"])
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
