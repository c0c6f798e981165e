"""How far each sweep is, and what became of the cells that are not done."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from evals import formatting as fmt
from evals.collect.terminal import cells_in

HEADERS = ("Cell", "Status", "Step", "Why")
ORDER = ("failed", "unreadable", "stale", "preempted", "running", "not started")
"""What needs somebody first."""


def sweeps(document: Mapping[str, Any]) -> str:
    """A line for each sweep, with a table of its cells that are not done; nothing without sweeps."""
    found = document.get("sweeps") or []
    if not found:
        return ""
    runs = {run["id"]: run for run in document["runs"]}
    states = {name: run.get("status") for name, run in runs.items()}
    blocks = []
    for sweep in found:
        own = [runs[name] for name in sweep["runs"] if name in runs]
        left = sorted((run for run in own if run.get("status") != "done"), key=_place)
        title = f"{escape(sweep['name'])}: {escape(cells_in(sweep, states))}"
        blocks.append(
            f"<details open><summary>{title}</summary>{_table(left)}</details>" if left else f"<p>{title}</p>"
        )
    return f'<section id="sweeps"><h2>Sweeps</h2>{"".join(blocks)}</section>'


def _place(run: Mapping[str, Any]) -> tuple[int, str]:
    status = run.get("status")
    return ORDER.index(status) if status in ORDER else len(ORDER), run["id"]


def _table(runs: list[Mapping[str, Any]]) -> str:
    head = "".join(f'<th scope="col">{header}</th>' for header in HEADERS)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _row(run))}</tr>" for run in runs)
    return f'<div class="list"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(run: Mapping[str, Any]) -> tuple[str, str, str, str]:
    step, steps = (fmt.UNKNOWN if run.get(key) is None else str(run[key]) for key in ("step", "steps"))
    reached = fmt.UNKNOWN if step == fmt.UNKNOWN else f"{step} / {steps}"
    cell = (run.get("cell") or {}).get("name") or run["id"]
    return cell, str(run.get("status")), reached, "; ".join(run.get("notes") or []) or fmt.UNKNOWN
