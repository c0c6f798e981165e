"""Bootstrap intervals: against SciPy, against the normal interval, in a simulation, and in corners."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evals.arithmetic.bootstrap import estimate_mean, interval
from evals.arithmetic.forgetting import Changes, Estimate, average, contrast, estimate


def changes_of(
    deltas: np.ndarray | list[float],
    weights: np.ndarray | None = None,
    groups: list[str] | None = None,
    metric: str = "accuracy",
) -> Changes:
    deltas = np.asarray(deltas, dtype=np.float64)
    ids = tuple(f"d{i}" for i in range(len(deltas)))
    weights = np.ones(len(deltas)) if weights is None else np.asarray(weights, dtype=np.float64)
    return Changes(metric, ids, deltas, weights, ids if groups is None else tuple(groups))


def ends(estimate: Estimate) -> tuple[float, float]:
    assert estimate.bootstrap_low is not None
    assert estimate.bootstrap_high is not None
    return estimate.bootstrap_low, estimate.bootstrap_high


def test_a_skewed_mean_has_scipys_interval() -> None:
    deltas = np.random.default_rng(0).exponential(1.0, 40)
    reference = stats.bootstrap(
        (deltas,), np.mean, n_resamples=50_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    found = interval([changes_of(deltas)], resamples=50_000)
    assert found == pytest.approx((reference.low, reference.high), abs=0.01)
    # The interval of a skewed mean leans to the right; the normal one is symmetric.
    assert found[0] is not None
    assert found[1] is not None
    assert found[1] - deltas.mean() > 1.03 * (deltas.mean() - found[0])


def test_a_ratio_has_scipys_interval() -> None:
    rng = np.random.default_rng(3)
    weights = rng.integers(50, 4000, 30).astype(float)
    deltas = weights * rng.normal(0.1, 0.2, 30)

    def ratio(y: np.ndarray, x: np.ndarray, axis: int) -> np.ndarray:
        return y.sum(axis=axis) / x.sum(axis=axis)

    reference = stats.bootstrap(
        (deltas, weights), ratio, paired=True, n_resamples=50_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    found = interval([changes_of(deltas, weights)], resamples=50_000)
    assert found == pytest.approx((reference.low, reference.high), abs=0.003)


def test_the_mean_over_tasks_has_scipys_interval_of_independent_samples() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.exponential(1.0, 25), rng.exponential(0.5, 60)

    def mean_of_means(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return (a.mean(axis=axis) + b.mean(axis=axis)) / 2

    reference = stats.bootstrap(
        (a, b), mean_of_means, n_resamples=50_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    found = interval([changes_of(a), changes_of(b)], resamples=50_000)
    assert found == pytest.approx((reference.low, reference.high), abs=0.01)
    joined = estimate_mean([changes_of(a), changes_of(b)])
    assert joined.value == pytest.approx(average([estimate(changes_of(a)), estimate(changes_of(b))]).value)
    assert (joined.n, joined.unit) == (85, "accuracy")


@pytest.mark.parametrize("kind", ["few values", "many values"])
def test_of_many_examples_it_is_the_normal_interval(kind: str) -> None:
    rng = np.random.default_rng(2)
    deltas = (
        rng.choice([-1.0, 0.0, 1.0], 10_042, p=[0.1, 0.85, 0.05]) if kind == "few values" else rng.normal(size=10_042)
    )
    found = estimate_mean([changes_of(deltas)])
    assert found.stderr is not None
    assert ends(found) == pytest.approx((found.low, found.high), abs=0.06 * found.stderr)


def test_both_ways_of_drawing_agree() -> None:
    rng = np.random.default_rng(4)
    deltas = rng.choice([-1.0, 0.0, 1.0], 150, p=[0.2, 0.5, 0.3])
    # Differences too small to matter make every unit its own kind.
    nudged = deltas + 1e-9 * rng.normal(size=150)
    assert interval([changes_of(nudged)]) == pytest.approx(interval([changes_of(deltas)]), abs=0.015)


def test_coverage_in_a_simulation() -> None:
    """Of intervals of skewed documents' ratio, as many hold the truth as they say."""
    rng = np.random.default_rng(6)
    held, trials = 0, 400
    for trial in range(trials):
        weights = rng.lognormal(7, 0.7, 200)
        deltas = weights * (0.05 + 0.1 * (rng.exponential(1.0, 200) - 1))
        low, high = interval([changes_of(deltas, weights)], seed=trial, resamples=1000)
        assert low is not None
        assert high is not None
        held += low <= 0.05 <= high
    assert 0.92 <= held / trials <= 0.98


