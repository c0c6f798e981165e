"""What the page needs of the document: of a thousand runs the whole would be some ten megabytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OF_RUN = ("id", "name", "method", "adapter", "rank", "lr", "seed", "batch_rows", "status", "base", "base_fingerprint", "is_from_scratch", "cell",
          "step", "steps", "tokens_seen", "tokens_per_epoch", "trainable_parameters", "started_at", "parent", "branch_from",
          "is_diverged", "is_continuation", "notes", "final", "loss", "rank_change")  # fmt: skip
OF_POINT = ("step", "tokens", "epochs", "learned", "forgotten", "forgetting_average", "over")
OF_FINAL = ("step", "learned", "forgotten", "learned_accuracy", "forgotten_accuracy", "forgetting_average", "over")
OF_ESTIMATE = ("value", "low", "high", "unit")
OF_TASK = ("domain", "suite", "metric", "score", "stderr", "chance", "nll", "ece", "pass_at_k", "unique")
OF_RANK = ("share", "step", "modules", "layers", "rank", "full_rank", "max_rank")


def page_data(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document for the page's scripts: what they show, in its own names; what is None is left out of tasks."""
    return {"schema": document["schema"], "runs": [_run(run) for run in document["runs"]]}


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: run[key] for key in OF_RUN if key in run}
    found["points"] = [_point(point) for point in run.get("points") or []]
    if found.get("final"):
        found["final"] = _figures(found["final"], OF_FINAL)
    if found.get("rank_change"):
        found["rank_change"] = _some(found["rank_change"], OF_RANK)
    return found


def _point(point: Mapping[str, Any]) -> dict[str, Any]:
    keys: tuple[str, ...] = OF_POINT
    # In accuracy alone, they would be there twice.
    if any((point.get(key) or {}).get("unit") not in (None, "accuracy") for key in ("learned", "forgotten")):
        keys = (*OF_POINT, "learned_accuracy", "forgotten_accuracy")
    tasks = {
        name: {key: value for key, value in _some(task, OF_TASK).items() if value is not None}
        for name, task in point["tasks"].items()
    }
    return _figures(point, keys) | {"tasks": tasks}


def _figures(point: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    found = _some(point, keys)
    found["over"] = _some(point.get("over") or {}, keys)
    return {k: _some(v, OF_ESTIMATE) if isinstance(v, dict) and "value" in v else v for k, v in found.items()}


def _some(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}
