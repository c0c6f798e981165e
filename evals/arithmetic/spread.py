"""How much a method's result depends on the settings: its spread over a hyperparameter grid and seeds.

MonteCLoRA (arXiv 2411.04358) calls the spread over configurations (learning rates x batch sizes) intrinsic robustness,
the median over them extrinsic robustness, and also reports the best. Which spread is not said there: here it is the
worst-best gap, beside the interquartile range and the standard deviation. A run that diverged has no number but is a
result: it is counted, and the median is also given with every such run in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a grid. Its value is None, nan or infinite when the run diverged."""

    method: str
    value: float | None
    lr: float | None = None
    batch: int | None = None
    seed: int | None = None
    others: tuple[tuple[str, str], ...] = ()
    """What else was varied: setting and value."""
    run: str = ""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A method's values over a grid. Numbers are nan where no run gave a value.

    Attributes:
        best: of the runs that gave a value, as median, worst and the following.
        median: of an even number, the mean of the middle two.
        worst: see `best`.
        range: |best - worst|.
        iqr: distance of the quartiles, interpolated linearly.
        std: standard deviation with n - 1; nan for a single run.
        n: runs that gave a value.
        diverged: runs that gave none.
        median_of_all: median with each diverged run in the last place; infinite where the middle run diverged.
    """

    best: float
    median: float
    worst: float
    range: float
    iqr: float
    std: float
    n: int
    diverged: int
    median_of_all: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON: numbers that it lacks are None."""
        return {k: v if math.isfinite(v) else None for k, v in asdict(self).items()}


def spread(values: Iterable[float | None], *, higher_is_better: bool = True) -> Spread:
    """Summarise the values of runs that differ in settings or seeds.

    Args:
        values: one per run; None, nan and infinite ones are runs that diverged.
        higher_is_better: true of accuracy, false of NLL and of what was forgotten.
    """
    everything = list(values)
    known = np.array([value for value in everything if value is not None and math.isfinite(value)], dtype=np.float64)
    sign = 1.0 if higher_is_better else -1.0
    diverged = len(everything) - known.size
    best, worst = _ends(known, sign)
    return Spread(
        best=best,
        median=_median(known),
        worst=worst,
        range=abs(best - worst),
        iqr=float(np.subtract(*np.quantile(known, (0.75, 0.25)))) if known.size else math.nan,
        std=float(known.std(ddof=1)) if known.size > 1 else math.nan,
        n=known.size,
        diverged=diverged,
        median_of_all=_median(np.concatenate([known, np.full(diverged, -sign * math.inf)])),
    )


def by_configuration(trials: Iterable[Trial]) -> dict[tuple[Hashable, ...], list[float]]:
    """(learning rate, batch, other settings ...) -> the values of its seeds; a seed that diverged adds none, so a list may be empty."""
    groups: dict[tuple[Hashable, ...], list[float]] = {}
    for trial in trials:
        values = groups.setdefault((trial.lr, trial.batch, *trial.others), [])
        if trial.value is not None and math.isfinite(trial.value):
            values.append(trial.value)
    return groups


def over_configurations(trials: Iterable[Trial]) -> list[float | None]:
    """The mean over seeds of every configuration, for `spread`: what the settings do. None where all seeds diverged."""
    return [float(np.mean(values)) if values else None for values in by_configuration(trials).values()]


def seed_deviation(trials: Iterable[Trial]) -> float:
    """The standard deviation over seeds at equal settings: sqrt(sum_c (n_c - 1) s_c^2 / sum_c (n_c - 1)).

    Returns:
        nan where no configuration has two seeds with a value.
    """
    groups = [np.array(values) for values in by_configuration(trials).values() if len(values) > 1]
    freedom = sum(values.size - 1 for values in groups)
    return math.sqrt(sum(((v - v.mean()) ** 2).sum() for v in groups) / freedom) if freedom else math.nan


def _ends(values: NDArray[np.float64], sign: float) -> tuple[float, float]:
    """Best and worst."""
    if not values.size:
        return math.nan, math.nan
    ends = float(values.max()), float(values.min())
    return ends if sign > 0 else ends[::-1]


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values)) if values.size else math.nan
