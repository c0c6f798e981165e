"""The process that runs the program under judgement: it defines the program's functions and calls them when asked.

It knows nothing of the tests. It was forked before they were read, so they are nowhere in its memory, and it sees only
the arguments of one call after the other. What it says is data, never a verdict (see `evals.code.examiner`).
"""

from __future__ import annotations

import builtins
import os
import pickle
import random
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from evals.code import exchange, values

MODULE = "candidate"
"""Name of the module that the program becomes."""

_TEXT = 10_000
"""Characters of an exception's text."""


class _Program:
    """The program, and the iterators that it returned."""

    def __init__(self) -> None:
        self.module = ModuleType(MODULE)
        self.iterators: list[Iterator[Any]] = []
        self.numbers: dict[int, int] = {}
        sys.modules[MODULE] = self.module

    def answer(self, question: bytes) -> bytes:
        """What comes of a question: ("define", source), ("call", name, args, kwargs), or ("next", iterator).

        Answers are ("returned", value), ("ended",) of an iterator, or ("raised", name of the exception's class, its
        built-in bases, its arguments, its text) for any exception, also a request to leave; with all of them come
        the arguments as they are after the call.
        """
        objects: list[Any] = []
        try:
            (kind, *details), objects = values.decode(question, self._restore)
            return values.encode(getattr(self, f"_{kind}")(*details), self._describe, objects)[0]
        except BaseException as error:
            return self._raised(error, objects)

    def _define(self, source: str) -> list[Any]:
        exec(compile(source, "<program>", "exec"), self.module.__dict__)
        return ["returned", [name for name, value in vars(self.module).items() if callable(value)]]

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        return ["returned", getattr(self.module, name)(*args, **kwargs)]

    def _next(self, iterator: Iterator[Any]) -> list[Any]:
        try:
            return ["returned", next(iterator)]
        except StopIteration:
            return ["ended"]

    def _raised(self, error: BaseException, objects: list[Any]) -> bytes:
        built_in = [kind for kind in type(error).__mro__ if vars(builtins).get(kind.__name__) is kind is not object]
        bases = [kind.__name__ for kind in built_in if not any(issubclass(each, kind) for each in built_in if each is not kind)]  # fmt: skip
        try:
            text = str(error)[:_TEXT]
        except BaseException:
            text = ""
        parts = ["raised", str(type(error).__name__), bases, error.args, text]
        try:
            return values.encode(parts, self._describe, objects)[0]
        except BaseException:
            return values.encode([*parts[:3], (text,), text], self._describe)[0]

    def _describe(self, value: Any) -> values.Described:
        """An iterator stays here, and gives what it has when asked."""
        if not isinstance(value, Iterator):
            raise TypeError(f"the program's {type(value).__name__} is not plain data, so that tests cannot see it")
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.iterators)
            self.iterators.append(value)
        return "iterator", self.numbers[id(value)]

    def _restore(self, kind: str, option: Any) -> Any:
        return self.iterators[option] if kind == "iterator" else pickle.loads(option)


def serve(questions: int, answers: int) -> None:
    """Answer what is asked on `questions`, on `answers`, until the end. Never returns."""
    process = os.getpid()
    random.seed()
    program = _Program()
    # A process that the program forked must not answer in its place.
    while os.getpid() == process:
        question = exchange.receive(questions)
        if question is None:
            break
        reply = program.answer(question)
        if os.getpid() == process:
            exchange.send(answers, reply)
    os._exit(0)
