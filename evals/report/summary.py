"""The report's numbers: which runs are methods, what each learned and forgot, what can be said about them.

Everything the page and the tables show is in the dict that `build_report` returns; `report.json` is that dict.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.arithmetic import calibration
from evals.arithmetic.bootstrap import estimate_mean
from evals.errors import EvalError
from evals.report.methods import METRICS, Method, forgetting_suite, measure
from evals.report.statements import compare_methods, headline
from evals.results import Run, find_runs

SCHEMA = 1
MAX_CURVE_POINTS = 200
DOMAINS = {"new": "learned", "old": "forgotten"}


def build_report(root: Path) -> dict[str, Any]:
    """Everything known about the runs under a folder, as one dict.

    Raises:
        EvalError: no run can be reported: none started from a pretrained model and was scored before and after.
    """
    root = Path(root)
    runs = find_runs(root)
    names = _names(runs, root)
    started = [run for run in runs if run.record and run.base is not None]
    labels = _labels(started, names)
    methods, left_out = [], {}
    for run in runs:
        name = names[run.path]
        if run not in started:
            if not run.record:
                left_out[name] = "run.json is missing or cannot be read"
            elif not run.is_from_scratch:
                message = run.get("job", "message")
                left_out[name] = f"{run.status}: {message}" if message else run.status
            continue
        try:
            methods.append(measure(run, name, labels[run.path]))
        except EvalError as error:
            left_out[name] = str(error)
    if not methods:
        raise EvalError(_nothing_to_report(root, runs, left_out))
    methods.sort(key=lambda m: (_kind_rank(m), m.name))
    metric = next((m for m in METRICS if all(x.tasks("new", m) and x.tasks("old", m) for x in methods)), METRICS[0])
    statements = compare_methods(methods, [m for m in METRICS if m == metric or _measured(methods, m)])
    base = _base_run([run for run in runs if run.is_from_scratch], methods)
    return {
        "schema": SCHEMA,
        "metric": metric,
        "headline": headline(methods, statements, metric),
        "methods": {m.name: _method_entry(m, root) for m in methods},
        "base": None if base is None else _run_entry(base, root),
        **_same_batches(methods),
        "same_base": _all_equal([m.run.get("base_fingerprint") for m in methods]),
        "same_questions": _same_questions(methods),
        "statements": statements,
        "left_out": left_out,
    }


def _method_entry(method: Method, root: Path) -> dict[str, Any]:
    entry = _run_entry(method.run, root) | {"label": method.label, "final_step": method.final_step}
    for domain, key in DOMAINS.items():
        effects = {metric: method.effect(domain, metric) for metric in METRICS}
        by_metric = {metric: None if e is None else e.as_dict() for metric, e in effects.items()}
        entry[key] = by_metric["bits_per_byte"] or by_metric["accuracy"]
        entry[f"{key}_accuracy"] = by_metric["accuracy"]
        entry[f"{key}_tasks"] = {
            task: (estimate_mean([c]) if domain == "new" else estimate_mean([c]).negated()).as_dict()
            for task, c in method.changes.items()
            if method.final[task].get("domain") == domain
        }
        entry[f"{key}_means"] = {metric: method.tasks(domain, metric) for metric in METRICS}
    entry["nll_tasks"] = {task: estimate_mean([c]).as_dict() for task, c in method.nll_changes.items()}
    entry["calibration"] = {
        when: {domain: calibration.means(tasks, domain) for domain in DOMAINS}
        for when, tasks in (("initial", method.initial), ("final", method.final))
    }
    entry["forgetting_average"] = _forgetting_average(method)
    entry["tasks_left_out"] = method.left_out
    entry["damaged"] = [message.replace(f"{root}/", "") for message in method.damaged]
    return entry


def _forgetting_average(method: Method) -> dict[str, Any] | None:
    """The mean accuracy over the forgetting suite before and after training; None unless all of it was scored."""
    tasks = forgetting_suite(method.final, method.tasks("old", "accuracy"))
    if not tasks:
        return None
    before, after = (math.fsum(r[t]["score"] for t in tasks) / len(tasks) for r in (method.initial, method.final))
    change = estimate_mean([method.changes[t] for t in tasks])
    return {"tasks": tasks, "before": before, "after": after, "forgotten": change.negated().as_dict()}


def _run_entry(run: Run, root: Path) -> dict[str, Any]:
    """What is known of a run without pairing anything."""
    return {
        "label": run.label,
        "run": _relative(run.path, root),
        "status": run.status,
        "adapter": run.get("config", "adapter", default={}),
        "seed": run.get("config", "run", "seed"),
        "trainable_parameters": run.get("parameters", "trainable"),
        "total_parameters": run.get("parameters", "total"),
        "seconds": run.get("seconds"),
        "eval_seconds": run.get("eval_seconds"),
        "step": run.get("step"),
        "steps": run.get("steps"),
        "tokens_seen": run.get("tokens_seen"),
        "world_size": run.get("world", "size"),
        "versions": run.get("versions", default={}),
        "loss_curve": _loss_curve(run),
        "initial": _scores_at(run, 0),
        "final": _scores_at(run, run.eval_steps[-1]) if run.eval_steps and run.eval_steps[-1] > 0 else {},
    }


def _loss_curve(run: Run) -> list[list[float]]:
    """[tokens seen, training loss in nats per token], thinned to what a plot can show."""
    points = [
        [float(m["tokens_seen"]), float(m["loss"])]
        for m in run.metrics()
        if isinstance(m.get("loss"), int | float)
        and math.isfinite(m["loss"])
        and isinstance(m.get("tokens_seen"), int | float)
    ]
    stride = max(1, -(-len(points) // MAX_CURVE_POINTS))
    return points[::stride]


def _scores_at(run: Run, step: int) -> dict[str, Any]:
    """Each task's score at a step, without its examples; empty when unknown."""
    try:
        tasks = run.result(step)["tasks"]
    except EvalError:
        return {}
    return {task: {k: v for k, v in result.items() if k != "examples"} for task, result in tasks.items()}


