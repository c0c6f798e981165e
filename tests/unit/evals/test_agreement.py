"""A process alone agrees with itself; several are in tests/distributed/test_score_folder.py."""

from __future__ import annotations

import pytest

from evals.agreement import CommonError, gathered, made_by_all
from evals.errors import EvalError


def fail(error: Exception) -> None:
    raise error


def test_alone_what_is_made_is_what_is_returned() -> None:
    assert gathered("a", 1) == ["a"]
    assert made_by_all(lambda: 3, 1) == 3


@pytest.mark.parametrize("error", [EvalError("wrong"), OSError(12, "no memory"), KeyError("x")])
def test_alone_an_error_is_raised_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        made_by_all(lambda: fail(error), 1)
    assert caught.value is error
    assert not isinstance(error, CommonError)
