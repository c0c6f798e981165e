"""Every run under a folder in one table, from its files alone; runs that are going or crashed included."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import formatting as fmt
from evals.arithmetic.forgetting import Estimate
from evals.errors import EvalError
from evals.report.methods import METRICS, Method, measure
from evals.results import Run, find_runs, write_json

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1
CALIBRATION = ("nll", "ece", "posterior_nll", "posterior_ece")
"""Columns new_<key> and old_<key>: means over the domain's tasks of choices, after training."""
COLUMNS = (
    "run",
    "method",
    "status",
    "step",
    "steps",
    "tokens_seen",
    "learned",
    "learned_stderr",
    "forgotten",
    "forgotten_stderr",
    "unit",
    *(f"{domain}_{key}" for domain in ("new", "old") for key in CALIBRATION),
    "note",
)


def collect(root: Path) -> list[dict[str, Any]]:
    """A row of COLUMNS per run, None where unknown. `note` says why there is no learned and forgotten.

    Raises:
        EvalError: the folder does not exist.
    """
    root = Path(root)
    return [_row(run, root) for run in find_runs(root)]


def _row(run: Run, root: Path) -> dict[str, Any]:
    logged = run.metrics()
    last = logged[-1] if logged else {}
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {
        "run": run.path.relative_to(root).as_posix(),
        "method": run.label,
        "status": run.status,
        "step": _latest(run.get("step"), last.get("step")),
        "steps": run.get("steps"),
        "tokens_seen": _latest(run.get("tokens_seen"), last.get("tokens_seen")),
    }
    if run.record and run.base is None:
        return row | {"note": "from scratch: nothing to forget"}
    try:
        method = measure(run)
    except EvalError as error:
        return row | {"note": str(error)}
    learned, forgotten = _effects(method)
    for key, effect in (("learned", learned), ("forgotten", forgotten)):
        if effect is not None:
            row |= {key: effect.value, f"{key}_stderr": effect.stderr, "unit": effect.unit}
    return row | _calibration(method.final, "new") | _calibration(method.final, "old")


def _effects(method: Method) -> tuple[Estimate | None, Estimate | None]:
    """Learned and forgotten in the first metric that has either."""
    for metric in METRICS:
        pair = method.effect("new", metric), method.effect("old", metric)
        if any(effect is not None for effect in pair):
            return pair
    return None, None


def _calibration(tasks: Mapping[str, Mapping[str, Any]], domain: str) -> dict[str, float | None]:
    """A domain's columns of CALIBRATION; None where not measured, or undefined for one of the tasks."""
    chosen = [task for task in tasks.values() if task.get("domain") == domain and task.get("metric") == "accuracy"]
    sampled = [task.get("posterior") or {} for task in chosen]
    values = {key: [task.get(key) for task in chosen] for key in ("nll", "ece")}
    values |= {f"posterior_{key}": [task.get(key) for task in sampled] for key in ("nll", "ece")}
    return {f"{domain}_{key}": _mean(of_tasks) for key, of_tasks in values.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _latest(*values: Any) -> int | None:
    """run.json is written now and then, metrics.jsonl at every logged step: whichever is further."""
    known = [value for value in values if isinstance(value, int)]
    return max(known, default=None)


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as a terminal table: as much of them as it holds, with NLL and ECE where any run has them."""
    from rich.table import Table

    judged = [k for k in ("nll", "ece") if any(row[f"{d}_{k}"] is not None for row in rows for d in ("new", "old"))]
    titles = [key.upper() for key in judged]
    result = Table()
    numeric = ("step", "tokens", "learned", "forgotten", *titles)
    for column in ("run", "method", "status", "step", "tokens", "learned", "forgotten", "unit", *titles, "note"):
        result.add_column(column, justify="right" if column in numeric else "left")
    for row in rows:
        steps = [fmt.UNKNOWN if row[key] is None else str(row[key]) for key in ("step", "steps")]
        result.add_row(
            row["run"],
            row["method"],
            row["status"],
            "/".join(steps),
            fmt.count(row["tokens_seen"]),
            _effect(row, "learned"),
            _effect(row, "forgotten"),
            row["unit"] or fmt.UNKNOWN,
            *(_new_and_old(row, key) for key in judged),
            row["note"] or "",
        )
    return result


def _effect(row: dict[str, Any], key: str) -> str:
    if row[key] is None:
        return fmt.UNKNOWN
    return fmt.effect({"value": row[key], "stderr": row[f"{key}_stderr"], "unit": row["unit"]})


def _new_and_old(row: dict[str, Any], key: str) -> str:
    """A line for each domain, which keeps the column narrow."""
    known = {domain: row[f"{domain}_{key}"] for domain in ("new", "old") if row[f"{domain}_{key}"] is not None}
    return "\n".join(f"{domain} {value:.3f}" for domain, value in known.items()) or fmt.UNKNOWN


def write_collected_json(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """{"schema", "runs": rows}."""
    write_json(Path(path), {"schema": SCHEMA, "runs": list(rows)})


def write_collected_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A header line and a line per run; empty cells where unknown."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