def test_chance_is_rarely_called_a_difference() -> None:
    """Two models that differ on about four of 200 questions, either of them right as often."""
    rng = np.random.default_rng(1)
    called, trials = 0, 500
    for trial in range(trials):
        deltas = rng.choice([-1.0, 0.0, 1.0], 200, p=[0.01, 0.98, 0.01])
        low, high = interval([changes_of(deltas)], seed=trial, resamples=1000)
        assert low is not None
        assert high is not None
        called += low > 0 or high < 0
    assert called / trials <= 0.06


def test_groups_are_drawn_not_questions() -> None:
    rng = np.random.default_rng(8)
    effect = rng.normal(0.1, 0.5, 30)
    deltas = np.repeat(effect, 20)
    documents = [f"document {i // 20}" for i in range(600)]
    grouped, alone = interval([changes_of(deltas, groups=documents)]), interval([changes_of(effect)])
    assert grouped == pytest.approx(alone, abs=0.01)
    naive = interval([changes_of(deltas)])
    assert grouped[1] is not None
    assert naive[1] is not None
    assert grouped[1] - 0.1 > 2 * (naive[1] - 0.1)


def test_two_runs_are_compared_on_the_same_examples() -> None:
    rng = np.random.default_rng(9)
    hard = rng.normal(0, 1, 200)
    a, b = changes_of(hard + 0.2, metric="nll"), changes_of(hard + rng.normal(0, 0.1, 200), metric="nll")
    low, high = ends(estimate_mean([contrast(a, b)]))
    assert 0.17 < low < high < 0.23
    apart = ends(estimate_mean([a])), ends(estimate_mean([b]))
    assert apart[0][0] < apart[1][1]


def test_the_same_seed_gives_the_same_interval() -> None:
    paired = [changes_of(np.random.default_rng(0).normal(size=300)), changes_of([0.0, 1.0, 1.0])]
    assert interval(paired) == interval(paired)
    assert interval(paired, seed=1) != interval(paired, seed=2)


def test_tasks_are_drawn_independently() -> None:
    deltas = np.random.default_rng(0).normal(size=200)
    one, four = interval([changes_of(deltas)]), interval([changes_of(deltas)] * 4)
    assert None not in (*one, *four)
    assert (four[1] - four[0]) / (one[1] - one[0]) == pytest.approx(0.5, abs=0.03)  # type: ignore[operator]


def test_a_wider_level_is_wider() -> None:
    paired = [changes_of(np.random.default_rng(0).normal(size=50))]
    narrow, wide = interval(paired, level=0.5), interval(paired, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]  # type: ignore[operator]


def test_a_single_unit_has_no_interval() -> None:
    assert interval([changes_of([1.0])]) == (None, None)
    assert interval([changes_of([1.0, 0.0]), changes_of([1.0])]) == (None, None)
    assert interval([changes_of([1.0, 0.0], groups=["a", "a"])]) == (None, None)
    found = estimate_mean([changes_of([1.0])])
    assert found.interval == (-math.inf, math.inf)
    assert "bootstrap_low" not in found.as_dict()


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=2, max_size=12))
@settings(deadline=None)
def test_ends_are_ordered_and_within_what_can_be_drawn(deltas: list[float]) -> None:
    low, high = interval([changes_of(deltas)], resamples=500)
    assert low is not None
    assert high is not None
    assert min(deltas) - 1e-12 <= low <= high <= max(deltas) + 1e-12


def test_equal_changes_have_an_interval_without_width() -> None:
    weights = np.array([3.0, 7.0, 11.0])
    assert interval([changes_of(0.1 * weights, weights)]) == (0.1, 0.1) == interval([changes_of([0.1] * 5)])
    assert interval([changes_of([0.0] * 100)]) == (0.0, 0.0)


def test_signs_turn_with_what_is_asked() -> None:
    found = estimate_mean([changes_of(np.random.default_rng(0).exponential(1.0, 30))])
    low, high = ends(found)
    turned = found.negated()
    assert ends(turned) == (-high, -low) == turned.interval
    assert turned.negated() == found
    assert found.as_dict() | {"bootstrap_low": low, "bootstrap_high": high} == found.as_dict()
