"""Sentences about all runs: against small documents whose answers are known."""

from __future__ import annotations

from typing import Any

import pytest

from evals.collect.page_findings import findings, interval, notices
from tests.unit.evals.collect.page_document import estimate

MINUS = "\N{MINUS SIGN}"


def run(name: str, method: str, learned: float, forgotten: float, **fields: Any) -> dict[str, Any]:
    unit = fields.pop("unit", "accuracy")
    point = {"step": 9, "learned": estimate(learned, 0.01, unit), "forgotten": estimate(forgotten, 0.01, unit)}
    start = {"step": 0, "learned": None, "forgotten": None}
    return {
        "id": name,
        "name": name,
        "method": method,
        "rank": None,
        "status": "done",
        "points": [start, point],
        "final": point,
    } | fields


def spread(method: str, best: float, worst: float, n: int = 5) -> dict[str, Any]:
    return {"method": method, "rank": 8, "metric": "learned", "unit": "accuracy", "best": best, "worst": worst, "n": n}


def test_findings_name_the_runs_they_are_about() -> None:
    runs = [
        run("a", "full finetuning", 0.20, 0.10),
        run("b", "LoRA", 0.17, 0.04, rank=16),
        run("c", "LoRA", 0.18, 0.05),
        run("d", "LoRA", 0.10, 0.01),
        run("e", "LoRA", 9.0, 0.0, unit="bits per byte"),
    ]
    document = {
        "runs": runs,
        "pareto": [["a", 9], ["b", 9], ["c", 0], ["gone", 9]],
        "spreads": [spread("LoRA", 0.2, 0.1), spread("MonteCLoRA", 0.2, 0.19), spread("few", 1.0, 0.0, n=2)],
    }
    front, most, near, spreads = findings(document)
    assert front.startswith(
        "2 checkpoints are on the front by what was learned and forgotten since step 0 (1 of full finetuning, 1 of LoRA):"
    )
    assert "of the 4 runs scored on both, over the same tasks," in front
    assert (
        most
        == "Most learned: a (full finetuning), +20.0 points (+18.0 to +22.0), having forgotten +10.0 points (+8.0 to +12.0)."
    )
    assert near.startswith(
        "Least forgotten among the 3 runs that learned at least 80 % as much: b (LoRA rank 16), +4.0 points"
    )
    assert (
        "with MonteCLoRA rank 8 (1.0 points between the worst and the best of 5 runs), most with LoRA rank 8 (10.0"
        in spreads
    )


def test_runs_of_other_tasks_are_not_compared() -> None:
    def over(runs: list[dict[str, Any]], task: str) -> list[dict[str, Any]]:
        for each in runs:
            each["final"]["over"] = {"learned": [task], "forgotten": ["prose"]}
        return runs

    code = over([run("a", "full finetuning", 0.20, 0.10), run("b", "LoRA", 0.19, 0.04)], "code")
    pairs = over(
        [run("c", "full finetuning", 0.90, 0.20), run("d", "LoRA", 0.8, 0.05), run("e", "LoRA", 0.1, 0.0)], "pairs"
    )
    said = [sentence.partition(",")[0] for sentence in findings({"runs": code + pairs})]
    assert said == [
        "Most learned of pairs: c (full finetuning)",
        "Least forgotten among the 2 runs that learned at least 80 % as much of pairs: d (LoRA)",
        "Most learned of code: a (full finetuning)",
        "Least forgotten among the 2 runs that learned at least 80 % as much of code: b (LoRA)",
    ]
    assert (
        next(sentence.partition(",")[0] for sentence in findings({"runs": code})) == "Most learned: a (full finetuning)"
    )


def test_what_is_not_there_is_not_spoken_of() -> None:
    assert findings({"runs": []}) == []
    only = findings({"runs": [run("a", "LoRA", 0.1, 0.0)], "spreads": [spread("LoRA", 0.2, 0.1)], "pareto": []})
    assert len(only) == 1
    nothing = findings({"runs": [run("a", "LoRA", -0.1, 0.0), run("b", "LoRA", -0.2, 0.0)]})
    assert len(nothing) == 1
    diverged = spread("LoRA", 0.2, 0.1) | {"best": None}
    assert len(findings({"runs": [run("a", "LoRA", 0.1, 0.0)], "spreads": [diverged, spread("x", 1, 0)]})) == 1


def test_notices() -> None:
    first = run("a", "LoRA", 0.1, 0.0, base_fingerprint="x", status="running")
    second = run("b", "LoRA", 0.1, 0.0, base_fingerprint="y", status="failed")
    stage = run("c", "LoRA", 0.1, 0.0, base_fingerprint="z", is_continuation=True)
    bases, unfinished, skipped = notices({"runs": [first, second, stage], "skipped": [{"path": "p", "reason": "r"}]})
    assert bases.startswith("The runs started from 2 different base weights")
    assert unfinished == "Not finished: 1 failed, 1 running. Their points so far are shown."
    assert skipped == "Skipped: 1 file or folder, listed below with the reason."
    assert notices({"runs": [run("a", "LoRA", 0.1, 0.0)], "skipped": []}) == []


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, "\N{EN DASH}"),
        (estimate(-0.031, 0.002), f"{MINUS}3.1 points ({MINUS}3.5 to {MINUS}2.7)"),
        (estimate(0.5, 0.01, "bits per byte"), "+0.500 (+0.480 to +0.520)"),
        (estimate(0.5, 0.01) | {"low": None}, "+50.0 points"),
    ],
)
def test_interval(given: dict[str, Any] | None, text: str) -> None:
    assert interval(given) == text


def test_spreads_of_another_base_are_not_set_against_each_other() -> None:
    near = [spread("LoRA", 0.2, 0.1) | {"base": "b"}, spread("MonteCLoRA", 0.2, 0.15) | {"base": "b"}]
    other = spread("full finetuning", 0.9, 0.0) | {"base": "c"}
    *_, said = findings({"runs": [run("a", "LoRA", 0.1, 0.0)], "spreads": [*near, other]})
    assert "most with LoRA" in said
