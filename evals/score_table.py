"""The scores of one evaluation as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("task", "metric", "score", "chance", "n", "nll", "ece")
MISSING = "–"


def rows(tasks: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row of COLUMNS per task; empty where a task has no such figure, a dash where its entry should have one."""
    return [
        (
            name,
            _metric(task),
            (_number(task["score"]) if "score" in task else MISSING)
            + ("" if task.get("stderr") is None else f" ± {_number(task['stderr'])}"),
            _number(task["chance"]) if task.get("chance") is not None else "",
            str(task.get("n", MISSING)),
            _number(task["nll"]) if "nll" in task else "",
            _number(task["ece"]) if "ece" in task else "",
        )
        for name, task in tasks.items()
    ]


def notes(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each task of which there is more to say: pass@k, and what could not be asked or answered in full."""
    return [f"{name}: {', '.join(found)}" for name, task in tasks.items() if (found := _notes(task))]


def table(tasks: Mapping[str, Mapping[str, Any]]) -> Table:
    """The rows as a rich table, in which names are folded before figures are."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        is_name = column in ("task", "metric")
        made.add_column(column, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    for row in rows(tasks):
        made.add_row(*row)
    return made


def _metric(task: Mapping[str, Any]) -> str:
    """The harness's own name where it is more than what the entry calls it."""
    harness = task.get("harness") or {}
    if "metric" not in harness:
        return str(task.get("metric", MISSING))
    suffix = "" if harness.get("filter") in (None, "none") else f", {harness['filter']}"
    return f"{harness['metric']}{suffix}"


def _notes(task: Mapping[str, Any]) -> list[str]:
    found = [f"pass@{k} {_number(value)}" for k, value in (task.get("pass_at_k") or {}).items() if k != "1"]
    for key, text in (("truncated", "contexts cut to the model's length"), ("not_finite", "answers not finite")):
        if task.get(key):
            found.append(f"{task[key]} {text}")
    return found


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
