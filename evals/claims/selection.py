"""Each method at its best learning rate: chosen by the mean over seeds of what was learned, and what that choice adds.

The learning rate is chosen once per arm, at the largest budget that its finished runs share, and all of its budgets are those
of the same runs. Of equally many seeds each rate has, those at which a run diverged are out. A best of several is too good by part of the
noise, which favours the method with the larger grid. So the score of the chosen rate is also cross-fitted: a seed's score on
one half of the documents is that of the rate which the other seeds on the other half chose (Chernozhukov et al. 2018,
Econometrics Journal 21:C1). What the plain score has more is the choice's optimism.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evals.claims.estimates import Floats, scores
from evals.claims.roles import Arm
from evals.claims.study import FORGOTTEN, LEARNED, Panel, StudyRun


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The learning rate chosen for an arm.

    Attributes:
        arm: which.
        lr: the rate.
        tokens: the budget at which it was chosen.
        scores: rate -> the mean over seeds of what was learned; only of rates that could be chosen.
        scored: rate that was tried -> the seeds whose runs were scored at that budget.
        runs: rate that was tried -> number of its runs.
        crossfit: (seed, half of the documents) -> the rate that is reported there.
        diverged: rate -> number of its runs that diverged.
    """

    arm: Arm
    lr: float
    tokens: int
    scores: Mapping[float, float]
    scored: Mapping[float, tuple[int, ...]]
    runs: Mapping[float, int]
    crossfit: Mapping[tuple[int, bool], float]
    diverged: Mapping[float, int]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the chosen rate's runs."""
        return self.scored[self.lr]

    def edge(self, lr: float) -> str | None:
        """Whether a rate is the lowest, the highest or the only one that was tried: a better one may lie beyond."""
        if len(self.runs) < 2:
            return "only"
        return {min(self.runs): "lowest", max(self.runs): "highest"}.get(lr)

    def barred(self, lr: float) -> Iterator[tuple[str, float, str]]:
        """Of the next lower and the next higher rate that was tried, where it could not be chosen: side, rate and why."""
        near = {
            "lower": max((rate for rate in self.runs if rate < lr), default=lr),
            "higher": min((rate for rate in self.runs if rate > lr), default=lr),
        }
        for side, rate in near.items():
            if rate == lr or rate in self.scores:
                continue
            if rate in self.diverged:
                yield side, rate, f"diverged with {self.diverged[rate]} of {self.runs[rate]} seeds"
            else:
                most = max(len(seeds) for seeds in self.scored.values())
                yield side, rate, f"was scored with {len(self.scored[rate])} of {most} seeds"


def choose(panel: Panel, arm: Arm) -> Choice | None:
    """The best learning rate of an arm; None where no run of it was scored."""
    cells, budgets = panel.cells(arm), panel.budgets(arm)
    if not budgets:
        return None
    tokens = budgets[-1]
    rates = sorted({lr for lr, _ in cells})
    seeds = {
        lr: [s for s in _seeds(cells, lr) if panel.score(cells[lr, s], LEARNED, tokens) is not None] for lr in rates
    }
    diverged = {lr: n for lr in rates if (n := sum(cells[lr, s].is_diverged for s in _seeds(cells, lr)))}
    # Where every rate diverged with some seed, those that did not are all there is.
    known = [lr for lr in rates if seeds[lr] and lr not in diverged] or [lr for lr in rates if seeds[lr]]
    if not known:
        return None
    most = max(len(seeds[lr]) for lr in known)
    known = [lr for lr in known if len(seeds[lr]) == most]
    means = {lr: _mean([panel.score(cells[lr, s], LEARNED, tokens) for s in seeds[lr]]) for lr in known}
    best = max(known, key=lambda lr: means[lr])
    crossfit = {}
    for seed in seeds[best]:
        for half in (False, True):
            others = {lr: [s for s in seeds[lr] if s != seed] or seeds[lr] for lr in known if seed in seeds[lr]}
            held = {lr: _mean([_on(panel, cells[lr, s], tokens, not half) for s in use]) for lr, use in others.items()}
            crossfit[seed, half] = max(held, key=lambda lr: held[lr])
    return Choice(
        arm=arm, lr=best, tokens=tokens, scores=means, scored={lr: tuple(seeds[lr]) for lr in rates},
        runs={lr: len(_seeds(cells, lr)) for lr in rates}, crossfit=crossfit, diverged=diverged,
    )  # fmt: skip


def plain(panel: Panel, choice: Choice, seed: int, effect: str, tokens: int) -> Floats | None:
    """[1 + draws]: a score of the chosen rate's run with a seed; None where it was not measured."""
    run = panel.cells(choice.arm).get((choice.lr, seed))
    return None if run is None else panel.replicates(run, effect, tokens)


def crossfitted(panel: Panel, choice: Choice, seed: int, effect: str, tokens: int) -> Floats | None:
    """[1 + draws]: likewise, each half of the documents with the rate that was chosen without it and without the seed.

    Other figures than what was learned are over other documents: theirs is the mean of the runs of both halves.
    """
    cells = panel.cells(choice.arm)
    rates = [choice.crossfit.get((seed, half)) for half in (False, True)]
    runs = [cells.get((lr, seed)) if lr is not None else None for lr in rates]
    if any(run is None for run in runs):
        return None
    found = [panel.values(run, effect, tokens) for run in runs if run is not None]
    if any(values is None for values in found):
        return None
    first, second = (values for values in found if values is not None)
    over = panel.measures[effect]
    if effect == FORGOTTEN:
        mixed = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    else:
        mixed = [np.where(half, b, a) for half, a, b in zip(over.halves, first, second, strict=True)]
    return scores(mixed, over.weights)


def _seeds(cells: Mapping[tuple[float, int], StudyRun], lr: float) -> list[int]:
    return sorted(seed for rate, seed in cells if rate == lr)


def _on(panel: Panel, run: StudyRun, tokens: int, half: bool) -> float:
    """What was learned, on one half of the documents."""
    over, values = panel.measures[LEARNED], panel.values(run, LEARNED, tokens)
    assert values is not None, run.id
    parts = [
        y[mask == half].sum() / x[mask == half].sum()
        for y, x, mask in zip(values, over.weights, over.halves, strict=True)
        if (mask == half).any()
    ]
    return float(np.mean(parts)) if parts else 0.0


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))
