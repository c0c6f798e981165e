"""What a model keeps when it is taught one thing after another: the score on every task after every stage.

R[i][j] is the score on task j after stage i of T; task j is taught at stage t(j). A row before the stages, where there
is one, is the base model; tasks that nobody taught (t(j) is None) are what it knew. Every quantity is turned so that
positive means better, except `forgetting`. Sources: backward and forward transfer and the matrix, Lopez-Paz & Ranzato
2017 (arXiv 1706.08840), section 2; forgetting, Chaudhry et al. 2018 (arXiv 1801.10112), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.arithmetic.bootstrap import estimate_mean
from evals.arithmetic.forgetting import UNITS, Changes, Estimate, changes
from evals.errors import EvalError

Results = Mapping[str, Mapping[str, Any]]
"""The tasks of an evaluation: the tasks of evals/<step>.json."""


_Pair = tuple[str, Mapping[str, Any], Mapping[str, Any]]
"""A task and its results at two times, both with a score."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A model after a stage of training: the end of a run, or a checkpoint of one."""

    name: str
    results: Results
    teaches: tuple[str, ...] = ()
    """Tasks that measure what this stage taught."""


@dataclass(frozen=True, kw_only=True)
class History:
    """A task through the stages. A quantity is None where a score that it needs is missing.

    Attributes:
        task: its name.
        metric: accuracy or bits_per_byte.
        taught: index of the stage that taught it; None: what the base knew.
        base: the base model's score.
        scores: R[i][j], one per stage.
        retention: (R[T] - chance) / (R[t] - chance), for accuracy; R[t] is the base's score where t is None. None
            where the model was not better than chance at t.
        retention_raw: R[T] / R[t], for accuracy.
        kept_gain: (R[T] - base) / (R[t] - base), the part of what was gained that is still there; in any metric.
        backward: R[T] - R[t], positive = better than right after it was taught; paired where there are examples.
        forgetting: the best score at t or later, before the last stage, - R[T]; positive = worse. (The paper's best
            is over stages before t, too, which differs where a task was better before it was taught.)
        forward: R[t - 1] - base, what earlier stages did for it; for tasks that a later stage than the first taught.
    """

    task: str
    metric: str
    taught: int | None
    base: float | None
    scores: tuple[float | None, ...]
    retention: float | None
    retention_raw: float | None
    kept_gain: float | None
    backward: Estimate | None
    forgetting: float | None
    forward: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Means over the tasks of a metric, unweighted; None where no task has the quantity.

    Attributes:
        metric: accuracy or bits_per_byte.
        average: mean score after the last stage, of the tasks that a stage taught.
        backward: mean backward transfer of the tasks taught before the last stage.
        forward: mean forward transfer of the tasks taught after the first stage.
        forgetting: mean forgetting of the tasks taught before the last stage.
        base_backward: mean change of the tasks that the base knew, from the base to the last stage.
    """

    metric: str
    average: float | None
    backward: Estimate | None
    forward: Estimate | None
    forgetting: float | None
    base_backward: Estimate | None


def histories(stages: Sequence[Stage], base: Results | None = None) -> list[History]:
    """Every task's history, in the order in which the stages' results name them.

    Args:
        stages: the models in the order of training.
        base: results of the model before the first stage.

    Raises:
        EvalError: there is no stage, a stage teaches what it was not scored on, two stages teach the same task, or a
            task's results are not about the same examples.
    """
    return [_history(course) for course in _courses(stages, base)]


def transfer(stages: Sequence[Stage], base: Results | None = None) -> dict[str, Transfer]:
    """Metric -> the means over its tasks; see `histories` for arguments and errors."""
    courses = _courses(stages, base)
    means = {}
    for metric in dict.fromkeys(course.metric for course in courses):
        of_metric = [course for course in courses if course.metric == metric]
        taught = [course for course in of_metric if course.taught is not None]
        before_last = [course for course in taught if course.taught != len(stages) - 1]
        means[metric] = Transfer(
            metric=metric,
            average=_mean([course.score(course.last) for course in taught]),
            backward=_improvement([course.backward() for course in before_last]),
            forward=_improvement([course.forward() for course in taught if course.taught]),
            forgetting=_mean([course.forgetting() for course in before_last]),
            base_backward=_improvement([c.backward() for c in of_metric if c.taught is None]),
        )
    return means


@dataclass(frozen=True, kw_only=True)
class _Course:
    """A task's results through the stages, the base's first: row 0 is the base, row i + 1 is stage i."""

    task: str
    taught: int | None
    rows: tuple[Mapping[str, Any] | None, ...]

    @property
    def metric(self) -> str:
        return str(next(row for row in self.rows if row is not None).get("metric"))

    @property
    def last(self) -> int:
        return len(self.rows) - 1

    @property
    def start(self) -> int:
        """The row right after the task was taught; the base's where the base knew it."""
        return 0 if self.taught is None else self.taught + 1

    def score(self, row: int) -> float | None:
        """None where the task was not scored, or the model diverged."""
        value = (self.rows[row] or {}).get("score")
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def backward(self) -> _Pair | None:
        return self._pair(self.start, self.last)

    def forward(self) -> _Pair | None:
        return self._pair(0, self.start - 1)

    def _pair(self, before: int, after: int) -> _Pair | None:
        first, second = self.rows[before], self.rows[after]
        if first is None or second is None or self.score(before) is None or self.score(after) is None:
            return None
        return self.task, first, second

    def forgetting(self) -> float | None:
        earlier = [score for row in range(self.start, self.last) if (score := self.score(row)) is not None]
        now = self.score(self.last)
        if not earlier or now is None:
            return None
        is_better_higher = bool((self.rows[-1] or {}).get("higher_is_better"))
        return max(earlier) - now if is_better_higher else now - min(earlier)


