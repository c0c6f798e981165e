"""Shared draws against scipy's bootstrap and the one for single comparisons."""

from __future__ import annotations

import numpy as np
import pytest

from evals.arithmetic import bootstrap
from evals.arithmetic.forgetting import Changes
from evals.collect.intervals import interval


def changed(deltas: np.ndarray, weights: np.ndarray | None = None, groups: list[str] | None = None) -> Changes:
    ids = tuple(str(i) for i in range(len(deltas)))
    ones = np.ones(len(deltas))
    return Changes("accuracy", ids, deltas, ones if weights is None else weights, tuple(groups or ids))


def some_deltas(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], count, p=[0.2, 0.7, 0.1])


def test_interval_of_a_mean_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    deltas = some_deltas(300)
    low, high = interval(changed(deltas))
    theirs = stats.bootstrap((deltas,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert low == pytest.approx(theirs.low, abs=0.08 * width)
    assert high == pytest.approx(theirs.high, abs=0.08 * width)


@pytest.mark.parametrize("has_groups", [False, True])
def test_interval_of_a_ratio_is_near_that_of_a_single_comparison(has_groups: bool) -> None:
    rng = np.random.default_rng(3)
    groups = [str(i // 3) for i in range(250)] if has_groups else None
    task = changed(rng.normal(0.3, 1, 250), rng.uniform(1, 5, 250), groups)
    low, high = bootstrap.interval([task])
    assert low is not None
    assert high is not None
    assert interval(task) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_tasks_of_a_size_share_their_draws() -> None:
    deltas = some_deltas(200)
    low, high = interval(changed(deltas))
    assert low is not None
    assert high is not None
    # Of the same draws, a difference of the same questions without spread is the same everywhere.
    assert interval(changed(deltas + 0.25)) == pytest.approx((low + 0.25, high + 0.25), abs=1e-6)


def test_one_unit_has_no_interval() -> None:
    assert interval(changed(np.array([1.0]))) == (None, None)
    assert interval(changed(np.array([1.0, 0.0]), groups=["a", "a"])) == (None, None)
