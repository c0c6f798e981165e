from __future__ import annotations

import json
import math

import pytest

from evals.code.program import Verdict
from evals.code.result import summarize
from evals.errors import EvalError

PASSED = Verdict(passed=True, reason="passed", seconds=0.1)
FAILED = Verdict(passed=False, reason="failed assertion", seconds=0.1, detail="AssertionError")
LATE = Verdict(passed=False, reason="timed out", seconds=10.0)


def test_an_entry() -> None:
    generations = [["a", "a", "b", "c", "d"], ["x"] * 5]
    verdicts = [[PASSED, PASSED, FAILED, FAILED, LATE], [FAILED] * 5]
    entry = summarize(["p0", "p1"], generations, verdicts, ks=[1, 2, 5, 100])
    assert entry["score"] == pytest.approx(0.2)
    assert entry["stderr"] == pytest.approx(math.sqrt(((0.4 - 0.2) ** 2 + 0.2**2) / 1 / 2))
    assert (entry["n"], entry["chance"], entry["samples_per_problem"]) == (2, 0.0, 5)
    assert entry["pass_at_k"] == pytest.approx({"1": 0.2, "2": 0.35, "5": 0.5})
    assert entry["unique"] == {"all": 2.5, "passed": 0.5, "failed": 2.0}
    assert entry["reasons"] == {"failed assertion": 7, "passed": 2, "timed out": 1}
    assert entry["examples"] == [
        {"id": "p0", "correct": 0.4, "unique": {"all": 4, "passed": 1, "failed": 3}},
        {"id": "p1", "correct": 0.0, "unique": {"all": 1, "passed": 0, "failed": 1}},
    ]
    assert json.loads(json.dumps(entry)) == entry


def test_one_problem_has_no_standard_error() -> None:
    assert summarize(["p"], [["a"]], [[PASSED]], ks=[1])["stderr"] is None


def test_uneven_or_no_problems_are_refused() -> None:
    with pytest.raises(EvalError, match="expected 2: p1: 1 generations, 1 verdicts"):
        summarize(["p0", "p1"], [["a", "b"], ["a"]], [[PASSED] * 2, [PASSED]], ks=[1])
    with pytest.raises(EvalError, match="p0: 1 generations, 2 verdicts"):
        summarize(["p0"], [["a"]], [[PASSED] * 2], ks=[1])
    with pytest.raises(EvalError, match="there are none"):
        summarize([], [], [], ks=[1])
