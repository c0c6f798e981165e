"""The one document that tables and page are made of: every run, every point of it, and what they say together.

{"schema", "root", "collected_at", "seconds", "runs", "sweeps", "skipped", "spreads", "reductions", "pareto", "stages"}; what
is in a run and in a point, `_entry` and `_point` list. A run of a sweep says so in `cell`,
and its method is what the sweep calls it; a cell that has not begun is a run, too (see evals.collect.sweep_runs). An estimate is {"value", "stderr", "low", "high", "n", "unit"}; low and
high are the ends of its paired bootstrap interval, None where it rests on a single document.

The figures of `points` (learned, forgotten, ...) are, as far as that can be, over tasks that all points of the run share,
so that they make a curve; those of `final`, at the run's end, over the most complete tasks there: the rows of tables and
the spreads. `over` names the tasks of each figure; see evals.collect.means.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evals.collect.cache import read_cache, write_cache
from evals.collect.comparisons import pareto, spreads
from evals.collect.lineage import link, stages
from evals.collect.means import over_run
from evals.collect.robustness import reductions
from evals.collect.rounding import rounded
from evals.collect.summaries import CURVE, RECORD, read_items, to_keep
from evals.collect.sweep_runs import as_dict, with_sweeps
from evals.collect.sweeps import read_sweeps
from evals.collect.walk import RunFolder, Skipped, walk
from evals.formatting import duration
from evals.json_text import valid_unicode
from evals.results import DIVERGED

SCHEMA = 1
STALE = 30 * 60.0
"""Seconds without a sign of life, after which a run that says it is running is called stale."""
CACHE = "cache.jsonl"


def collect(
    roots: Sequence[Path],
    cache: Path | None = None,
    *,
    stale: float = STALE,
    now: float | None = None,
    processes: int | None = None,
) -> dict[str, Any]:
    """The document of all runs under some folders.

    Args:
        roots: folders that hold runs.
        cache: file in which what was read is kept for the next time; None: everything is read.
        stale: seconds after which a run that is running but writes nothing is called stale.
        now: seconds since 1970; None: the clock's.
        processes: that read files; None: as many as pay off.

    Raises:
        EvalError: a root does not exist, or storage does not take the cache.
    """
    began, now = time.perf_counter(), time.time() if now is None else now
    folders, skipped, sweep_files = walk(roots)
    known = {} if cache is None else read_cache(cache)
    items = read_items(folders, known, processes=processes)
    kept = to_keep(folders, items)
    if cache is not None and kept.keys() != known.keys():
        write_cache(cache, kept)
    runs = []
    for folder in folders:
        found = items[folder.id]
        skipped += _skipped(folder, found)
        if not found.get(RECORD, {}).get("is_foreign"):
            runs.append(_entry(folder, found, stale, now))
    link(runs, {folder.id: str(folder.path) for folder in folders})
    sweeps, damaged = read_sweeps(sweep_files)
    skipped += damaged
    runs = with_sweeps(runs, sweeps)
    return {
        "schema": SCHEMA,
        "root": valid_unicode(", ".join(str(root) for root in roots)),
        "collected_at": datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - began, 3),
        "runs": runs,
        "sweeps": [as_dict(sweep) for sweep in sweeps],
        "skipped": [
            {"path": valid_unicode(each.path), "reason": valid_unicode(each.reason)} for each in sorted(skipped)
        ],
        "spreads": rounded(spreads(runs)),
        "reductions": rounded(reductions(runs)),
        "pareto": [list(place) for place in pareto(runs)],
        "stages": rounded(stages(runs)),
    }


def _skipped(folder: RunFolder, items: Mapping[str, Any]) -> list[Skipped]:
    """A run's files that could not be used. Those of step 0 are named once, not with every later step."""
    found = {tuple(each) for item in items.values() for each in item.get("skipped", [])}
    for name, item in items.items():
        if item.get("problem"):
            found.add((str(_file(folder, name)), item["problem"]))
    return [Skipped(*each) for each in found]


def _file(folder: RunFolder, part: str) -> Path:
    if part in (RECORD, CURVE):
        return folder.path / {RECORD: "run.json", CURVE: "metrics.jsonl"}[part]
    return folder.path / "weights" / f"{part.replace(' ', '-')}.json"


