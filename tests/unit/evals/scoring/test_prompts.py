"""What a prompt may say, and what of it is read."""

from __future__ import annotations

from typing import Any

import pytest

from evals.scoring.prompts import Prompt, fit

PROBLEMS: dict[str, dict[str, Any]] = {
    "has no tokens; give it at least the token that begins a text": {"ids": ()},
    "max_new_tokens = 0; ask for 1 or more": {"max_new_tokens": 0},
    "max_new_tokens = 16 leaves no room for the prompt in the model's 16 tokens; set it to 15 or less": {
        "max_new_tokens": 16
    },
    "samples = 0; ask for 1 or more": {"samples": 0},
    "temperature = -0.5; use 0 for the likeliest token, or a positive number": {"temperature": -0.5},
    "temperature = nan; use 0 for the likeliest token, or a positive number": {"temperature": float("nan")},
    "top_p = 1.5; use a probability above 0, 1 for all tokens": {"top_p": 1.5},
    "top_k = -1; use a number of tokens, 0 for all": {"top_k": -1},
}


@pytest.mark.parametrize("message", PROBLEMS)
def test_what_is_wrong_is_said(message: str) -> None:
    settings: dict[str, Any] = {"ids": (1, 2), "max_new_tokens": 5} | PROBLEMS[message]
    assert Prompt(**settings).problems(16) == [message]


def test_a_prompt_without_problems() -> None:
    assert (
        Prompt(ids=(1,), max_new_tokens=15, samples=3, temperature=2.0, top_p=0.1, top_k=1, seed=-1).problems(16) == []
    )


@pytest.mark.parametrize(("length", "is_truncated"), [(9, False), (10, False), (11, True), (30, True)])
def test_the_end_of_a_long_prompt_is_read(length: int, is_truncated: bool) -> None:
    ids = tuple(range(length))
    assert fit(Prompt(ids=ids, max_new_tokens=6), 16) == (ids[-10:], is_truncated)
