"""A harness task's entry in evals/<step>.json, from the answers to its requests."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from evals.arithmetic import calibration
from evals.arithmetic.estimators import ratio
from evals.harness.tasks import LoadedTask

CREDITS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
"""Metrics that give an example a credit from 0 to 1."""


def entry(loaded: LoadedTask) -> dict[str, Any]:
    """The entry of a task whose instances have been answered.

    Metrics are the harness's. `score` is the mean of the examples' `correct`, what they get for the metric that is the
    task's score; without such a credit (perplexity, F1 ...) it is the harness's figure. `nll` and `ece` judge the
    probabilities of the choices, the softmax of their log-likelihoods, whichever metric is the score. An example with an
    answer that is not finite has credit 0 and no `nll`; then the task has none either.
    """
    by_example = _instances(loaded)
    values = _metric_values(loaded, by_example)
    name, filter_name = _primary(loaded, values)
    choices = _choices(loaded, by_example) if loaded.task.OUTPUT_TYPE == "multiple_choice" else None
    examples: list[dict[str, Any]] = [{"id": str(doc_id)} for doc_id in by_example]
    score = _figure(loaded, name, values[name, filter_name])
    result: dict[str, Any] = {
        "kind": "harness",
        "domain": loaded.spec.domain,
        "suite": loaded.spec.suite,
        "metric": name,
        "higher_is_better": bool(loaded.task.higher_is_better().get(name, True)),
        "score": score["value"],
        "stderr": score["stderr"],
        "n": len(examples),
        "chance": None,
        "fingerprint": _fingerprint(loaded, by_example),
        "harness": protocol(loaded, name, filter_name),
        "metrics": {_label(key, values): _figure(loaded, key[0], of_metric) for key, of_metric in values.items()},
    }
    if _is_credit(name, values[name, filter_name]):
        result |= {"metric": "accuracy", "chance": 0.0}
        for example, credit in zip(examples, values[name, filter_name], strict=True):
            example["correct"] = float(credit)
    elif name == "bits_per_byte":
        for example, (loglikelihood, num_bytes) in zip(examples, values[name, filter_name], strict=True):
            example |= {"nll": -loglikelihood if math.isfinite(loglikelihood) else None, "bytes": num_bytes}
    if choices is not None:
        result |= _judged_probabilities(choices, examples)
    return result | {"examples": examples}


def protocol(loaded: LoadedTask, metric: str, filter_name: str) -> dict[str, Any]:
    """How the task was asked: what has to be equal for scores to be comparable."""
    task = loaded.task
    written = {"generation": task.config.generation_kwargs, "repeats": task.config.repeats}
    return {
        "task": task.config.task,
        "version": task.VERSION,
        "num_fewshot": loaded.shots,
        "metric": metric,
        "filter": filter_name,
        "lm_eval": version("lm_eval"),
        **(written if task.OUTPUT_TYPE == "generate_until" else {}),
    }


def fingerprint(loaded: LoadedTask) -> str:
    """Hash of every prompt, target, choice and setting: equal hashes mean that two results answer the same questions."""
    return _fingerprint(loaded, _instances(loaded))


def _instances(loaded: LoadedTask) -> dict[int, list[Any]]:
    """The task's instances by example, each in the order of its choices."""
    by_example: dict[int, list[Any]] = {}
    for instance in loaded.task.instances:
        by_example.setdefault(instance.doc_id, []).append(instance)
    return {doc_id: sorted(found, key=lambda i: i.idx) for doc_id, found in by_example.items()}


def _metric_values(loaded: LoadedTask, by_example: Mapping[int, list[Any]]) -> dict[tuple[str, str], list[Any]]:
    """(metric, filter) -> the harness's value for each example."""
    values: dict[tuple[str, str], list[Any]] = {}
    filters = list(next(iter(by_example.values()))[0].filtered_resps)
    for filter_name in filters:
        for instances in by_example.values():
            answers = [instance.filtered_resps[filter_name] for instance in instances]
            with np.errstate(all="ignore"):  # what is not finite is told by `not_finite`, not by numpy
                metrics = loaded.task.process_results(instances[0].doc, answers)
            is_finite = all(_is_finite(answer) for answer in answers)
            for metric, value in metrics.items():
                # The best of choices of which one is unknown is a guess.
                known = value if is_finite or not isinstance(value, int | float) else 0.0
                values.setdefault((metric, filter_name), []).append(known)
    return values


