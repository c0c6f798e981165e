"""Shared draws against scipy's bootstrap and the one for single comparisons."""

from __future__ import annotations

import numpy as np
import pytest

from evals.arithmetic.bootstrap import interval
from evals.arithmetic.forgetting import Changes
from evals.collect.intervals import DRAWS, draw, percentiles


def changed(deltas: np.ndarray, weights: np.ndarray | None = None, groups: list[str] | None = None) -> Changes:
    ids = tuple(str(i) for i in range(len(deltas)))
    ones = np.ones(len(deltas))
    return Changes("accuracy", ids, deltas, ones if weights is None else weights, tuple(groups or ids))


def some_deltas(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], count, p=[0.2, 0.7, 0.1])


def test_interval_of_a_mean_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    deltas = some_deltas(300)
    low, high = percentiles([draw(changed(deltas), 0)])
    theirs = stats.bootstrap((deltas,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert low == pytest.approx(theirs.low, abs=0.08 * width)
    assert high == pytest.approx(theirs.high, abs=0.08 * width)


@pytest.mark.parametrize("has_groups", [False, True])
def test_interval_of_a_mean_of_ratios_is_near_that_of_a_single_comparison(has_groups: bool) -> None:
    rng = np.random.default_rng(3)
    tasks = []
    for count in (120, 120, 250):
        groups = [str(i // 3) for i in range(count)] if has_groups else None
        tasks.append(changed(rng.normal(0.3, 1, count), rng.uniform(1, 5, count), groups))
    low, high = percentiles([draw(task, i) for i, task in enumerate(tasks)])
    their_low, their_high = interval(tasks)
    assert low is not None
    assert high is not None
    assert their_low is not None
    assert their_high is not None
    assert (low, high) == pytest.approx((their_low, their_high), abs=0.1 * (their_high - their_low))


def test_draws_of_one_stream_are_shared_and_those_of_others_independent() -> None:
    one = changed(some_deltas(200))
    first, again, other = draw(one, 0), draw(one, 0), draw(one, 1)
    assert first is not None
    assert first.shape == (DRAWS,)
    assert np.array_equal(first, again)
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.15
    # Drawn together, a difference of the same questions has no spread where the tasks have none.
    shifted = draw(changed(some_deltas(200) + 0.25), 0)
    assert np.allclose(shifted - first, 0.25, atol=1e-6)


def test_one_unit_has_no_interval() -> None:
    assert draw(changed(np.array([1.0])), 0) is None
    assert draw(changed(np.array([1.0, 0.0]), groups=["a", "a"]), 0) is None
    assert percentiles([draw(changed(some_deltas(9)), 0), None]) == (None, None)
    assert percentiles([]) == (None, None)
