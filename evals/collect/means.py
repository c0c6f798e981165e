"""Means over tasks: at all points of a run over the same tasks, at its end over the most complete ones, too.

A run may be scored on parts of tasks on the way (hellaswag@500) and on all of them at its ends. A mean over the parts here
and over the whole there would jump where nothing happened. So a figure is, at all points of a run, over tasks that they
share; only where they share none that make up the figure, over each point's own.

The interval of a mean is made of those of its tasks, whose examples are independent: its ends are sqrt(sum_t d_t^2) / T away
from the mean of T tasks, d_t away from its value being the end of a task's interval (Zou & Donner 2008, Statistics in
Medicine 27:1693).
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from evals.arithmetic.forgetting import without_subsets
from evals.collect.rounding import rounded
from evals.report.methods import METRICS, averaged, forgetting_suite

Task = Mapping[str, Any]
Tasks = Mapping[str, Task]
Choice = Callable[[Tasks, Iterable[str]], list[str]]
"""Of a point's tasks and some of their names those that a figure is the mean over; [] where it cannot be had."""
EFFECTS = {"learned": "new", "forgotten": "old"}


def over_run(points: Mapping[int, Tasks]) -> dict[int, dict[str, Any]]:
    """The figures of a run at each step, over the same tasks as far as that can be.

    Args:
        points: step -> the tasks that were scored, as `points.summarize` gives them.

    Returns:
        Step -> `learned` and `forgotten` (in bits per byte where the run has both in it, else both in accuracy, else each in
        what it has), `learned_accuracy`,
        `forgotten_accuracy`, `learning_score`, `forgetting_average`, `calibration`, and `over`: figure -> its tasks.
    """
    by_metric = {metric: {key: _effect_tasks(points, metric, domain) for key, domain in EFFECTS.items()}
                 for metric in METRICS}  # fmt: skip
    effects = _usual(by_metric) | {f"{key}_accuracy": tasks for key, tasks in by_metric["accuracy"].items()}
    scores = {"learning_score": shared(points, _learning), "forgetting_average": shared(points, _forgetting)}
    asked = {domain: shared(points, functools.partial(_choices, domain)) for domain in ("new", "old")}
    figures = {}
    for step, tasks in points.items():
        over = {name: chosen[step] for name, chosen in (effects | scores).items()}
        found: dict[str, Any] = {name: _effect(name, [tasks[each] for each in over[name]]) for name in effects}
        found |= {name: _mean([tasks[each]["score"] for each in over[name]]) for name in scores}
        calibration = {
            k: v for d in asked for k, v in _calibration(d, [tasks[each] for each in asked[d][step]]).items()
        }
        over = {name: names for name, names in over.items() if names}
        figures[step] = rounded(found | {"calibration": calibration}) | {"over": over}
    return figures


def _usual(by_metric: Mapping[str, Mapping[str, dict[int, list[str]]]]) -> dict[str, dict[int, list[str]]]:
    """The tasks of what was learned and of what was forgotten, in one metric if one has both."""
    for found in by_metric.values():
        if all(any(of.values()) for of in found.values()):
            return dict(found)
    return {
        key: next((found[key] for found in by_metric.values() if any(found[key].values())), by_metric[METRICS[0]][key])
        for key in EFFECTS
    }


def shared(points: Mapping[int, Tasks], choose: Choice) -> dict[int, list[str]]:
    """Step -> the tasks that a figure is over, the same at all steps that have the figure, if they share such tasks."""
    own = {step: choose(tasks, tasks) for step, tasks in points.items()}
    having = [step for step, names in own.items() if names]
    if not having:
        return own
    common = [name for name in points[having[-1]] if all(name in points[step] for step in having)]
    same = {step: choose(points[step], common) for step in having}
    return own | same if all(same.values()) else own


def _effect_tasks(points: Mapping[int, Tasks], metric: str, domain: str) -> dict[int, list[str]]:
    """Step -> the tasks of what was learned or forgotten, of those that were scored at step 0, too."""
    paired = {step: {n: t for n, t in tasks.items() if t["change"] is not None} for step, tasks in points.items()}
    return shared(paired, lambda tasks, names: averaged(tasks, names, domain, metric))


def _learning(tasks: Tasks, names: Iterable[str]) -> list[str]:
    """The accuracies of the new domain: of the suites' tasks where there are any, else of our own."""
    new = [name for name in without_subsets(names) if _is_of(tasks[name], "new", "accuracy")]
    return [name for name in new if tasks[name]["kind"] == "harness"] or new


def _forgetting(tasks: Tasks, names: Iterable[str]) -> list[str]:
    """The study's three tasks (arXiv 2405.09673, section 3.3)."""
    return forgetting_suite(tasks, without_subsets(names))


def _choices(domain: str, tasks: Tasks, names: Iterable[str]) -> list[str]:
    """A domain's tasks with a calibration."""
    asked = [name for name in without_subsets(names) if _is_of(tasks[name], domain, "accuracy")]
    return [name for name in asked if tasks[name]["has_nll"]] or asked


def _is_of(task: Task, domain: str, metric: str) -> bool:
    return task["domain"] == domain and task["metric"] == metric


def _effect(name: str, tasks: Sequence[Task]) -> dict[str, Any] | None:
    """The mean of some tasks' changes; None without any. What is forgotten is a loss: the sign turns."""
    if not tasks:
        return None
    sign = -1 if name.startswith("forgotten") else 1
    mean = mean_change([task["change"] for task in tasks])
    if sign > 0:
        return mean
    low, high = (None if mean[end] is None else 0.0 - mean[end] for end in ("high", "low"))
    return mean | {"value": 0.0 - mean["value"], "low": low, "high": high}


def mean_change(changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of changes {"value", "stderr", "low", "high", "n", "unit"}; what a single one lacks, it lacks."""
    value = statistics.fmean(change["value"] for change in changes)

    def away(end: str) -> float | None:
        known = [abs(change[end] - change["value"]) for change in changes if change[end] is not None]
        return math.hypot(*known) / len(changes) if len(known) == len(changes) else None

    errors = [change["stderr"] for change in changes if change["stderr"] is not None]
    low, high = away("low"), away("high")
    return {
        "value": value,
        "stderr": math.hypot(*errors) / len(changes) if len(errors) == len(changes) else None,
        "low": None if low is None else value - low,
        "high": None if high is None else value + high,
        "n": sum(change["n"] for change in changes),
        "unit": changes[0]["unit"],
    }


def _calibration(domain: str, tasks: Sequence[Task]) -> dict[str, float | None]:
    """Means over a domain's tasks of choices; None where not measured, or undefined for one of the tasks."""
    sampled = [task.get("posterior") or {} for task in tasks]
    values = {f"{domain}_{key}": _mean([task.get(key) for task in tasks]) for key in ("nll", "ece")}
    return values | {f"{domain}_posterior_{key}": _mean([task.get(key) for task in sampled]) for key in ("nll", "ece")}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None
