"""Spread over a grid: against numpy, by hand, and with runs that diverged."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.arithmetic.spread import Trial, by_configuration, over_configurations, seed_deviation, spread

values = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


@given(values, st.booleans())
def test_the_numbers_are_numpys(given_values: list[float], higher: bool) -> None:
    found = spread(given_values, higher_is_better=higher)
    ends = (max(given_values), min(given_values))
    assert (found.best, found.worst) == (ends if higher else ends[::-1])
    assert found.median == pytest.approx(np.median(given_values))
    assert found.range == pytest.approx(np.ptp(given_values))
    assert found.iqr == pytest.approx(np.percentile(given_values, 75) - np.percentile(given_values, 25))
    if len(given_values) > 1:
        assert found.std == pytest.approx(np.std(given_values, ddof=1))
    assert (found.n, found.diverged) == (len(given_values), 0)
    assert found.median_of_all == found.median


def test_diverged_runs_are_counted_and_come_last() -> None:
    found = spread([0.6, None, 0.7, math.nan, 0.5])
    assert (found.best, found.median, found.worst, found.n, found.diverged) == (0.7, 0.6, 0.5, 3, 2)
    assert found.range == pytest.approx(0.2)
    assert found.median_of_all == 0.5


def test_without_a_value_a_diverged_run_is_infinitely_bad() -> None:
    accuracy = spread([0.6, math.inf, 0.7])
    assert accuracy.median_of_all == 0.6
    loss = spread([2.0, None, 1.0], higher_is_better=False)
    assert (loss.best, loss.worst, loss.median_of_all) == (1.0, 2.0, 2.0)
    assert spread([1.0, None, None]).median_of_all == -math.inf


def test_nothing_but_diverged_runs() -> None:
    found = spread([None, None])
    assert (found.n, found.diverged) == (0, 2)
    assert math.isnan(found.best)
    assert math.isnan(found.range)
    assert found.median_of_all == -math.inf
    assert math.isnan(spread([]).median_of_all)
    assert math.isnan(spread([1.0]).std)
    as_json = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert (as_json["best"], as_json["median_of_all"], as_json["diverged"]) == (None, None, 2)


GRID = [
    Trial(method="LoRA", value=0.5, lr=1e-4, batch=16, seed=1),
    Trial(method="LoRA", value=0.7, lr=1e-4, batch=16, seed=2),
    Trial(method="LoRA", value=0.2, lr=1e-3, batch=16, seed=1),
    Trial(method="LoRA", value=None, lr=1e-3, batch=16, seed=2),
    Trial(method="LoRA", value=math.nan, lr=1e-2, batch=16, seed=1),
    Trial(method="LoRA", value=0.4, lr=1e-3, batch=32, seed=1),
    Trial(method="LoRA", value=0.8, lr=1e-3, batch=32, seed=2),
]


def test_trials_are_grouped_by_configuration() -> None:
    assert by_configuration(GRID) == {
        (1e-4, 16): [0.5, 0.7],
        (1e-3, 16): [0.2],
        (1e-2, 16): [],
        (1e-3, 32): [0.4, 0.8],
    }


def test_settings_and_seeds_are_told_apart() -> None:
    assert over_configurations(GRID) == pytest.approx([0.6, 0.2, None, 0.6])
    found = spread(over_configurations(GRID))
    assert (found.n, found.diverged, found.range) == (3, 1, pytest.approx(0.4))
    # Two pairs: squared deviations 2 * 0.1^2 and 2 * 0.2^2, one degree of freedom each.
    assert seed_deviation(GRID) == pytest.approx(math.sqrt((0.02 + 0.08) / 2))
    assert math.isnan(seed_deviation(GRID[2:3]))
