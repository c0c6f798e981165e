from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evals.code.policy import Policy
from evals.code.program import Program
from evals.errors import EvalError

PROGRAM = Program(id="p", sample=0, source="def f(): pass", test="f()", entry_point="f")


def test_the_key_is_of_all_that_the_verdict_depends_on() -> None:
    key = PROGRAM.key(Policy())
    assert key == replace(PROGRAM, id="q", sample=1).key(Policy())
    others = [replace(PROGRAM, source="x").key(Policy()), replace(PROGRAM, test="x").key(Policy())]
    others += [replace(PROGRAM, entry_point="x").key(Policy()), PROGRAM.key(Policy(wall_seconds=1))]
    others += [replace(PROGRAM, source="def f(): pass\ud800").key(Policy())]
    assert len({key, *others}) == 6


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_must_be_positive_and_finite(value: float) -> None:
    wrong: dict[str, Any] = {"wall_seconds": value, "processes": value}
    with pytest.raises(EvalError, match=f"wall_seconds is {value}, processes is {value}"):
        Policy(**wrong)
