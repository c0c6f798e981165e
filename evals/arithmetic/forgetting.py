"""Learning and forgetting: paired differences between two evaluations of the same examples.

Sign convention. *Learned* is the improvement on the new domain: positive = the model got better at what it was taught.
*Forgotten* is the loss on the old domain: positive = the model got worse at what it knew. "Better" is lower for bits
per byte and higher for accuracy.

Pairing matters: documents differ from each other far more than a model differs before and after training, and that
spread cancels when each example is compared with itself. Documents are taken as independent. Intervals here are value
+- 1.96 standard errors; `evals.arithmetic.bootstrap` has those that make no such assumption.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals.arithmetic.estimators import Z_95, ratio
from evals.errors import EvalError

MOST = 1e30
"""A score beyond it, or below its negative, is none; sums of all that are less fit in fp32."""
UNITS = {"bits_per_byte": "bits per byte", "accuracy": "accuracy", "nll": "nats"}


@dataclass(frozen=True)
class Changes:
    """Per-example changes of one task. The task's change is sum(deltas) / sum(weights).

    Attributes:
        metric: bits_per_byte, accuracy or nll.
        ids: the examples.
        deltas: improvement of each example, positive = better: bits saved, credit gained, or nats of loss saved.
        weights: bytes of each document, or 1 per question.
        groups: the document each example is about; documents, not examples, are independent.
        fingerprint: hash of the tokens scored, "" when unknown.
        protocol: a harness task's settings that decide what `correct` means, "" for other tasks.
    """

    metric: str
    ids: tuple[str, ...]
    deltas: NDArray[np.float64]
    weights: NDArray[np.float64]
    groups: tuple[str, ...]
    fingerprint: str = ""
    protocol: str = ""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its standard error (None: unknown, a single example) and 95 % intervals.

    `low` and `high` are those of the normal approximation, `bootstrap_low` and `bootstrap_high` those of
    `bootstrap.estimate_mean`, None where nothing was drawn.
    """

    value: float
    n: int
    stderr: float | None
    unit: str
    bootstrap_low: float | None = None
    bootstrap_high: float | None = None

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval; -inf when the standard error is unknown."""
        return self.value - (math.inf if self.stderr is None else Z_95 * self.stderr)

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval; inf when the standard error is unknown."""
        return self.value + (math.inf if self.stderr is None else Z_95 * self.stderr)

    def negated(self) -> Estimate:
        """The same estimate with the opposite sign."""
        low = None if self.bootstrap_high is None else 0.0 - self.bootstrap_high
        high = None if self.bootstrap_low is None else 0.0 - self.bootstrap_low
        return replace(self, value=0.0 - self.value, bootstrap_low=low, bootstrap_high=high)

    @property
    def interval(self) -> tuple[float, float]:
        """The interval that decides: the bootstrap's where there is one."""
        if self.bootstrap_low is None or self.bootstrap_high is None:
            return self.low, self.high
        return self.bootstrap_low, self.bootstrap_high

    def as_dict(self) -> dict[str, Any]:
        """For JSON: value, n, stderr, low, high, unit (what is unknown is None), and the bootstrap's ends if drawn."""
        low, high = (None, None) if self.stderr is None else (self.low, self.high)
        known = {"value": self.value, "n": self.n, "stderr": self.stderr, "low": low, "high": high, "unit": self.unit}
        if self.bootstrap_low is None:
            return known
        return known | {"bootstrap_low": self.bootstrap_low, "bootstrap_high": self.bootstrap_high}


def without_subsets(names: Iterable[str]) -> list[str]:
    """Names of tasks without those of which a larger part is there: of hellaswag@50, hellaswag@200 the second.

    A name ending in @n is the first n examples of the task before the @, which alone is all of them.
    """
    return list(_without_subsets(tuple(names)))


@functools.lru_cache(maxsize=1024)
def _without_subsets(names: tuple[str, ...]) -> tuple[str, ...]:
    # Of a thousand runs nearly all were scored on the same tasks.
    sizes = {name: _part(name) for name in names}
    largest: dict[str, float] = {}
    for whole, size in sizes.values():
        largest[whole] = max(size, largest.get(whole, 0.0))
    return tuple(name for name in names if sizes[name][1] == largest[sizes[name][0]])


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    """Improvement of every example from one result of a task to another, matched by id.

    Args:
        before: a task's entry in evals/<step>.json.
        after: the same task's entry at a later step.

    Raises:
        EvalError: the results are not about the same examples, or a score is not a finite number.
    """
    if before.get("metric") != after.get("metric"):
        raise EvalError(
            f"the metrics differ ({before.get('metric')} and {after.get('metric')}); evaluate both with the same task"
        )
    return _paired(before, after, before.get("metric"), 1.0 if before.get("higher_is_better") else -1.0)


def nll_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes | None:
    """Decrease of -log p(answer) of every question, in nats, from one result of a task of choices to another.

    Returns:
        None where a result has no `nll`: another kind of task, a file without it, or a model that diverged.

    Raises:
        EvalError: the results are not about the same examples.
    """
    if any(result.get("metric") != "accuracy" or result.get("nll") is None for result in (before, after)):
        return None
    return _paired(before, after, "nll", -1.0)


