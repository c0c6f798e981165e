"""What runs say together: the spread of a method over its settings and seeds, and the checkpoints that no other one beats."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from evals.arithmetic.pareto import Point, front
from evals.arithmetic.spread import Trial, over_configurations, seed_deviation, spread

Run = Mapping[str, Any]
MEASURES = {"learned": True, "forgotten": False, "learning_score": True, "forgetting_average": True, "new_nll": False,
            "old_nll": False}  # fmt: skip
"""What spreads are taken of, at the end of each run: whether higher is better."""


OWN_AXES = ("method", "adapter.rank", "optim.lr", "train.global_batch_rows", "run.seed")
"""Axes of sweeps that runs are grouped or told apart by in any case."""
RANDOM_WEIGHTS = "random weights"


class Group(NamedTuple):
    """What runs of a box have in common; `base` is the fingerprint of the weights, or the name where that is unknown."""

    base: str
    method: str
    rank: int | None


def grouped(runs: Sequence[Run]) -> dict[Group, list[Run]]:
    """The runs whose ends compare, by base, method and rank.

    Runs that are done count, and those that diverged; not those that are under way or ended early, whose scores say
    how far they were; nor continuations, which learned a part of it before (see `lineage.link`).
    """
    groups: dict[Group, list[Run]] = {}
    for run in runs:
        if not run["is_continuation"] and (run["status"] == "done" or run["is_diverged"]):
            group = Group(base_of(run), run["method"], run["rank"])
            groups.setdefault(group, []).append(run)
    return dict(sorted(groups.items(), key=lambda each: (each[0].base, each[0].method, each[0].rank or 0)))


def base_of(run: Run) -> str:
    """What tells a run's base from others."""
    if run.get("is_from_scratch"):
        return RANDOM_WEIGHTS
    return str(run["base_fingerprint"] or run["base"] or "")


def spreads(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Best, median and worst of each method and rank over learning rates, batches and seeds, from one base.

    An entry has what `Spread` has over runs, `settings` with the same over configurations (the mean over the seeds of
    each), `seed_deviation` at equal settings, and `values` with the `runs` they are of. `unscored_runs` are done, too, but
    have no such value.
    """
    return [
        entry for group, own in grouped(runs).items() for measure in MEASURES for entry in _spreads(group, measure, own)
    ]


def _spreads(group: Group, measure: str, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One entry for each unit that the runs' values are in."""
    diverged = [run["id"] for run in runs if run["is_diverged"]]
    entries = []
    for unit in units_of(measure, runs):
        trials = trials_of(measure, unit, runs)
        known = [trial for trial in trials if trial.value is not None]
        is_higher_better = MEASURES[measure]
        entries.append(
            {**group._asdict(), "metric": measure, "unit": unit, "higher_is_better": is_higher_better}
            | spread([trial.value for trial in trials], higher_is_better=is_higher_better).as_dict()
            | {"settings": spread(over_configurations(trials), higher_is_better=is_higher_better).as_dict()}
            | {"seed_deviation": seed_deviation(trials)}
            | {"values": [trial.value for trial in known], "runs": [trial.run for trial in known]}
            | {"diverged_runs": diverged}
            | {"unscored_runs": [r["id"] for r in runs if _value(r, measure)[0] is None and not r["is_diverged"]]}
        )
    return entries


def units_of(measure: str, runs: Sequence[Run]) -> list[str]:
    """The units of a measure that some runs that did not diverge have values in."""
    found = [_value(run, measure) for run in runs if not run["is_diverged"]]
    return sorted({unit for value, unit in found if value is not None})


def trials_of(measure: str, unit: str, runs: Sequence[Run]) -> list[Trial]:
    """The runs that have a measure in a unit, and those that diverged, which have no value."""
    trials = []
    for run in runs:
        value, its = _value(run, measure)
        if run["is_diverged"] or (value is not None and its == unit):
            settings = {"lr": run["lr"], "batch": run["batch_rows"], "seed": run["seed"], "others": _others(run)}
            value = None if run["is_diverged"] else value
            trials.append(Trial(method=run["method"], value=value, run=run["id"], **settings))
    return trials


def _others(run: Run) -> tuple[tuple[str, str], ...]:
    """What else than learning rate, batch and seed the run's sweep varied within its method."""
    values = (run.get("cell") or {}).get("values", {})
    return tuple((axis, json.dumps(value)) for axis, value in sorted(values.items()) if axis not in OWN_AXES)


def _value(run: Run, measure: str) -> tuple[float | None, str]:
    """A run's value at its end, and the unit; None where it has none."""
    final = run["final"]
    if final is None:
        return None, ""
    if measure in ("learned", "forgotten"):
        effect = final[measure]
        return (None, "") if effect is None else (effect["value"], effect["unit"])
    value = final["calibration"][measure] if measure in final["calibration"] else final[measure]
    return value, "nats" if measure.endswith("nll") else "accuracy"


def pareto(runs: Sequence[Run]) -> list[tuple[str, int]]:
    """(run, step) of the checkpoints that no other one beats, from the least to the most forgotten.

    Only what is over the same tasks in the same units and began with the same base compares; where there are several
    kinds of that, the most frequent.
    """
    points: list[tuple[Hashable, Point]] = []
    for run in runs:
        for point in run["points"]:
            learned, forgotten = point["learned"], point["forgotten"]
            if learned is None or forgotten is None:
                continue
            tasks = (frozenset(point["over"][effect]) for effect in ("learned", "forgotten"))
            kind = (learned["unit"], forgotten["unit"], base_of(run), *tasks)
            place = Point(run=run["id"], step=point["step"], learned=learned["value"], forgotten=forgotten["value"])
            points.append((kind, place))
    if not points:
        return []
    ((most, _),) = Counter(kind for kind, _ in points).most_common(1)
    return [(point.run, point.step) for point in front(point for kind, point in points if kind == most)]
