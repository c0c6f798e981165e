"""The ratio estimator against hand computation, the textbook mean and the jackknife."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.arithmetic.estimators import ratio

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=30)


def test_by_hand() -> None:
    # R = 6 / 4 = 1.5; residuals 1 - 1.5 = -0.5 and 5 - 4.5 = 0.5; se = sqrt(2 / 1 * 0.5) / 4 = 0.25.
    assert ratio([1, 5], [1, 3]) == (1.5, 0.25)


@given(VALUES)
def test_with_equal_weights_it_is_the_mean(values: list[float]) -> None:
    value, stderr = ratio(values, np.ones(len(values)))
    assert value == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert stderr == pytest.approx(statistics.stdev(values) / len(values) ** 0.5, abs=1e-9)


def test_agrees_with_the_jackknife_on_many_units() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(50, 150, 400).astype(float)
    y = x * rng.normal(2, 0.3, 400)
    value, stderr = ratio(y, x)
    left_out = (y.sum() - y) / (x.sum() - x)
    jackknife = np.sqrt(399 / 400 * ((left_out - left_out.mean()) ** 2).sum())
    assert value == pytest.approx(y.sum() / x.sum())
    assert stderr == pytest.approx(jackknife, rel=0.01)


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(0.5, 5), st.integers(0, 4)), min_size=1, max_size=30))
def test_groups_are_sums_of_their_units(units: list[tuple[float, float, int]]) -> None:
    y, x, groups = zip(*units, strict=True)
    names = sorted(set(groups))
    sums = [[sum(u[k] for u in units if u[2] == name) for name in names] for k in (0, 1)]
    assert ratio(y, x, groups) == (
        pytest.approx(ratio(*sums)[0], abs=1e-9),
        ratio(*sums)[1] and pytest.approx(ratio(*sums)[1], abs=1e-9),
    )


def test_a_single_unit_has_no_spread() -> None:
    assert ratio([3.0], [2.0]) == (1.5, None)
    assert ratio([1.0, 2.0], [1.0, 1.0], ["a", "a"]) == (1.5, None)