def _paired(before: Mapping[str, Any], after: Mapping[str, Any], metric: Any, sign: float) -> Changes:
    _same_questions(before.get("fingerprint"), after.get("fingerprint"))
    _same_protocol(_protocol(before), _protocol(after))
    old, new = _scores(before, metric), _scores(after, metric)
    _same_ids(old, new)
    ids = tuple(old)
    deltas = np.array([sign * (new[i][0] - old[i][0]) for i in ids])
    weights = np.array([old[i][1] for i in ids])
    document = {str(e["id"]): str(e.get("document", e["id"])) for e in before["examples"]}
    groups = tuple(document[i] for i in ids)
    return Changes(str(metric), ids, deltas, weights, groups, before.get("fingerprint") or "", _protocol(before))


def contrast(a: Changes, b: Changes) -> Changes:
    """Per-example difference between two runs' changes of the same task: positive = `a` improved more than `b`.

    Raises:
        EvalError: the runs were not evaluated on the same examples.
    """
    if a.metric != b.metric:
        raise EvalError(f"the metrics differ ({a.metric} and {b.metric}); evaluate both with the same task")
    _same_questions(a.fingerprint, b.fingerprint)
    _same_protocol(a.protocol, b.protocol)
    b_deltas = dict(zip(b.ids, b.deltas, strict=True))
    _same_ids(dict.fromkeys(a.ids), b_deltas)
    other = np.array([b_deltas[i] for i in a.ids])
    return replace(a, deltas=a.deltas - other)


def estimate(paired: Changes) -> Estimate:
    """Improvement over a task's examples: sum(deltas) / sum(weights) with the ratio estimator's standard error."""
    value, stderr = ratio(paired.deltas, paired.weights, paired.groups)
    return Estimate(value=value, n=len(paired.ids), stderr=stderr, unit=UNITS.get(paired.metric, paired.metric))


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Unweighted mean over tasks, whose examples are independent: se = sqrt(sum(se_t^2)) / number of tasks."""
    assert len({e.unit for e in estimates}) == 1, estimates
    errors = [e.stderr for e in estimates if e.stderr is not None]
    stderr = math.hypot(*errors) / len(estimates) if len(errors) == len(estimates) else None
    return Estimate(
        value=math.fsum(e.value for e in estimates) / len(estimates),
        n=sum(e.n for e in estimates),
        stderr=stderr,
        unit=estimates[0].unit,
    )


def learned(before: Mapping[str, Any], after: Mapping[str, Any]) -> Estimate:
    """Improvement on a task of the new domain; positive = learned."""
    return estimate(changes(before, after))


def forgotten(before: Mapping[str, Any], after: Mapping[str, Any]) -> Estimate:
    """Loss on a task of the old domain; positive = forgot."""
    return estimate(changes(before, after)).negated()


def _scores(result: Mapping[str, Any], metric: Any) -> dict[str, tuple[float, float]]:
    """Example id -> (numerator, denominator) of the task's value of a metric."""
    if metric not in UNITS:
        raise EvalError(f"the metric {metric!r} is unknown; known are {', '.join(UNITS)}")
    key = "correct" if metric == "accuracy" else "nll"
    examples = result.get("examples") or []
    if not examples:
        raise EvalError("the result has no per-example scores, so no paired difference can be taken; evaluate again")
    if not isinstance(examples, list) or not all(isinstance(e, Mapping) and "id" in e for e in examples):
        raise EvalError("the result's examples are no scores by id; delete its file and evaluate again")
    needed = (key, "bytes") if metric == "bits_per_byte" else (key,)
    broken = [str(e["id"]) for e in examples if not all(_is_finite(e.get(name)) for name in needed)]
    if broken:
        raise EvalError(f"{len(broken)} examples have no finite score (first: {broken[0]}); the model diverged")
    if metric == "bits_per_byte":
        return {str(e["id"]): (e["nll"] / math.log(2), float(e["bytes"])) for e in examples}
    return {str(e["id"]): (float(e[key]), 1.0) for e in examples}


def _is_finite(value: Any) -> bool:
    # An int may be too large for a float.
    return isinstance(value, int | float) and -MOST < value < MOST


def _part(name: str) -> tuple[str, float]:
    """The task of which a name's examples are part, and how many; inf = all."""
    match = re.fullmatch(r"(.+)@(\d+)", name)
    return (match[1], float(match[2])) if match else (name, math.inf)


def _protocol(result: Mapping[str, Any]) -> str:
    harness = result.get("harness")
    if not isinstance(harness, Mapping):
        return ""
    return ", ".join(
        f"{key} {harness[key]}" for key in ("version", "num_fewshot", "metric", "filter") if key in harness
    )


def _same_ids(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    only_a, only_b = sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys())
    if only_a or only_b:
        named = ", ".join((only_a + only_b)[:3])
        raise EvalError(
            f"the examples differ: {len(only_a)} only in the first result, {len(only_b)} only in the second ({named}); "
            "evaluate both on the same file with the same max_examples and seed"
        )


def _same_questions(a: str | None, b: str | None) -> None:
    if a and b and a != b:
        raise EvalError(
            "the same examples were tokenized or cut differently; "
            "evaluate both with the same file, tokenizer, seq_len and task settings"
        )


def _same_protocol(a: str, b: str) -> None:
    if a != b:
        raise EvalError(f"the task was scored in different ways ({a}; {b}); evaluate both with the same settings")
