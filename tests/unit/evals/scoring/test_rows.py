"""Rows that fit a model, or are made to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.errors import EvalError
from evals.scoring.rows import Row, fit


@given(st.integers(2, 30), st.integers(1, 29), st.integers(1, 30))
def test_the_last_tokens_are_kept(length: int, first: int, max_length: int) -> None:
    row = Row(tuple(range(length)), first=min(first, length - 1))
    scored = length - row.first
    if scored > max_length:
        with pytest.raises(
            EvalError, match=f"{scored} tokens of a row are to be scored, and the model reads {max_length}"
        ):
            fit(row, max_length)
        return
    fitted, is_truncated = fit(row, max_length)
    assert fitted.ids == row.ids[-(max_length + 1) :]
    assert fitted.ids[fitted.first :] == row.ids[row.first :]
    assert fitted.first >= 1
    assert is_truncated == (length - 1 > max_length)
    assert is_truncated or fitted is row


@pytest.mark.parametrize("row", [Row((1, 2), first=0), Row((1, 2), first=2), Row((), first=1)])
def test_a_scored_token_needs_one_before_it(row: Row) -> None:
    with pytest.raises(EvalError, match="give the row a context, or the tokenizer's BOS token"):
        fit(row, 10)
