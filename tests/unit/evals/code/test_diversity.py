from __future__ import annotations

import pytest

from evals.code.diversity import count_unique, mean_unique


def test_unique_strings_split_by_verdict() -> None:
    generations = ["a", "a", "b", "b ", "c"]
    assert count_unique(generations, [True, True, False, False, True]) == {"all": 4, "passed": 2, "failed": 2}


def test_a_text_with_both_verdicts_counts_in_both_parts() -> None:
    assert count_unique(["a", "a"], [True, False]) == {"all": 1, "passed": 1, "failed": 1}


def test_the_mean_is_over_problems() -> None:
    counts = [count_unique(["a", "b"], [True, True]), count_unique(["a", "a"], [False, False])]
    assert mean_unique(counts) == {"all": 1.5, "passed": 1.0, "failed": 0.5}


def test_as_many_verdicts_as_generations() -> None:
    with pytest.raises(ValueError, match="zip"):
        count_unique(["a"], [True, False])
