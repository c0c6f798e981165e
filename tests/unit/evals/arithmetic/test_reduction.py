"""Lower spread: by hand, against direct resampling, and where it cannot be had."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evals.arithmetic.reduction import Measure, reduction
from evals.arithmetic.spread import Trial
from evals.errors import EvalError

RATES = (1e-5, 5e-5, 1e-4, 5e-4, 1e-3)


def grid(method: str, values: list[list[float | None]]) -> list[Trial]:
    """A row of seeds per learning rate."""
    return [
        Trial(method=method, value=value, lr=rate, batch=16, seed=seed)
        for rate, row in zip(RATES, values, strict=False)
        for seed, value in enumerate(row)
    ]


WIDE = grid("LoRA", [[0.30, 0.35], [0.50, 0.52], [0.60, 0.61], [0.58, 0.50], [0.20, 0.40]])
NARROW = grid("MonteCLoRA", [[0.50, 0.52], [0.56, 0.57], [0.60, 0.61], [0.59, 0.58], [0.50, 0.53]])


@pytest.mark.parametrize("measure", ["range", "std"])
def test_the_difference_and_its_interval(measure: Measure) -> None:
    def measured(values: np.ndarray) -> float:
        return float(np.ptp(values) if measure == "range" else np.std(values, ddof=1))

    narrow, wide = (np.array([t.value for t in trials]).reshape(5, 2).mean(axis=1) for trials in (NARROW, WIDE))
    found = reduction(NARROW, WIDE, measure)
    assert found.spread == pytest.approx(measured(narrow))
    assert found.reference == pytest.approx(measured(wide))
    assert found.difference == pytest.approx(measured(narrow) - measured(wide))
    assert found.relative == pytest.approx(1 - measured(narrow) / measured(wide))
    rng = np.random.default_rng(1)
    picks = [rng.integers(0, 5, 5) for _ in range(4000)]
    differences = [measured(narrow[pick]) - measured(wide[pick]) for pick in picks]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(differences, (0.025, 0.975))), abs=0.02)
    assert found.high < 0 < found.relative_low <= found.relative <= found.relative_high
    assert (found.is_paired, found.configurations, found.diverged) == (True, (5, 5), (0, 0))


def test_the_order_of_the_trials_does_not_matter() -> None:
    assert reduction(NARROW, WIDE[::-1]) == reduction(NARROW, WIDE)
    assert reduction(NARROW, WIDE, "std", seed=1) != reduction(NARROW, WIDE, "std", seed=2)


def test_a_method_against_itself_is_no_different() -> None:
    found = reduction(WIDE, WIDE)
    assert (found.difference, found.low, found.high, found.relative) == (0, 0, 0, 0)


def test_other_grids_are_drawn_on_their_own() -> None:
    found = reduction(NARROW, WIDE[:6])
    assert (found.is_paired, found.configurations) == (False, (5, 3))


def test_diverged_runs_are_counted_and_left_out() -> None:
    broken = grid("MonteCLoRA", [[0.5, None], [0.56, 0.57], [0.6, math.nan], [math.inf, None], [0.5, 0.53]])
    for measure in ("range", "std"):
        found = reduction(broken, WIDE, measure)  # type: ignore[arg-type]
        assert (found.diverged, found.configurations) == ((4, 0), (4, 5))
        known = [0.5, 0.565, 0.6, 0.515]
        assert found.spread == pytest.approx(np.ptp(known) if measure == "range" else np.std(known, ddof=1))
        assert math.isfinite(found.low)


def test_a_reference_without_spread_has_no_relative_reduction() -> None:
    flat = grid("LoRA", [[0.5], [0.5], [0.5]])
    found = reduction(NARROW, flat)
    assert found.difference == pytest.approx(0.605 - 0.51)
    assert math.isnan(found.relative)
    assert (found.as_dict()["relative"], found.as_dict()["configurations"]) == (None, (5, 3))
    assert math.isnan(found.relative_low)


@pytest.mark.parametrize("trials", [[], grid("LoRA", [[0.5, 0.6]]), grid("LoRA", [[0.5], [None]])])
def test_a_single_configuration_has_no_spread(trials: list[Trial]) -> None:
    name = "LoRA" if trials else "a method"
    with pytest.raises(
        EvalError, match=f"{name}: {min(len(trials), 1)} configuration with a value; a spread over sett"
    ):
        reduction(NARROW, trials)


def test_seeds_are_no_settings() -> None:
    quiet = grid("LoRA", [[0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
    wide = grid("LoRA", [[0.4, 0.4], [0.5, 0.5], [0.6, 0.6]])
    assert reduction(quiet, wide).spread == pytest.approx(0, abs=1e-12)
    assert reduction(quiet, wide).relative == pytest.approx(1)
