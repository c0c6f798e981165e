"""States as a table in a terminal, as aligned lines where they are piped, as JSON, and counted."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from launch.plan.units import duration
from launch.status.state import ORDER, State

if TYPE_CHECKING:
    from rich.table import Table

    from evals.collect.sweeps import Sweep

UNKNOWN = "-"
COLUMNS = ("run", "state", "step", "tokens/s", "ETA", "checkpoint", "job", "why")
NUMBERS = ("step", "tokens/s", "ETA", "checkpoint")
STYLES = {
    "failed": "red", "damaged": "red", "lost": "red", "running": "cyan", "evaluating": "cyan", "saving": "cyan", "starting": "cyan",
    "requeued": "yellow", "queued": "yellow", "stopped": "yellow", "done": "green",
}  # fmt: skip
MANY = 40
"""Rows of a terminal's table, beyond which runs that need nobody are counted instead, unless all are asked for."""
QUIET = ("done", "not started")
ALWAYS = ("run", "state", "step")
WIDE = 150
"""Columns of a terminal from which nothing has to be folded."""
WIDTHS = {"run": 24, "step": 9, "checkpoint": 12}
"""Of columns in a terminal that is narrower."""


def cells(state: State) -> dict[str, str]:
    """A run's row by column."""
    checkpoint = UNKNOWN if state.checkpoint is None else str(state.checkpoint)
    if state.checkpoint_age_seconds is not None:
        checkpoint += f", {duration(state.checkpoint_age_seconds)} ago"
    job = state.job or UNKNOWN
    if state.job_state:
        job += f" {state.job_state.lower()}"
    if state.restart:
        job += f", restart {state.restart}"
    return {
        "run": state.id,
        "state": state.state,
        "step": _step(state),
        "tokens/s": UNKNOWN if state.tokens_per_second is None else f"{state.tokens_per_second:,.0f}",
        "ETA": UNKNOWN if state.eta_seconds is None else duration(state.eta_seconds),
        "checkpoint": checkpoint,
        "job": job,
        "why": state.why or UNKNOWN,
    }


def table(states: Sequence[State], width: int) -> Table:
    """For a terminal of so many columns; what is long is folded, and columns without anything are left out."""
    from rich.table import Table
    from rich.text import Text

    rows = [cells(state) for state in states]
    if width < WIDE:
        rows = [_narrow(row) for row in rows]
    shown = [column for column in COLUMNS if column in ALWAYS or any(row[column] != UNKNOWN for row in rows)]
    made = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", width=width)
    for column in shown:
        made.add_column(
            column,
            justify="right" if column in NUMBERS else "left",
            overflow="fold",
            no_wrap=column in ("state", "tokens/s", "ETA"),
            max_width=WIDTHS.get(column) if width < WIDE else None,
            ratio=1 if column == "why" else None,
        )
    for row in rows:
        styles = {"state": STYLES.get(row["state"], "")}
        # Names and reasons are other people's: nothing in them is markup.
        made.add_row(*(Text(row[column], style=styles.get(column, "")) for column in shown))
    return made


def _narrow(row: Mapping[str, str]) -> dict[str, str]:
    """A row with its job above the reason."""
    job = [] if row["job"] == UNKNOWN else [f"job {row['job']}"]
    why = [] if row["why"] == UNKNOWN else [row["why"]]
    return {**row, "job": UNKNOWN, "why": "\n".join(job + why) or UNKNOWN}


def lines(states: Sequence[State]) -> list[str]:
    """A header and a line per run, in columns that are two blanks or more apart."""
    rows = [dict(zip(COLUMNS, COLUMNS, strict=True)), *(cells(state) for state in states)]
    widths = {column: max(len(row[column]) for row in rows) for column in COLUMNS}
    return [
        "  ".join(
            row[column].rjust(widths[column]) if column in NUMBERS else row[column].ljust(widths[column])
            for column in COLUMNS
        ).rstrip()
        for row in rows
    ]


def shortened(states: Sequence[State]) -> tuple[list[State], list[State]]:
    """What a terminal shows of many runs, and what it leaves out: runs that need nobody."""
    if len(states) <= MANY:
        return list(states), []
    return [s for s in states if s.state not in QUIET], [s for s in states if s.state in QUIET]


def totals(states: Sequence[State]) -> str:
    """How many runs are in each state: "3 runs: 1 failed, 2 done"."""
    return f"{_many(len(states), 'run')}: {_counted(states)}" if states else "no runs"


def sweep_totals(sweep: Sweep, states: Mapping[str, State]) -> str:
    """The same of a sweep's cells, `states` by id of their runs."""
    own = [states[cell.run] for cell in sweep.cells if cell.run in states]
    return f"sweep {sweep.name}: {_many(len(sweep.cells), 'cell')}: {_counted(own)}"


def as_json(states: Sequence[State], sweeps: Sequence[Sweep]) -> dict[str, Any]:
    """Everything for other programs: seconds, steps and tokens as numbers, null where unknown."""
    return {
        "schema": 1,
        "runs": [dataclasses.asdict(state) for state in states],
        "sweeps": [
            {"name": sweep.name, "folder": sweep.folder, "runs": [cell.run for cell in sweep.cells]} for sweep in sweeps
        ],
    }


def _step(state: State) -> str:
    if state.step is None and state.steps is None:
        return UNKNOWN
    done, all_ = ("?" if value is None else str(value) for value in (state.step, state.steps))
    share = f" {100 * min(1.0, state.step / state.steps):.0f}%" if state.steps and state.step is not None else ""
    return f"{done}/{all_}{share}"


def _counted(states: Sequence[State]) -> str:
    counts = Counter(state.state for state in states)
    return ", ".join(f"{counts[name]} {name}" for name in ORDER if counts[name])


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
