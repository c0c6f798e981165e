"""Everything that the document says, as values: what was read, chosen, found, and corrected for the number of looks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.claims.catalogue import CLAIMS, Claim, answer
from evals.claims.comparisons import best_choices, optimism
from evals.claims.estimates import UNDECIDED, holm
from evals.claims.findings import ALPHA, Answer, Finding
from evals.claims.selection import Choice
from evals.claims.study import FORGOTTEN, LEARNED, LEARNED_ACCURACY, Panel, Study, StudyRun

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a study says of the claims.

    Attributes:
        study: what was read.
        choices: panel's name -> the learning rates chosen, by arm.
        answers: of each claim, in their order.
        corrected: id of a finding -> its p-value corrected by Holm's method over all findings.
    """

    study: Study
    choices: Mapping[str, Sequence[Choice]]
    answers: Sequence[tuple[Claim, Answer]]
    corrected: Mapping[int, float]

    @property
    def findings(self) -> list[Finding]:
        """All of them."""
        return [finding for _, each in self.answers for finding in each.findings]

    @property
    def testable(self) -> list[Finding]:
        """Those that can have a verdict, which is what is corrected for."""
        return [finding for finding in self.findings if not math.isnan(finding.measured.p)]

    def verdict_corrected(self, finding: Finding) -> str:
        """The verdict, unless its p-value does not survive the correction."""
        p = self.corrected[id(finding)]
        return finding.measured.verdict if not math.isnan(p) and p < ALPHA else UNDECIDED


def evaluate(study: Study) -> Result:
    """Measure every claim on every panel."""
    answers = [(claim, answer(claim, study.panels)) for claim in CLAIMS]
    findings = [finding for _, each in answers for finding in each.findings]
    ps = holm([finding.measured.p for finding in findings])
    return Result(
        study=study,
        choices={panel.name: best_choices(panel, panel.arms) for panel in study.panels},
        answers=answers,
        corrected={id(finding): p for finding, p in zip(findings, ps, strict=True)},
    )


def as_json(result: Result) -> dict[str, Any]:
    """All numbers: claims with their findings, chosen learning rates, every cell's end, and what was left out."""
    return {
        "schema": SCHEMA,
        "sweeps": list(result.study.sweeps),
        "statuses": dict(sorted(result.study.statuses.items())),
        "left_out": dict(result.study.left_out),
        "panels": [_panel(panel, result.choices[panel.name]) for panel in result.study.panels],
        "claims": [
            {
                "number": claim.number,
                "claim": claim.text,
                "paper": claim.paper,
                "findings": [
                    finding.as_dict()
                    | {"p_holm": result.corrected[id(finding)], "verdict_holm": result.verdict_corrected(finding)}
                    for finding in each.findings
                ],
                "missing": list(each.missing),
            }
            for claim, each in result.answers
        ],
    }


def _panel(panel: Panel, choices: Sequence[Choice]) -> dict[str, Any]:
    return {
        "name": panel.name,
        "kind": panel.kind,
        "base": panel.base,
        "measures": {
            name: {"tasks": list(over.tasks), "unit": over.unit, "documents": [len(each) for each in over.documents]}
            for name, over in panel.measures.items()
        },
        "choices": [
            {
                "arm": choice.arm.label,
                "lr": choice.lr,
                "tokens": choice.tokens,
                "scores": [{"lr": lr, "learned": value} for lr, value in choice.scores.items()],
                "edge": choice.edge(choice.lr),
                "optimism": optimism(panel, choice),
                "diverged": [{"lr": lr, "runs": n} for lr, n in choice.diverged.items()],
            }
            for choice in choices
        ],
        "cells": [cell(panel, run) for run in panel.runs],
    }


def cell(panel: Panel, run: StudyRun) -> dict[str, Any]:
    """A run's settings and its figures at every budget."""
    effects = [effect for effect in (LEARNED, FORGOTTEN, LEARNED_ACCURACY) if effect in panel.measures]
    return {
        "run": run.id,
        "arm": run.arm.label,
        "lr": run.lr,
        "seed": run.seed,
        "status": run.status,
        "is_diverged": run.is_diverged,
        "train_loss": run.train_loss,
        "points": [
            {"tokens": tokens} | {effect: panel.score(run, effect, tokens) for effect in effects}
            for tokens in sorted(run.at)
        ],
    }
