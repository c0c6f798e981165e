"""Stop strings: found with the token that ends them, from tokens that cut text anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.models.utils import postprocess_generated_text

from evals.scoring.stop_sequences import StopSearch, cut

PIECES = ["", "a", "b", "ab", "ba", "\n", "aab", " b", "\nab", "é", "b\n\n"]
STOPS = st.lists(st.text("ab\n é", min_size=1, max_size=4), max_size=3)


def decode(ids: Sequence[int]) -> str:
    return "".join(PIECES[token] for token in ids)


@given(st.text("ab\n", max_size=12), st.lists(st.text("ab\n", max_size=3), max_size=3))
def test_a_text_is_cut_as_the_harness_cuts_it(text: str, stop: list[str]) -> None:
    assert cut(text, stop) == postprocess_generated_text(text, stop, None)


@given(st.lists(st.integers(1, len(PIECES) - 1), min_size=1, max_size=20), STOPS)
def test_a_sequence_is_complete_with_the_first_stop_string(ids: list[int], stop: list[str]) -> None:
    search = StopSearch(decode, stop)
    for length in range(1, len(ids) + 1):
        has_stop = any(string in decode(ids[:length]) for string in stop)
        assert search.is_complete(ids[:length]) == has_stop
        if has_stop:
            break


def test_little_is_decoded() -> None:
    lengths: list[int] = []

    def watched(ids: Sequence[int]) -> str:
        lengths.append(len(ids))
        return decode(ids)

    search = StopSearch(watched, ["bb"])
    for length in range(1, 500):
        assert not search.is_complete([1, 2] * length)
    assert max(lengths) == 3
    lengths.clear()
    assert not search.is_complete([2] * 50 + [1])
    assert max(lengths, default=0) <= 1
    assert not StopSearch(watched, []).is_complete([1])


def test_a_decoder_that_drops_the_first_space() -> None:
    def stripping(ids: Sequence[int]) -> str:
        return decode(ids).removeprefix(" ")

    search = StopSearch(stripping, [" b"])
    assert search.is_complete([1] * 10 + [7])
    assert not search.is_complete([7])


@pytest.mark.parametrize("stop", [[], [""]])
def test_without_stop_strings_nothing_ends(stop: list[str]) -> None:
    assert not StopSearch(decode, stop).is_complete([1, 2])
    assert cut("ab", stop) == "ab"