def _courses(stages: Sequence[Stage], base: Results | None) -> list[_Course]:
    if not stages:
        raise EvalError("no stages; give the models of one run after another")
    taught: dict[str, int] = {}
    for index, stage in enumerate(stages):
        for task in stage.teaches:
            if task not in stage.results:
                raise EvalError(f"stage {stage.name!r}: teaches {task!r} but was not scored on it; evaluate it there")
            if task in taught:
                raise EvalError(
                    f"stage {stage.name!r}: {task!r} is taught by {stages[taught[task]].name!r} already; "
                    "name what is new in each stage"
                )
            taught[task] = index
    rows = [base or {}, *(stage.results for stage in stages)]
    tasks = dict.fromkeys(task for row in [*rows[1:], rows[0]] for task in row)
    return [_Course(task=t, taught=taught.get(t), rows=tuple(row.get(t) for row in rows)) for t in tasks]


def _history(course: _Course) -> History:
    base, start, now = (course.score(row) for row in (0, course.start, course.last))
    is_accuracy = course.metric == "accuracy"
    chance = (course.rows[-1] or {}).get("chance")
    return History(
        task=course.task,
        metric=course.metric,
        taught=course.taught,
        base=base,
        scores=tuple(course.score(row) for row in range(1, len(course.rows))),
        retention=_share(now, start, 0.0 if chance is None else float(chance), positive=True) if is_accuracy else None,
        retention_raw=_share(now, start, 0.0, positive=True) if is_accuracy else None,
        kept_gain=None if course.taught is None else _share(now, start, base),
        backward=_improvement([course.backward()]),
        forgetting=course.forgetting(),
        forward=_improvement([course.forward()]) if course.taught else None,
    )


def _share(now: float | None, start: float | None, origin: float | None, *, positive: bool = False) -> float | None:
    """(now - origin) / (start - origin)."""
    if now is None or start is None or origin is None or start == origin or (positive and start < origin):
        return None
    return (now - origin) / (start - origin)


def _improvement(pairs: Sequence[_Pair | None]) -> Estimate | None:
    """The mean over tasks scored both times, positive = better; without an interval where examples are missing."""
    known = [pair for pair in pairs if pair is not None]
    if not known:
        return None
    if all(before.get("examples") and after.get("examples") for _, before, after in known):
        return estimate_mean([_paired(task, before, after) for task, before, after in known])
    unit = UNITS.get(str(known[0][1].get("metric")), "")
    gains = [(1 if b.get("higher_is_better") else -1) * (a["score"] - b["score"]) for _, b, a in known]
    return Estimate(
        value=math.fsum(gains) / len(gains), n=sum(int(a.get("n") or 0) for _, _, a in known), stderr=None, unit=unit
    )


def _paired(task: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    try:
        return changes(before, after)
    except EvalError as error:
        raise EvalError(f"task {task!r}: {error}") from error


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
