"""The process that runs the program under judgement: it defines the program's functions and calls them when asked.

It knows nothing of the tests. It was forked before they were read, so they are nowhere in its memory, and it sees only
the arguments of one call after the other. What it says is data, never a verdict (see `evals.code.examiner`).
"""

from __future__ import annotations

import os
import pickle
import random
import sys
from collections.abc import Callable, MutableMapping
from functools import partial
from types import ModuleType
from typing import Any

from evals.code import exchange

MODULE = "candidate"
"""Name of the module that the program becomes."""


def serve(questions: int, answers: int) -> None:
    """Define the program that is the first message on `questions`, then answer calls until the end. Never returns.

    Answers are, as plain data: ("defined", names of the callables), ("returned", value, arguments after the call), or
    ("raised", name of the exception's class, its text).
    """
    process = os.getpid()
    random.seed()
    module = ModuleType(MODULE)
    sys.modules[MODULE] = module
    source = exchange.receive(questions)
    reply = _attempt(partial(_define, module, (source or b"").decode()))
    # A process that the program forked must not answer in its place.
    while os.getpid() == process:
        exchange.send(answers, reply)
        question = exchange.receive(questions)
        if question is None:
            break
        reply = _attempt(partial(_call, module, *pickle.loads(question)))
    os._exit(0)


def _define(module: ModuleType, source: str) -> bytes:
    exec(compile(source, "<program>", "exec"), module.__dict__)
    return exchange.dump(("defined", [name for name, value in vars(module).items() if callable(value)]))


def _call(module: ModuleType, name: str, args: list[Any], kwargs: MutableMapping[str, Any]) -> bytes:
    value = getattr(module, name)(*args, **kwargs)
    return exchange.dump(("returned", value, args))


def _attempt(action: Callable[[], bytes]) -> bytes:
    """The action's answer, or the exception that it raised: any, also a request to leave."""
    try:
        return action()
    except BaseException as error:
        try:
            text = str(error)[:500]
        except BaseException:
            text = ""
        return exchange.dump(("raised", str(type(error).__name__), text))
