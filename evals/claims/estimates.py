"""Intervals of what is measured on few seeds and some held-out documents, both drawn anew.

A run's score is over documents, and every seed's run is scored on the same ones: seeds and documents are crossed, not
nested. Two 95 % intervals are made, and the one that decides spans both:

* **bootstrap**: seeds and documents are drawn with replacement, independently of each other (the pigeonhole bootstrap, Owen
  2007, Annals of Applied Statistics 1:386, which overstates the variance of crossed effects mildly), percentiles of the
  draws. With S seeds the part of the seeds comes out too small, by (S - 1) / S: a third at S = 3.
* **t**: value +- t * sqrt(v_s / S + v_d), v_s the variance of the statistic over single seeds, v_d its variance when
  documents alone are drawn, t Student's quantile at Satterthwaite's degrees of freedom (1946, Biometrics 2:110). With three
  seeds that disagree, t is near 4.3.

Both are of differences between two methods at equal seed, batches and document, whose common part cancels. With a
single seed nothing is known of how much the seed matters: the interval is over documents alone, and no verdict rests on it.
Learning rates that were chosen are taken as given. The p-value is that of t: one from the draws could not be below 1 / DRAWS,
which no correction for many comparisons survives. It has S - 1 degrees of freedom at most: Satterthwaite's are an estimate,
which is good enough for the interval, but makes small p-values far too small.

In 600 simulations each, with three seeds and 50 documents, the interval that decides covered the truth of a difference in
93 to 95 %, of what is forgotten at equal learning with given learning rates in 91 to 97 %, where the seeds' part is large and
small; the bootstrap alone came down to 75 %. Of spreads, see `spreads`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

DRAWS = 2000
LEVEL = 0.95
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
_CACHED = 6
"""Numbers of documents whose matrix of draws is kept; for 10,042 questions it has 80 MB."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A statistic with its intervals; what is unknown is nan.

    Attributes:
        value: of all seeds and documents.
        boot_low: lower end of the bootstrap interval.
        boot_high: upper end.
        t_low: lower end of the t-interval; nan with a single seed.
        t_high: upper end.
        seeds: on how many seeds it rests.
        degrees: of freedom of the t-interval.
        p: two-sided, of t against the threshold with one degree of freedom less than seeds at most; nan with a single seed.
        threshold: what the value is compared with; above it is the claim's side.
    """

    value: float
    boot_low: float
    boot_high: float
    t_low: float
    t_high: float
    seeds: int
    degrees: float
    p: float
    threshold: float = 0.0

    @property
    def low(self) -> float:
        """Lower end of the interval that decides."""
        return float(np.nanmin([self.boot_low, self.t_low])) if self.has_interval else math.nan

    @property
    def high(self) -> float:
        """Upper end of the interval that decides."""
        return float(np.nanmax([self.boot_high, self.t_high])) if self.has_interval else math.nan

    @property
    def has_interval(self) -> bool:
        """Whether any interval could be made."""
        return not (math.isnan(self.boot_low) and math.isnan(self.t_low))

    @property
    def verdict(self) -> str:
        """Which side of the threshold the interval is on entirely, if any; undecided with a single seed."""
        if self.seeds < 2 or not self.has_interval:
            return UNDECIDED
        if self.low > self.threshold:
            return HOLDS
        return FAILS if self.high < self.threshold else UNDECIDED

    def as_dict(self) -> dict[str, Any]:
        """For JSON, the deciding interval and the verdict included."""
        return asdict(self) | {"low": self.low, "high": self.high, "verdict": self.verdict}


def measure(
    statistic: Callable[..., Floats], *series: Floats, units: int, threshold: float = 0.0, seed: int = 0
) -> Measured:
    """A statistic of means over seeds, with its intervals.

    Args:
        statistic: arrays [m, ...], one per series -> [m].
        series: [1 + DRAWS, seeds, ...] each: what a seed's run has over all documents, then over each draw of them, as
            `scores` gives it; seeds in the same order in all of them.
        units: documents, for the degrees of freedom.
        threshold: what the statistic is compared with.
        seed: of the draws of seeds.
    """
    counts = {each.shape[1] for each in series}
    assert len(counts) == 1, [each.shape for each in series]
    (seeds,) = counts
    weights = _seed_weights(seeds, len(series[0]) - 1, seed)
    together = [
        np.concatenate(
            [
                each[:1].mean(axis=1),
                np.einsum("ms,ms...->m...", weights, each[1:]),
                each[1:].mean(axis=1),
                each[0],
            ]
        )
        for each in series
    ]
    found = statistic(*together)
    draws = len(series[0]) - 1
    value, drawn = float(found[0]), found[1 : 1 + draws]
    of_documents, of_seeds = found[1 + draws : 1 + 2 * draws], found[1 + 2 * draws :]
    return _intervals(value, drawn, of_documents, of_seeds, units, threshold)


def _intervals(
    value: float, drawn: Floats, of_documents: Floats, of_seeds: Floats, units: int, threshold: float
) -> Measured:
    known = drawn[np.isfinite(drawn)]
    tails = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    # With one document, every draw is that document.
    low, high = np.quantile(known, tails) if known.size and units > 1 else (math.nan, math.nan)
    seeds = int(np.isfinite(of_seeds).sum())
    if seeds < 2 or not math.isfinite(value):
        return Measured(
            value=value, boot_low=float(low), boot_high=float(high), t_low=math.nan, t_high=math.nan, seeds=seeds,
            degrees=math.nan, p=math.nan, threshold=threshold,
        )  # fmt: skip
    by_seed = float(np.nanvar(of_seeds, ddof=1)) / seeds
    by_document = float(np.nanvar(of_documents)) if units > 1 else 0.0
    error, degrees = math.sqrt(by_seed + by_document), _satterthwaite(by_seed, seeds - 1, by_document, units - 1)
    half = float(stats.t.ppf(tails[1], degrees)) * error
    # Far out in the tails the approximate degrees of freedom promise too much: three seeds are three seeds.
    tail = float(stats.t.sf(abs(value - threshold) / error, min(degrees, seeds - 1))) if error else 0.0
    p = 2 * tail if error else float(value == threshold)
    return Measured(
        value=value, boot_low=float(low), boot_high=float(high), t_low=value - half, t_high=value + half, seeds=seeds,
        degrees=degrees, p=p, threshold=threshold,
    )  # fmt: skip


def _satterthwaite(first: float, degrees_first: int, second: float, degrees_second: int) -> float:
    """Degrees of freedom of the sum of two variances of means."""
    if first + second == 0:
        return float(degrees_first)
    spread = first**2 / degrees_first + (second**2 / degrees_second if degrees_second else 0.0)
    return (first + second) ** 2 / spread


def scores(values: Sequence[Floats], weights: Sequence[Floats]) -> Floats:
    """The mean over tasks of sum(values) / sum(weights), over all documents and over each draw of them.

    Args:
        values: of each task, [documents].
        weights: of each task, [documents].

    Returns:
        [1 + DRAWS]; equal numbers of documents are drawn alike, so that differences are paired.
    """
    total = np.zeros(1 + DRAWS)
    for index, (y, x) in enumerate(zip(values, weights, strict=True)):
        counts = document_draws(len(y), index)
        drawn = counts @ np.stack([y, x], axis=1).astype(np.float32)
        total[0] += y.sum() / x.sum()
        total[1:] += drawn[:, 0].astype(np.float64) / drawn[:, 1]
    return total / len(values)


@functools.lru_cache(maxsize=_CACHED)
def document_draws(documents: int, index: int = 0) -> NDArray[np.float32]:
    """[DRAWS, documents]: how often each document of a domain's index-th task is drawn."""
    rng = np.random.default_rng((documents, index))
    counts = np.empty((DRAWS, documents), dtype=np.float32)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, documents, documents), minlength=documents)
    return counts


