"""What runs say together: the spread of a method over its settings and seeds, and the checkpoints that no other one beats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from evals.arithmetic.pareto import Point, front
from evals.arithmetic.spread import spread

MEASURES = {"learned": True, "forgotten": False, "learning_score": True, "forgetting_average": True, "new_nll": False,
            "old_nll": False}  # fmt: skip
"""What spreads are taken of, at the end of each run: whether higher is better."""


def spreads(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Best, median and worst of each method and rank over learning rates, batches and seeds.

    Runs that are done count, and those that diverged; not those that are under way or ended early, whose scores say
    how far they were. An entry has what `Spread` has, and `values` with the `runs` they are of.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        if run["parent"] is None and run["points"] and (run["status"] == "done" or run["is_diverged"]):
            groups.setdefault((run["method"], run["rank"]), []).append(run)
    return [
        entry
        for (method, rank), members in sorted(groups.items(), key=lambda group: (str(group[0][0]), group[0][1] or 0))
        for measure in MEASURES
        for entry in _spreads(method, rank, measure, members)
    ]


def _spreads(method: str, rank: int | None, measure: str, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each unit that the runs' values are in."""
    found = [(run["id"], *_value(run, measure)) for run in runs]
    diverged = [run["id"] for run in runs if run["is_diverged"]]
    entries = []
    for unit in sorted({unit for _, value, unit in found if value is not None}):
        known = [(run, value) for run, value, its in found if value is not None and its == unit and run not in diverged]
        summary = spread(
            [value for _, value in known] + [None] * len(diverged), higher_is_better=MEASURES[measure]
        ).as_dict()
        entries.append(
            {"method": method, "rank": rank, "metric": measure, "unit": unit, "higher_is_better": MEASURES[measure]}
            | summary
            | {"values": [v for _, v in known], "runs": [run for run, _ in known], "diverged_runs": diverged}
        )
    return entries


def _value(run: Mapping[str, Any], measure: str) -> tuple[float | None, str]:
    """A run's value at its last point, and the unit; None where it has none."""
    point = run["points"][-1]
    if measure in ("learned", "forgotten"):
        effect = point[measure]
        return (None, "") if effect is None else (effect["value"], effect["unit"])
    value = point["calibration"][measure] if measure in point["calibration"] else point[measure]
    return value, "nats" if measure.endswith("nll") else "accuracy"


def pareto(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """(run, step) of the checkpoints that no other one beats, from the least to the most forgotten.

    Only what is in the same unit and began with the same base compares; where there are several, the most frequent.
    """
    points: list[tuple[Hashable, Point]] = []
    for run in runs:
        for point in run["points"]:
            learned, forgotten = point["learned"], point["forgotten"]
            if learned is None or forgotten is None or learned["unit"] != forgotten["unit"]:
                continue
            kind = (learned["unit"], run["base_fingerprint"])
            place = Point(run=run["id"], step=point["step"], learned=learned["value"], forgotten=forgotten["value"])
            points.append((kind, place))
    if not points:
        return []
    ((most, _),) = Counter(kind for kind, _ in points).most_common(1)
    return [(point.run, point.step) for point in front(point for kind, point in points if kind == most)]