def _primary(loaded: LoadedTask, values: Mapping[tuple[str, str], list[Any]]) -> tuple[str, str]:
    """The metric and filter that are the task's score: as settled, or the first that is a credit, or the first."""
    wanted = loaded.spec.task
    keys = [key for key in values if wanted.metric in (None, key[0]) and wanted.filter in (None, key[1])] or list(
        values
    )
    return next((key for key in keys if _is_credit(key[0], values[key])), keys[0])


def _is_credit(metric: str, values: Sequence[Any]) -> bool:
    return metric in CREDITS and all(isinstance(value, int | float | np.number) for value in values)


def _figure(loaded: LoadedTask, metric: str, values: Sequence[Any]) -> dict[str, Any]:
    """The harness's aggregate, and its standard error where it is a mean."""
    if all(isinstance(value, int | float | bool | np.number) for value in values):
        aggregate = loaded.task.aggregation().get(metric)
        mean, stderr = ratio([float(value) for value in values], np.ones(len(values)))
        if aggregate is None or getattr(aggregate, "__name__", "") == "mean":
            return {"value": mean, "stderr": stderr}
    with np.errstate(all="ignore"):
        return {"value": float(loaded.task.aggregation()[metric](list(values))), "stderr": None}


def _choices(loaded: LoadedTask, by_example: Mapping[int, list[Any]]) -> list[tuple[list[float], list[int]]]:
    """For each example: the log-likelihoods of its choices, and which of them are right."""
    task = loaded.task
    found = []
    for instances in by_example.values():
        doc = instances[0].doc
        options = task.doc_to_choice(doc)
        right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        right = right if isinstance(right, list) else [right]
        indices = [options.index(r) if isinstance(r, str) and r in options else r for r in right]
        # A metric about mutual information asks for each choice a second time, without its context.
        answers = [instance.resps[0][0] for instance in instances[: len(options)]]
        found.append((answers, [i for i in indices if isinstance(i, int) and 0 <= i < len(options)]))
    return found


def _judged_probabilities(
    choices: Sequence[tuple[list[float], list[int]]], examples: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """chance, nll and ece; each example gets its nll."""
    confidence, is_right, losses = [], [], []
    for (loglikelihoods, right), example in zip(choices, examples, strict=True):
        example["nll"] = None
        if not right or not all(map(math.isfinite, loglikelihoods)):
            continue
        logs = calibration.log_softmax(loglikelihoods)
        example["nll"] = max(0.0, -float(calibration.log_mean_exp(logs[right]) + math.log(len(right))))
        losses.append(example["nll"])
        confidence.append(min(1.0, float(np.exp(logs.max()))))
        is_right.append(float(int(logs.argmax()) in right))
    is_complete = len(losses) == len(examples)
    return {
        "chance": float(np.mean([len(right) / len(values) for values, right in choices])),
        "nll": float(np.mean(losses)) if is_complete else None,
        "ece": calibration.expected_calibration_error(confidence, is_right) if is_complete else None,
    }


def _fingerprint(loaded: LoadedTask, by_example: Mapping[int, list[Any]]) -> str:
    digest = hashlib.sha256(repr(loaded.shots).encode())
    for doc_id, instances in by_example.items():
        target = loaded.task.doc_to_target(instances[0].doc)
        asked = [doc_id, [list(instance.args) for instance in instances], target]
        digest.update(json.dumps(asked, sort_keys=True, default=str).encode())
    return f"sha256:{digest.hexdigest()}"


def _label(key: tuple[str, str], values: Mapping[tuple[str, str], list[Any]]) -> str:
    """The metric's name, with the filter's as the harness writes it where there are several."""
    return key[0] if len({filter_name for _, filter_name in values}) == 1 else ",".join(key)


def _is_finite(answer: Any) -> bool:
    value = answer[0] if isinstance(answer, tuple | list) and answer else answer
    return not isinstance(value, float) or math.isfinite(value)
