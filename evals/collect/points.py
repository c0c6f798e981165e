"""A run at a checkpoint, summarised: every task's score, and its change since step 0 without the examples it is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evals.arithmetic.estimators import ratio
from evals.arithmetic.forgetting import UNITS, Changes, Estimate, changes, estimate
from evals.collect.intervals import interval
from evals.collect.rounding import rounded
from evals.errors import EvalError
from evals.results import SCHEMA, read_result

KEPT = (
    "kind",
    "domain",
    "suite",
    "metric",
    "higher_is_better",
    "stderr",
    "n",
    "chance",
    "nll",
    "ece",
    "pass_at_k",
    "unique",
    "posterior",
    "truncated",
    "not_finite",
)
"""Of a task's entry."""
FLAWS = {
    "truncated": "{n:,} prompts of {task} were cut to the model's length",
    "not_finite": "{n:,} answers of {task} are not numbers: the model diverged",
}
"""What a count above 0 means to readers."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured at a step, from all of its files, with what was wrong with them.

    Attributes:
        tasks: their entries; of a task in two files the first file's.
        notes: what readers of the table are to know.
        skipped: (path, reason) of each file that could not be used.
        is_settled: no file was out of reach: reading the same files again gives the same.
        known: columns of tasks' examples, as far as they were asked for.
    """

    tasks: dict[str, dict[str, Any]]
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    is_settled: bool = True
    known: dict[str, Credits | None] = field(default_factory=dict)

    def credits(self, name: str) -> Credits | None:
        """See `credits_of`; worked out once."""
        if name not in self.known:
            self.known[name] = credits_of(self.tasks[name])
        return self.known[name]


def read_evaluation(paths: Iterable[Path]) -> Evaluation:
    """Read a step's files, in the order in which they count."""
    tasks: dict[str, dict[str, Any]] = {}
    notes, skipped, is_settled = [], [], True
    for path in paths:
        try:
            content = read_result(path)
            schema = content.get("schema", SCHEMA)
            if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
                raise EvalError(f"{path}: schema {schema!r} is not known here")
        except (EvalError, RecursionError) as error:
            skipped.append((str(path), str(error).removeprefix(f"{path}: ")))
            is_settled = is_settled and not isinstance(error.__cause__, OSError)
            continue
        if schema > SCHEMA:
            notes.append(f"{path.name} has schema {schema}, newer than {SCHEMA}: shown as far as it is understood")
        tasks |= {name: task for name, task in content["tasks"].items() if name not in tasks}
    return Evaluation(tasks=tasks, notes=tuple(notes), skipped=tuple(skipped), is_settled=is_settled)


def summarize(now: Evaluation, start: Evaluation | None) -> dict[str, Any]:
    """A point of the document: its tasks, each with its change; notes, and skipped files.

    Args:
        now: the step's evaluation.
        start: that of step 0; None at step 0 itself, and for a run that was not scored before training.
    """
    shown = {name: _task(entry) for name, entry in now.tasks.items()}
    paired, notes = _paired(start, now)
    for name, change in paired.items():
        shown[name]["change"] = _change(change)
    return {
        "tasks": rounded(shown),
        "notes": [*now.notes, *notes],
        "flaws": {key: _flaws(key, now) for key in FLAWS},
        "skipped": [list(each) for each in now.skipped],
        "is_settled": now.is_settled and (start is None or start.is_settled),
    }


def _task(entry: Mapping[str, Any]) -> dict[str, Any]:
    harness = entry.get("harness")
    return {key: entry.get(key) for key in KEPT} | {
        "harness": {"task": harness.get("task")} if isinstance(harness, Mapping) else None,
        "has_nll": "nll" in entry,
        "score": _score(entry),
        "change": None,
    }


def _flaws(key: str, now: Evaluation) -> list[str]:
    """A sentence for each task with such a flaw."""
    counts = {name: entry.get(key) for name, entry in now.tasks.items()}
    return [FLAWS[key].format(n=n, task=name) for name, n in counts.items() if isinstance(n, int) and n > 0]


def _paired(start: Evaluation | None, now: Evaluation) -> tuple[dict[str, Changes], list[str]]:
    """The changes of the tasks that were scored both times, and why a task has none."""
    paired, notes = {}, []
    before = {} if start is None else start.tasks
    for name in [name for name in now.tasks if name in before]:
        try:
            quick = None if start is None else quick_changes(name, start, now)
            paired[name] = changes(before[name], now.tasks[name]) if quick is None else quick
        except EvalError as error:
            notes.append(f"task {name!r}: {error}")
        except (KeyError, TypeError, ValueError) as error:
            notes.append(f"task {name!r}: its examples are of another kind ({type(error).__name__}: {error})")
    return paired, notes


def quick_changes(name: str, start: Evaluation, now: Evaluation) -> Changes | None:
    """What `changes` gives, for the usual case: an accuracy of the same examples in the same order; None for any other."""
    before, after = start.tasks[name], now.tasks[name]
    old, new = start.credits(name), now.credits(name)
    if old is None or new is None or old.ids != new.ids:
        return None
    if any(before.get(key) != after.get(key) for key in ("fingerprint", "harness")):
        return None
    deltas = new.values - old.values if before.get("higher_is_better") else old.values - new.values
    return Changes("accuracy", old.ids, deltas, np.ones(len(deltas)), old.ids, before.get("fingerprint") or "")


class Credits(NamedTuple):
    """The examples of an accuracy, each about a document of its own, and what was credited for each."""

    ids: tuple[str, ...]
    values: NDArray[np.float64]


def credits_of(task: Mapping[str, Any]) -> Credits | None:
    """The columns of a task's examples; None where they are of another kind, or broken in any way."""
    examples = task.get("examples")
    # Of the kinds of tasks with an accuracy, only this one has no documents.
    if (
        (task.get("kind"), task.get("metric")) != ("harness", "accuracy")
        or not isinstance(examples, list)
        or not examples
    ):
        return None
    try:
        ids = tuple([example["id"] for example in examples])
        values = [example["correct"] for example in examples]
    except (KeyError, TypeError):
        return None
    are_distinct = set(map(type, ids)) == {str} and len(set(ids)) == len(ids)
    if not are_distinct or not set(map(type, values)) <= {int, float}:
        return None
    column = np.array(values, dtype=np.float64)
    return Credits(ids, column) if np.isfinite(column).all() else None


def _change(paired: Changes) -> dict[str, Any]:
    """{"value", "stderr", "low", "high", "n", "unit"}, low and high being the bootstrap's."""
    found = _estimate(paired)
    low, high = interval(paired)
    known = {"value": found.value, "stderr": found.stderr, "low": low, "high": high}
    return known | {"n": found.n, "unit": found.unit}


def _estimate(paired: Changes) -> Estimate:
    """What `estimate` gives; groups that are the examples need not be summed up."""
    if paired.groups is not paired.ids:
        return estimate(paired)
    value, stderr = ratio(paired.deltas, paired.weights)
    return Estimate(value=value, n=len(paired.ids), stderr=stderr, unit=UNITS[paired.metric])


def _score(task: Mapping[str, Any]) -> float | None:
    value = task.get("score")
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
