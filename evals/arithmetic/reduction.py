"""How much less one method's results depend on the settings than another's: "62 % lower spread", with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evals.arithmetic.spread import Trial, by_configuration
from evals.errors import EvalError

RESAMPLES = 10_000
Measure = Literal["range", "std"]


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """How much less a method's results spread over settings than a reference's; seeds are averaged at equal settings.

    Attributes:
        measure: range (worst-best gap) or std.
        spread: the method's.
        reference: the reference method's.
        difference: spread - reference; negative = the method is more robust.
        low: lower end of the 95 % bootstrap interval of the difference.
        high: upper end.
        relative: 1 - spread / reference: 0.62 = 62 % lower spread. nan where the reference has none.
        relative_low: lower end of its 95 % bootstrap interval.
        relative_high: upper end.
        is_paired: the methods have the same configurations, which are drawn together.
        configurations: of the method and of the reference, those with a value.
        diverged: runs of the method and of the reference that diverged; they are left out.
    """

    measure: str
    spread: float
    reference: float
    difference: float
    low: float
    high: float
    relative: float
    relative_low: float
    relative_high: float
    is_paired: bool
    configurations: tuple[int, int]
    diverged: tuple[int, int]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: numbers that it lacks are None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def reduction(
    trials: Sequence[Trial],
    reference: Sequence[Trial],
    measure: Measure = "range",
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Reduction:
    """Compare two methods' spreads over their settings, with percentile bootstrap intervals.

    A configuration's value is the mean over its seeds, so that the spread is that of the settings; configurations are drawn
    with replacement. A draw never reaches beyond the runs there are, so the interval of a range is too narrow on small
    grids; that of the standard deviation is the sounder one.

    Raises:
        EvalError: a method has fewer than two configurations with a value.
    """
    ours, theirs = ({c: v for c, v in by_configuration(each).items() if v} for each in (trials, reference))
    for each, found in ((trials, ours), (reference, theirs)):
        if len(found) < 2:
            name = each[0].method if each else "a method"
            raise EvalError(
                f"{name}: {len(found)} configuration with a value; a spread over settings needs runs at two or more "
                "learning rates or batch sizes"
            )
    is_paired = ours.keys() == theirs.keys()
    order = list(ours) if is_paired else list(theirs)
    ours_means = np.array([np.mean(values) for values in ours.values()])
    theirs_means = np.array([np.mean(theirs[key]) for key in order])
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(ours), (resamples, len(ours)))
    drawn_theirs = drawn if is_paired else rng.integers(0, len(theirs), (resamples, len(theirs)))
    ours_spreads = _spreads(ours_means[drawn], measure)
    theirs_spreads = _spreads(theirs_means[drawn_theirs], measure)
    value, base = (float(_spreads(means[None], measure)[0]) for means in (ours_means, theirs_means))
    low, high = np.quantile(ours_spreads - theirs_spreads, (0.025, 0.975))
    has_base = theirs_spreads > 0
    ratios = 1 - ours_spreads[has_base] / theirs_spreads[has_base]
    relative_low, relative_high = np.quantile(ratios, (0.025, 0.975)) if ratios.size else (math.nan, math.nan)
    return Reduction(
        measure=measure,
        spread=value,
        reference=base,
        difference=value - base,
        low=float(low),
        high=float(high),
        relative=1 - value / base if base > 0 else math.nan,
        relative_low=float(relative_low),
        relative_high=float(relative_high),
        is_paired=is_paired,
        configurations=(len(ours), len(theirs)),
        diverged=(len(trials) - sum(map(len, ours.values())), len(reference) - sum(map(len, theirs.values()))),
    )


def _spreads(values: NDArray[np.float64], measure: Measure) -> NDArray[np.float64]:
    """[draws, configurations] -> [draws]."""
    return np.asarray(np.ptp(values, axis=1) if measure == "range" else values.std(axis=1, ddof=1))
