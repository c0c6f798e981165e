"""The rank of what full finetuning changed, beside the rank that an adapter has; and whether it grows with tokens.

A matrix's rank is k, the smallest number of singular values with 90 % (the file's share) of the squared spectrum of the
change (arXiv 2405.09673, section 6). The figure is the mean of k over all matrices of all layers, divided by the adapter's rank.
Seeds and matrices are drawn like seeds and documents; a model's matrices are no sample of others, so with one seed the
interval says how much matrices differ, no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evals.claims.estimates import Floats, measure, scores
from evals.claims.findings import Finding
from evals.claims.roles import FULL, LORA, NAMES
from evals.claims.selection import choose
from evals.claims.study import Panel, StudyRun

LEAST_RATIO = 10.0
"""The paper's 10 to 100 times."""


def rank_findings(panel: Panel, claim: int) -> list[Finding | str]:
    """The ratio of ranks for each rank of the study's LoRA, and the growth from the first measured step to the last."""
    ranks = sorted({arm.rank for arm in panel.of(LORA)})
    arms = panel.of(FULL)
    runs = [run for arm in arms for run in panel.cells(arm).values() if run.ranks]
    if not runs:
        return [f"{panel.name}: no run of full finetuning has weights/rank-<step>.json (python -m evals rank --run)"]
    if not ranks:
        return [f"{panel.name}: no runs with LoRA, whose rank the change's is compared with"]
    choice = choose(panel, arms[0])
    rates = {run.lr for run in runs}
    lr = (
        choice.lr
        if choice is not None and choice.lr in rates
        else max(rates, key=lambda r: (sum(x.lr == r for x in runs), r))
    )
    runs = [run for run in runs if run.lr == lr]
    steps = sorted(set.intersection(*(set(run.ranks) for run in runs)))
    if not steps:
        return [f"{panel.name}: the runs of full finetuning at {lr:g} have no step in common whose rank was measured"]
    described = _described(runs, steps[-1]) | {"lr": lr, "is_best_lr": choice is not None and lr == choice.lr}
    found: list[Finding | str] = []
    for rank in ranks:
        curve = {
            t: measure(lambda x: x, _series(runs, t) / rank, units=_units(runs, t), threshold=LEAST_RATIO)
            for t in steps
        }
        found.append(
            Finding(
                claim=claim, panel=panel.name, what="rank of the change / rank of LoRA", method=arms[0].label,
                reference=f"LoRA r{rank}", against=NAMES[LORA], rank=rank, unit="times", tokens=steps[-1], measured=curve[steps[-1]], curve=curve,
                details=described | {"rank": rank, "most_possible": described["full_rank"] / rank},
            )
        )  # fmt: skip
    if len(steps) > 1:
        first, last = _series(runs, steps[0]), _series(runs, steps[-1])
        found.append(
            Finding(
                claim=claim, panel=panel.name, what="growth of the rank with tokens", method=arms[0].label,
                reference=f"after {steps[0]:,} tokens", against="its first step", rank=0, unit="rank", tokens=steps[-1],
                measured=measure(lambda a, b: a - b, last, first, units=_units(runs, steps[-1])), details=described,
            )
        )  # fmt: skip
    return found


def by_module(document: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Module -> the mean over layers of the rank of its change, and of the largest rank that it could have."""
    found = {}
    for column, module in enumerate(document["modules"]):
        pairs = [
            (row[column], full[column])
            for row, full in zip(document["rank"], document["full_rank"], strict=True)
            if row[column] is not None
        ]
        if pairs:
            found[module] = float(np.mean([k for k, _ in pairs])), float(np.mean([full for _, full in pairs]))
    return found


def _described(runs: Sequence[StudyRun], tokens: int) -> dict[str, Any]:
    documents = [run.ranks[tokens] for run in runs]
    cells = [(k, full) for each in documents for k, full in _cells(each)]
    return {
        "k": float(np.mean([k for k, _ in cells])),
        "full_rank": float(np.mean([full for _, full in cells])),
        "share": float(np.mean([k / full for k, full in cells])),
        "of_spectrum": documents[0]["share"],
        "seeds": len(runs),
        "matrices": _units(runs, tokens),
    }


def _series(runs: Sequence[StudyRun], tokens: int) -> Floats:
    """[1 + draws, seeds]: the mean rank over matrices, and over each draw of them."""
    columns = [np.array([k for k, _ in _cells(run.ranks[tokens])], dtype=np.float64) for run in runs]
    return np.stack([scores([each], [np.ones(len(each))]) for each in columns], axis=1)


def _units(runs: Sequence[StudyRun], tokens: int) -> int:
    return min(len(_cells(run.ranks[tokens])) for run in runs)


def _cells(document: Mapping[str, Any]) -> list[tuple[int, int]]:
    rows = zip(document["rank"], document["full_rank"], strict=True)
    return [(k, full) for row, fulls in rows for k, full in zip(row, fulls, strict=True) if k is not None]
