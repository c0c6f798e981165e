from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.code.passing import mean_pass_at_k, pass_at_k
from evals.errors import EvalError


def test_a_known_value() -> None:
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)


@given(st.integers(1, 7), st.data())
def test_it_is_the_share_of_subsets_with_a_passing_sample(samples: int, data: st.DataObject) -> None:
    passed, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    subsets = list(itertools.combinations(range(samples), k))
    expected = sum(min(subset) < passed for subset in subsets) / len(subsets)
    assert pass_at_k(samples, passed, k) == pytest.approx(expected, abs=1e-15)


@given(st.integers(0, 256), st.integers(1, 256))
def test_it_equals_the_quotient_of_binomials_at_256_samples(passed: int, k: int) -> None:
    expected = 1 - Fraction(math.comb(256 - passed, k), math.comb(256, k))
    assert pass_at_k(256, passed, k) == pytest.approx(float(expected), abs=1e-12)


def test_pass_at_1_is_the_share_that_passed() -> None:
    assert pass_at_k(50, 7, 1) == pytest.approx(7 / 50)
    assert mean_pass_at_k(50, [7, 0, 50], 1) == pytest.approx(57 / 150)


@pytest.mark.parametrize(("samples", "passed", "k"), [(5, 6, 1), (5, -1, 1), (5, 2, 0), (5, 2, 6), (0, 0, 1)])
def test_what_is_not_defined_is_refused(samples: int, passed: int, k: int) -> None:
    with pytest.raises(EvalError, match=f"pass@{k} of {samples} samples, {passed} of them passed, is not defined"):
        pass_at_k(samples, passed, k)
