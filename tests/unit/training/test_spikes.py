from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.spikes import is_spike, remembered

CALM = [2.0, 2.1, 1.9, 2.05, 1.95, 2.0, 2.1, 1.9]


@pytest.mark.parametrize(
    ("loss", "expected"), [(2.0, False), (2.2, False), (2.4, True), (9.0, True), (math.inf, False), (math.nan, False)]
)
def test_far_above_the_recent_losses(loss: float, expected: bool) -> None:
    # Standard deviation 0.071; a loss that is not finite is skipped anyway.
    assert is_spike(loss, CALM, deviations=4, window=8) is expected


def test_not_before_there_are_enough_losses_and_not_when_off() -> None:
    assert not is_spike(9.0, CALM, deviations=4, window=9)
    assert not is_spike(9.0, CALM, deviations=0, window=8)


def test_a_run_that_has_converged_has_no_spikes_of_rounding() -> None:
    flat = [2.0] * 8
    assert not is_spike(2.001, flat, deviations=4, window=8)
    assert is_spike(2.01, flat, deviations=4, window=8)


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=20), st.floats(0.1, 50), st.floats(0.5, 8))
def test_against_numpy(recent: list[float], loss: float, deviations: float) -> None:
    expected = loss > np.mean(recent) + max(deviations * np.std(recent), 1e-3 * np.mean(recent))
    limit = np.mean(recent) + deviations * np.std(recent)
    if abs(loss - limit) > 1e-9:
        assert is_spike(loss, recent, deviations=deviations, window=len(recent)) == expected


def test_remembering() -> None:
    assert remembered([], 1.0, 3) == [1.0]
    assert remembered([1.0, 2.0, 3.0], 4.0, 3) == [2.0, 3.0, 4.0]