def _entry(folder: RunFolder, items: Mapping[str, Any], stale: float, now: float) -> dict[str, Any]:
    """A run of the document."""
    record, curve = items.get(RECORD, {}), items.get(CURVE, {})
    notes = list(record.get("notes", []))
    status = record.get("status") or "unknown"
    if RECORD not in items or record.get("problem"):
        status = "unreadable"
        notes.append("run.json cannot be used" if RECORD in items else "no run.json: what the run is, is not known")
    if status == "running" and now - folder.updated_at > stale:
        status = "stale"
        notes.append(f"says it is running, but wrote nothing for {duration(now - folder.updated_at)}: dead?")
    if record.get("why"):
        notes.append(f"{'failed: ' if status == 'failed' else ''}{record['why']}")
    points, final, of_points = _points(folder, items, record)
    if curve.get("is_diverged"):
        notes.append("diverged: the last loss is not a number")
    has_given_up = status == "failed" and DIVERGED.search(record.get("why") or "") is not None
    answers_diverged = bool(points) and any(task["not_finite"] for task in points[-1]["tasks"].values())
    found = [items[f"rank {step}"] for step in sorted(folder.ranks)]
    ranks = [{k: v for k, v in item.items() if k != "problem"} for item in found if item["problem"] is None]
    fields = ("method", "adapter", "rank", "lr", "seed", "batch_rows", "seq_len", "base", "base_fingerprint", "steps",
              "is_from_scratch", "trainable_parameters", "started_at", "seconds", "dir", "branch_from", "init_from", "data")  # fmt: skip
    return {
        "id": folder.id,
        "name": valid_unicode(folder.path.name),
        **{field: record.get(field) for field in fields},
        "method": record.get("method") or "unknown",
        "status": status,
        "step": _further(record.get("step"), curve.get("step")),
        "tokens_seen": _further(record.get("tokens_seen"), curve.get("tokens_seen")),
        "tokens_per_epoch": _product(record.get("rows_per_epoch"), record.get("seq_len")),
        "updated_at": folder.updated_at,
        "is_diverged": bool(curve.get("is_diverged")) or has_given_up or answers_diverged,
        "notes": notes + of_points,
        "points": points,
        "final": final,
        "loss": curve.get("loss", []),
        "rank_change": ranks[-1] if ranks else None,
    }


def _points(
    folder: RunFolder, items: Mapping[str, Any], record: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any] | None, list[str]]:
    """The run's points by step, those with no task left out; its end's figures over the most complete tasks; notes."""
    found = {step: items[f"point {step}"] for step in sorted(folder.evals)}
    notes = [f"step {step}: {note}" for step, item in found.items() for note in item["notes"]]
    found = {step: item for step, item in found.items() if item["tasks"]}
    notes += [f"step {step}: {flaw}" for step, item in found.items() for flaw in item["flaws"]["not_finite"]]
    notes += list(found.values())[-1]["flaws"]["truncated"] if found else []
    is_from_scratch = bool(record.get("is_from_scratch"))
    if record.get("status") == "not started":
        return [], None, notes
    tasks = {step: item["tasks"] for step, item in found.items()}
    if is_from_scratch:
        tasks = {step: {n: task | {"change": None} for n, task in each.items()} for step, each in tasks.items()}
    points = [_point(step, tasks[step], figures, record) for step, figures in over_run(tasks).items()]
    compared = [point["step"] for point in points if point["learned"] or point["forgotten"]]
    if is_from_scratch:
        notes.append("from scratch: nothing to forget")
    elif not found:
        notes.append("not evaluated yet")
    elif 0 not in found:
        notes.append("not scored before training: no evals/0.json; keep at_start on")
    elif len(found) == 1:
        notes.append("not scored after training yet: evals/0.json is the only evaluation")
    elif not compared:
        notes.append("nothing learned or forgotten: no task was scored in the same way before training and after it")
    end = next(reversed(compared or list(tasks)), None)
    # On its own, a point shares its tasks with no other.
    final = None if end is None else {"step": end} | over_run({end: tasks[end]})[end]
    return points, final, notes


def _point(
    step: int, tasks: Mapping[str, Any], figures: Mapping[str, Any], record: Mapping[str, Any]
) -> dict[str, Any]:
    """A point of a run."""
    rows, per_epoch = _product(step, record.get("batch_rows")), record.get("rows_per_epoch")
    return {
        "step": step,
        "tokens": _product(step, record.get("batch_rows"), record.get("seq_len")),
        "epochs": round(rows / per_epoch, 4) if rows is not None and per_epoch else None,
        **figures,
        "tasks": tasks,
    }


def _further(*values: int | None) -> int | None:
    """run.json is written now and then, metrics.jsonl at every logged step: whichever is further."""
    return max((value for value in values if isinstance(value, int)), default=None)


def _product(*values: float | None) -> int | None:
    result = 1.0
    for value in values:
        if value is None:
            return None
        result *= value
    return round(result)
