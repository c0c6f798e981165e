"""Intervals against simulations with known truth, and against scipy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from evals.claims.estimates import (
    DRAWS,
    FAILS,
    HOLDS,
    UNDECIDED,
    Floats,
    Measured,
    holm,
    measure,
    scores,
    variance_ratio,
)


def difference(a: Floats, b: Floats) -> Floats:
    return a - b


def simulated(rng: np.random.Generator, *, seeds: int, documents: int, by_seed: float, by_document: float) -> Measured:
    """A difference of 0.1 between two methods whose runs share seeds' and documents' effects, and have their own."""
    sizes = rng.integers(500, 3000, documents).astype(float)
    shared = rng.normal(0, 5, (seeds, 1)) + rng.normal(0, 5, documents)
    own = (
        rng.normal(0, by_seed, (seeds, 1))
        + rng.normal(0, by_document, documents)
        + rng.normal(0, 0.05, (seeds, documents))
    )
    ours, theirs = shared + 0.1 + own, shared
    series = [np.stack([scores([row * sizes], [sizes]) for row in each], axis=1) for each in (ours, theirs)]
    return measure(difference, *series, units=documents)


@pytest.mark.parametrize(("by_seed", "by_document"), [(0.1, 0.0), (0.0, 0.5), (0.06, 0.4), (0.02, 0.1)])
def test_the_interval_covers_the_truth_with_three_seeds(by_seed: float, by_document: float) -> None:
    rng = np.random.default_rng(0)
    found = [simulated(rng, seeds=3, documents=50, by_seed=by_seed, by_document=by_document) for _ in range(150)]
    covered = np.mean([each.low <= 0.1 <= each.high for each in found])
    # Of 150 draws with a coverage of 95 %, 1 in 1,000 has less than 89 %.
    assert covered >= 0.90


def test_the_bootstrap_alone_would_be_too_narrow_with_three_seeds() -> None:
    rng = np.random.default_rng(1)
    found = [simulated(rng, seeds=3, documents=50, by_seed=0.1, by_document=0.0) for _ in range(150)]
    assert np.mean([each.boot_low <= 0.1 <= each.boot_high for each in found]) < 0.85


def test_what_runs_share_of_seeds_and_documents_cancels() -> None:
    found = simulated(np.random.default_rng(2), seeds=3, documents=50, by_seed=0.0, by_document=0.0)
    assert found.high - found.low < 0.1
    assert found.value == pytest.approx(0.1, abs=0.02)
    assert found.verdict == HOLDS


def test_with_exact_documents_t_is_scipys() -> None:
    values = np.array([0.1, 0.3, 0.15, 0.22])
    series = np.repeat(values[None], 1 + DRAWS, axis=0)
    found = measure(lambda x: x, series, units=30)
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert (found.t_low, found.t_high) == pytest.approx((low, high))
    assert found.degrees == pytest.approx(3)
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_with_equal_seeds_it_is_the_documents_interval() -> None:
    rng = np.random.default_rng(3)
    deltas = rng.normal(0.1, 0.3, 60)
    one = scores([deltas], [np.ones(60)])
    found = measure(lambda x: x, np.stack([one] * 3, axis=1), units=60)
    assert found.boot_low == pytest.approx(np.quantile(one[1:], 0.025))
    low, high = stats.t.interval(0.95, 59, deltas.mean(), stats.sem(deltas))
    assert (found.t_low, found.t_high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_scores_are_means_over_tasks_of_ratios_of_sums() -> None:
    y, x = [np.array([1.0, 2.0, 6.0]), np.array([4.0, 4.0])], [np.array([1.0, 1.0, 1.0]), np.array([1.0, 3.0])]
    found = scores(y, x)
    assert found.shape == (1 + DRAWS,)
    assert found[0] == pytest.approx((3.0 + 2.0) / 2)
    # Drawn alike in all calls.
    assert np.array_equal(found, scores(y, x))
    assert found[1:].min() >= (1 + 4 / 3) / 2 - 1e-6
    assert found[1:].max() <= (6 + 4) / 2 + 1e-6


@pytest.mark.parametrize(
    ("values", "verdict"),
    [((0.30, 0.31, 0.32), HOLDS), ((-0.30, -0.31, -0.32), FAILS), ((-0.3, 0.1, 0.3), UNDECIDED), ((0.3,), UNDECIDED)],
)
def test_verdicts(values: tuple[float, ...], verdict: str) -> None:
    series = np.repeat(np.array(values)[None], 1 + DRAWS, axis=0)
    assert measure(lambda x: x, series, units=30).verdict == verdict


def test_a_threshold_is_what_the_interval_is_compared_with() -> None:
    series = np.repeat(np.array([11.0, 12.0, 11.5])[None], 1 + DRAWS, axis=0)
    assert measure(lambda x: x, series, units=30, threshold=8.0).verdict == HOLDS
    assert measure(lambda x: x, series, units=30, threshold=20.0).verdict == FAILS


def test_one_seed_has_the_documents_interval_and_no_verdict() -> None:
    one = scores([np.linspace(1, 2, 40)], [np.ones(40)])
    found = measure(lambda x: x, one[:, None], units=40)
    assert math.isnan(found.t_low)
    assert math.isnan(found.p)
    assert (found.low, found.high) == (found.boot_low, found.boot_high)
    assert found.low > 0
    assert found.verdict == UNDECIDED


def test_an_undefined_statistic_has_no_interval() -> None:
    found = measure(lambda x: np.full(len(x), np.nan), np.ones((1 + DRAWS, 3)), units=40)
    assert not found.has_interval
    assert math.isnan(found.low)
    assert found.verdict == UNDECIDED


def test_one_document_has_no_bootstrap() -> None:
    found = measure(lambda x: x, np.repeat(np.array([0.1, 0.2, 0.3])[None], 1 + DRAWS, axis=0), units=1)
    assert math.isnan(found.boot_low)
    assert found.t_low < 0.2 < found.t_high


def test_the_p_value_has_no_more_degrees_of_freedom_than_seeds_allow() -> None:
    rng = np.random.default_rng(5)
    found = simulated(rng, seeds=3, documents=50, by_seed=0.0, by_document=0.1)
    assert found.degrees > 10
    error = (found.t_high - found.value) / float(stats.t.ppf(0.975, found.degrees))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.value) / error, 2))
    assert found.verdict == HOLDS


def test_the_ratio_of_deviations_covers_the_truth() -> None:
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(400):
        found = variance_ratio(rng.normal(0, 1, (3, 3)), rng.normal(0, 2, (3, 3)))
        assert found is not None
        covered.append(found.t_low <= 2 <= found.t_high)
    assert 0.92 < np.mean(covered) < 0.98


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.normal(0, [1, 1, 5], (3, 3)),
        lambda rng: rng.standard_t(3, (3, 3)),
    ],
    ids=["one setting noisier", "heavy tails"],
)
def test_equal_noise_of_any_kind_is_no_ratio(draw: Callable[[np.random.Generator], Floats]) -> None:
    rng = np.random.default_rng(6)
    found = [variance_ratio(draw(rng), draw(rng)) for _ in range(400)]
    # At 5 %, 1 in 1,000 times there are more than 34 of 400.
    assert sum(each is not None and each.verdict != UNDECIDED for each in found) <= 34


def test_the_ratio_of_deviations_against_its_formula() -> None:
    ours, theirs = np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 2.0]]), np.array([[0.0, 4.0], [2.0, 0.0], [4.0, 8.0]])
    found = variance_ratio(ours, theirs)
    assert found is not None
    # Variances of 1 and 1 against 4 and 16.
    assert found.value == pytest.approx(8**0.5)
    logs = np.log([4.0, 16.0])
    low, high = stats.t.interval(0.95, 1, logs.mean(), stats.sem(logs))
    assert (found.t_low, found.t_high) == pytest.approx((math.exp(low / 2), math.exp(high / 2)))
    assert found.p == pytest.approx(stats.ttest_1samp(logs, 0).pvalue)
    assert (found.degrees, found.threshold) == (1, 1.0)
    assert variance_ratio(np.zeros((3, 2)), theirs) is None


def test_holms_correction() -> None:
    assert holm([0.01, math.nan, 0.04, 0.03]) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
