"""What collect takes from a run's run.json, whatever schema it has and whatever is missing in it."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

from evals.json_text import parse_json
from evals.results import SCHEMA, Run

MOST_OF_WHY = 400
"""Characters of a reason."""


def read_record(path: Path) -> dict[str, Any]:
    """A run's record as `describe` gives it, with `notes`, and `problem` (None: it is readable).

    A newer schema is read as far as it is understood, and noted. A schema that is no number is another program's, whose
    names may mean anything: `is_foreign`.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        return _unusable(path, f"not JSON ({error})")
    if not isinstance(content, dict) or not content:
        return _unusable(path, "no record of a run")
    schema = content.get("schema", SCHEMA)
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        return _unusable(path, f"schema {schema!r} is not known here") | {"is_foreign": True}
    if not isinstance(content.get("config", {}), dict):
        return _unusable(path, f"of schema {schema}, with another kind of config" if schema > SCHEMA else "no config")
    notes = [f"run.json has schema {schema}, newer than {SCHEMA}: shown as far as it is understood"]
    try:
        fields = describe(Run(path.parent, content, ()))
    except TypeError:
        return _unusable(path, f"of schema {schema}, with other kinds of values than known here")
    return fields | {"notes": notes if schema > SCHEMA else [], "problem": None, "is_foreign": False}


def describe(run: Run) -> dict[str, Any]:
    """The fields of a run in the document that its record tells, None where unknown."""
    kind = _text(run.adapter)
    return {
        "method": _text(run.label),
        "adapter": kind,
        "rank": None if kind == "none" else _whole(run.get("config", "adapter", "rank")),
        "lr": _number(run.get("config", "optim", "lr")),
        "seed": _whole(run.get("config", "run", "seed")),
        "batch_rows": _whole(run.get("config", "train", "global_batch_rows")),
        "seq_len": _whole(run.get("config", "data", "seq_len")),
        "status": _text(run.status),
        "base": _text(run.base),
        "base_fingerprint": _text(run.get("base_fingerprint")),
        "is_from_scratch": run.is_from_scratch,
        "why": _why(run),
        "step": _whole(run.get("step")),
        "steps": _whole(run.get("steps")),
        "tokens_seen": _whole(run.get("tokens_seen")),
        "rows_per_epoch": _number(run.get("epoch", "rows")),
        "trainable_parameters": _whole(run.get("parameters", "trainable")),
        "started_at": _seconds(run.get("started")),
        "seconds": _number(run.get("seconds")),
        "dir": _text(run.get("config", "run", "dir")),
        "branch_from": _text(run.get("config", "run", "branch_from")),
        "data": _data(run.get("config", "data", "sources")),
        "init_from": _text(run.get("config", "adapter", "init_from")),
    }


def _why(run: Run) -> str | None:
    """Why it failed or was stopped, or why a job of it ended before training began; on one line."""
    if run.status == "failed":
        return _line(run.get("error"))
    if run.status == "preempted":
        stopped_by = _line(run.get("stopped_by"))
        return f"stopped by {stopped_by}" if stopped_by else None
    is_over = run.get("job", "event") == "ended" and run.status in ("not started", "running")
    message = _line(run.get("job", "message")) if is_over else None
    return f"job {run.get('job', 'job')}: {message}" if message else None


def _line(value: Any) -> str | None:
    return " ".join(value.split())[:MOST_OF_WHY] if isinstance(value, str) else None


def _unusable(path: Path, problem: str) -> dict[str, Any]:
    return describe(Run(path.parent, {}, ())) | {"notes": [], "problem": problem, "is_foreign": False}


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _data(sources: Any) -> list[str] | None:
    """The files that a run trains on, and nothing of how they are mixed."""
    if not isinstance(sources, dict) or not all(isinstance(source, dict) for source in sources.values()):
        return None
    names = [[source.get(key) for key in ("path", "dataset", "subset", "split")] for source in sources.values()]
    return sorted(" ".join(str(part) for part in name if part) for name in names) or None


def _seconds(value: Any) -> float | None:
    try:
        return datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError):
        return None