def _seed_weights(seeds: int, draws: int, seed: int) -> Floats:
    """[draws, seeds]: the weight of each seed in each draw."""
    rng = np.random.default_rng((seed, seeds))
    return rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds


def variance_ratio(ours: Floats, theirs: Floats) -> Measured | None:
    """The ratio of two standard deviations over seeds, theirs / ours, with Student's t over settings of its logarithm.

    Each setting has a ratio of its own, and their mean is what is estimated. So it does not matter that some settings are
    noisier than others, nor whether the noise is normal.

    Args:
        ours: [seeds, settings], two of each at least.
        theirs: likewise.

    Returns:
        The ratio; None where the runs of a setting are all equal.
    """
    variances = np.stack([ours.var(axis=0, ddof=1), theirs.var(axis=0, ddof=1)])
    if not (variances > 0).all():
        return None
    logs = np.log(variances[1] / variances[0])
    mean, degrees = float(logs.mean()), logs.size - 1
    error = float(logs.std(ddof=1)) / math.sqrt(logs.size)
    half = float(stats.t.ppf((1 + LEVEL) / 2, degrees)) * error
    value, low, high = (math.exp(each / 2) for each in (mean, mean - half, mean + half))
    p = 2 * float(stats.t.sf(abs(mean) / error, degrees)) if error else float(mean == 0)
    return Measured(
        value=value, boot_low=math.nan, boot_high=math.nan, t_low=low, t_high=high, seeds=len(ours), degrees=degrees, p=p,
        threshold=1.0,
    )  # fmt: skip


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for all of them being looked at (Holm 1979, Scandinavian Journal of Statistics 6:65); nan stays."""
    order = sorted((index for index, p in enumerate(ps) if not math.isnan(p)), key=lambda index: ps[index])
    adjusted, largest = [math.nan] * len(ps), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * ps[index]))
        adjusted[index] = largest
    return adjusted