def _same_batches(methods: Sequence[Method]) -> dict[str, Any]:
    """Whether the methods trained on identical batches: their running hashes agree at the last common step."""
    hashes = [{m["step"]: m["data_hash"] for m in x.run.metrics() if m.get("data_hash")} for x in methods]
    common = set.intersection(*(set(h) for h in hashes))
    if len(methods) < 2 or not common:
        return {"same_batches": None, "same_batches_step": None}
    last = max(common)
    return {"same_batches": len({h[last] for h in hashes}) == 1, "same_batches_step": last}


def _same_questions(methods: Sequence[Method]) -> bool | None:
    prints = [tuple(sorted((t, c.fingerprint) for t, c in m.changes.items() if c.fingerprint)) for m in methods]
    return _all_equal([p or None for p in prints])


def _all_equal(values: Sequence[Any]) -> bool | None:
    """Whether all values are the same; None with fewer than two values, or when one is unknown."""
    if len(values) < 2 or any(value is None for value in values):
        return None
    return len(set(values)) == 1


def _measured(methods: Sequence[Method], metric: str) -> bool:
    return all(m.tasks("new", metric) or m.tasks("old", metric) for m in methods)


def _kind_rank(method: Method) -> int:
    order = ("none", "lora", "monteclora")
    return order.index(method.run.adapter) if method.run.adapter in order else len(order)


def _base_run(candidates: Sequence[Run], methods: Sequence[Method]) -> Run | None:
    """The run that made the pretrained model: the one whose folder the methods' model.base names, else the first."""
    parts = {part for m in methods for part in Path(str(m.run.base)).parts}
    return next((run for run in candidates if run.path.name in parts), candidates[0] if candidates else None)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _names(runs: Sequence[Run], root: Path) -> dict[Path, str]:
    """Each run's folder name, or its path under the root where two runs share a folder name."""
    folder = {run.path: run.path.resolve().name for run in runs}
    counts = Counter(folder.values())
    return {p: name if counts[name] == 1 else _relative(p, root) for p, name in folder.items()}


def _labels(runs: Sequence[Run], names: Mapping[Path, str]) -> dict[Path, str]:
    counts = Counter(run.label for run in runs)
    return {r.path: r.label if counts[r.label] == 1 else f"{r.label} ({names[r.path]})" for r in runs}


def _nothing_to_report(root: Path, runs: Sequence[Run], left_out: Mapping[str, str]) -> str:
    reasons = "".join(f"\n  {name}: {reason}" for name, reason in left_out.items())
    return (
        f"{root}: nothing to report among {len(runs)} runs; a report needs a run that started from a pretrained model "
        f"(model.base) and was scored before and after training{reasons}"
    )


def relative_change(entry: Mapping[str, Any], key: str) -> float | None:
    """Learned or forgotten bits per byte relative to the score before training; None where unknown or not positive."""
    effect, domain = entry.get(key), next(d for d, k in DOMAINS.items() if k == key)
    scores = [
        s.get("score")
        for s in entry["initial"].values()
        if s.get("domain") == domain and s.get("metric") == "bits_per_byte"
    ]
    if not effect or effect["unit"] != "bits per byte" or not scores or any(not s for s in scores):
        return None
    return float(effect["value"] / (math.fsum(scores) / len(scores)))
