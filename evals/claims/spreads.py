"""How much a method's result depends on the learning rate and on the seed, beside another's of the same rank.

The spread over learning rates is the standard deviation (n - 1) of the means over seeds at each rate, with the seeds' part
taken out: sqrt(max(var(means) - within / S, 0)), `within` the variance over S seeds at equal rate (one-way analysis of
variance with random effects). Rates and `within` are taken as given, seeds and documents are drawn. A run that diverged has
no score but belongs to the spread: it counts as the worst score of both methods' runs, or as nothing learned where that is
worse, so that the spread with it is a lower bound. The spread over seeds would be of nothing else, so it is not measured then.

In 600 to 3,000 simulations each, with three seeds and three learning rates, there were so many verdicts on methods that do not
differ: of the spread over rates 2 % where all seeds are equally noisy, 3 % where the other's are 3 or 10 times as noisy, 5 %
where rates matter, to both alike; of the ratio over seeds 5 %, also where one rate is five times as noisy for both, and where
the noise is Student's t with 3 degrees of freedom. The interval of the spread covered the truth in 94 to 98 %; a true ratio of
5 was found in 46 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from evals.claims.estimates import Floats, Measured, measure, variance_ratio
from evals.claims.findings import Finding
from evals.claims.roles import NAMES, Arm
from evals.claims.study import LEARNED, LEARNED_ACCURACY, Panel, StudyRun


def spread_findings(panel: Panel, claim: int, method: Arm, reference: Arm) -> Iterator[Finding | str]:
    """The reference's minus the method's spread of what was learned over learning rates, and the ratio over seeds."""
    ours, theirs = panel.cells(method), panel.cells(reference)
    rates = sorted({lr for lr, _ in ours} & {lr for lr, _ in theirs})
    seeds = sorted(
        s
        for s in {seed for _, seed in ours}
        if all(
            (lr, s) in cells and (cells[lr, s].at or cells[lr, s].is_diverged)
            for lr in rates
            for cells in (ours, theirs)
        )
    )
    names = f"{panel.name}: {method.label} and {reference.label}"
    if len(rates) < 2:
        yield f"{names} have fewer than two learning rates in common"
        return
    if not seeds:
        yield f"{names} have no seed with runs at all common learning rates"
        return
    cells = [[each[lr, s] for s in seeds for lr in rates] for each in (ours, theirs)]
    shape = (-1, len(seeds), len(rates))
    for effect in (LEARNED, LEARNED_ACCURACY):
        if effect not in panel.measures:
            continue
        tokens = _budget(panel, cells, effect)
        if tokens is None:
            yield f"{names} have no budget at which every run has {effect.replace('_', ' in ')} or has diverged"
            continue
        series = [each.reshape(shape) for each in _series(panel, cells, effect, tokens)]
        described = {
            "rates": rates, "seeds": len(seeds), "documents": panel.measures[effect].units,
            "diverged": sum(run.is_diverged for run in cells[0]), "diverged_reference": sum(r.is_diverged for r in cells[1]),
        } | {f"{part}_{whose}": value for whose, each in zip(("of_method", "of_reference"), series, strict=True)
             for part, value in components(each[0]).items()}  # fmt: skip
        learned = effect.replace("_", " in ")

        def finding(
            what: str, unit: str, measured: Measured, at: int = tokens, details: Mapping[str, Any] = described
        ) -> Finding:
            return Finding(
                claim=claim, panel=panel.name, what=what, method=method.label, reference=reference.label,
                against=NAMES[reference.role], rank=method.rank, unit=unit, tokens=at, measured=measured, details=details,
            )  # fmt: skip

        yield finding(
            f"standard deviation over learning rates, {learned}", panel.measures[effect].unit,
            rate_spread(*series, units=panel.measures[effect].units),
        )  # fmt: skip
        if described["diverged"] or described["diverged_reference"]:
            yield f"{names}: no ratio of standard deviations over seeds, {learned}: a run diverged"
        elif len(seeds) < 2:
            yield f"{names}: no ratio of standard deviations over seeds, {learned}: there is one seed"
        elif (ratio := variance_ratio(series[0][0], series[1][0])) is None:
            yield f"{names}: no ratio of standard deviations over seeds, {learned}: the runs of a learning rate are all equal"
        else:
            yield finding(f"ratio of standard deviations over seeds, {learned}", "ratio", ratio)


def rate_spread(ours: Floats, theirs: Floats, *, units: int) -> Measured:
    """Theirs minus our standard deviation over learning rates, the seeds' part taken out of both.

    Args:
        ours: [1 + draws, seeds, rates], the first of a draw with all documents.
        theirs: likewise.
        units: documents.
    """
    parts = [_seeds_part(each[0]) for each in (ours, theirs)]
    return measure(
        lambda a, b: _deviation(b.var(axis=1, ddof=1) - parts[1]) - _deviation(a.var(axis=1, ddof=1) - parts[0]),
        ours, theirs, units=units,
    )  # fmt: skip


def components(values: Floats) -> dict[str, float]:
    """Standard deviations of the rate and of the seed, by analysis of variance, and the range of the rates' means.

    Args:
        values: [seeds, rates].

    Returns:
        `seed_deviation` at equal rates (nan with one seed), `rate_deviation` beyond what seeds explain, and `range`.
    """
    means = values.mean(axis=0)
    rate = float(_deviation(means.var(ddof=1) - _seeds_part(values)))
    seed = math.sqrt(_within(values)) if len(values) > 1 else math.nan
    return {"rate_deviation": rate, "seed_deviation": seed, "range": float(np.ptp(means))}


def _within(values: Floats) -> float:
    """The variance over seeds at equal rate; [seeds, rates]."""
    return float(values.var(axis=0, ddof=1).mean())


def _seeds_part(values: Floats) -> float:
    """What seeds add to the variance of the means over them; not known with one seed, and then nothing."""
    return _within(values) / len(values) if len(values) > 1 else 0.0


def _deviation(variance: Any) -> Any:
    return np.sqrt(np.maximum(variance, 0.0))


def _budget(panel: Panel, cells: list[list[StudyRun]], effect: str) -> int | None:
    """The largest budget at which every run that has not diverged was scored."""
    runs = [run for each in cells for run in each]
    budgets = sorted({tokens for run in runs for tokens in run.at}, reverse=True)
    return next((t for t in budgets if all(panel.score(r, effect, t) is not None or r.is_diverged for r in runs)), None)


def _series(panel: Panel, cells: list[list[StudyRun]], effect: str, tokens: int) -> list[Floats]:
    """Of both methods, [1 + draws, runs]; diverged runs have the worst score of all."""
    found = [[panel.replicates(run, effect, tokens) for run in each] for each in cells]
    known = np.stack([scored for each in found for scored in each if scored is not None])
    worst = np.minimum(known.min(axis=0), 0.0)
    return [np.stack([worst if scored is None else scored for scored in each], axis=1) for each in found]
