"""A program with its tests, and the verdict on it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from evals.code.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Program:
    """One generated solution of a problem and the problem's tests.

    Attributes:
        id: the problem.
        sample: the number of the solution among the problem's.
        source: the complete program: prompt and completion.
        test: code that asserts at its top level, or defines `check(candidate)`, or both.
        entry_point: the function of `source` that `check` receives.
    """

    id: str
    sample: int
    source: str
    test: str
    entry_point: str

    def key(self, policy: Policy) -> str:
        """SHA-256 (hexadecimal) of all that a verdict depends on: source, tests, entry point and policy."""
        parts = [self.source, self.test, self.entry_point, asdict(policy)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a program.

    Attributes:
        passed: all tests ran to their end and held.
        reason: "passed", "failed assertion", "raised NameError", "timed out", "out of memory", "too much output",
            "killed by signal SIGSEGV", "ended early".
        seconds: wall time from the program's start to the verdict.
        detail: the last line of the traceback, at most 500 characters; empty if there is none.
    """

    passed: bool
    reason: str
    seconds: float
    detail: str = ""
