"""Where each cell is: what its run directory says, and the queue of its job."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evals.results import DIVERGED
from launch.jobs import events
from launch.slurm import Queued
from launch.sweep.cells import Cell, Sweep
from training.files import read_json

State = Literal["done", "running", "queued", "stopped", "failed", "lost", "not started"]
QUIET_SECONDS = 600.0
"""Without a sign of it a run that no job is known of counts as lost."""
LONGEST = 110
"""Characters of a reason in the table."""


@dataclass(frozen=True, kw_only=True)
class CellState:
    """Where a cell is."""

    state: State
    why: str = ""
    step: int = 0
    steps: int | None = None
    job: str = ""
    """Of the queue, that trains it or will."""

    @property
    def is_taken(self) -> bool:
        """Whether there is nothing to start, as far as can be known: it is done, has diverged, or somebody trains it."""
        return self.state in ("done", "running", "queued") or self.has_diverged

    @property
    def has_diverged(self) -> bool:
        """Whether it failed in a way that another start would not change, or would hide, as skipped steps count."""
        return self.state == "failed" and DIVERGED.search(self.why) is not None


def state_of(cell: Cell, queue: Mapping[str, Queued] | None) -> CellState:
    """What became of a cell so far.

    Args:
        cell: which.
        queue: this user's jobs, by their ids; None where Slurm can't be asked.
    """
    path = cell.run_dir / "run.json"
    record = read_json(path)
    if record is None and path.exists():
        return CellState(state="lost", why="its run.json can't be read")
    record = record or {}
    step, steps = record.get("step") or 0, record.get("steps")
    last = next(reversed(events(cell.run_dir)), None)
    status, why, job = record.get("status", "not started"), "", ""
    state: State = "not started"
    if status == "done":
        state = "done"
    elif last is not None and queue and last.job in queue:
        queued = queue[last.job]
        job = queued.job
        state = "queued" if queued.state == "PENDING" else "running"
        why = f"job {job}" + (f", {queued.reason}" if queued.reason and state == "queued" else "")
    elif status == "preempted":
        state, why = "stopped", f"by {record.get('stopped_by') or 'request'}"
    elif status == "failed":
        state, why = "failed", str(record.get("error") or "")
    elif status == "running":
        if last is not None and queue is not None:
            state, why = "lost", f"job {last.job} is not in the queue"
        elif last is not None and last.event != "ended":
            state = "running"
        elif time.time() - path.stat().st_mtime > QUIET_SECONDS:
            state, why = (
                "lost",
                f"run.json says running, and is {(time.time() - path.stat().st_mtime) / 60:.0f} minutes old",
            )
        else:
            state = "running"
    elif last is not None and last.event == "ended" and last.code:
        state, why = "failed", last.message
    if queue is None and state != "done" and last is not None and last.event != "ended":
        unknown = f"whether job {last.job} is in the queue is not known"
        why = f"{why}; {unknown}" if why else unknown
    return CellState(state=state, why=why, step=step, steps=steps, job=job)


def states_of(sweep: Sweep, queue: Mapping[str, Queued] | None) -> list[CellState]:
    """The state of each cell, in their order."""
    return [state_of(cell, queue) for cell in sweep.cells]


def table(sweep: Sweep, states: Sequence[CellState]) -> str:
    """A line per cell: number, name, state, step and why; then how many there are of each state."""
    rows = [("cell", "name", "state", "step", "")]
    for cell, state in zip(sweep.cells, states, strict=True):
        step = f"{state.step}/{state.steps}" if state.steps else "-"
        rows.append((str(cell.index), cell.name, state.state, step, one_line(state.why)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{index:>{widths[0]}}  {name:<{widths[1]}}  {state:<{widths[2]}}  {step:>{widths[3]}}  {why}".rstrip()
        for index, name, state, step, why in rows
    ]
    return "\n".join([*lines, "", f"{sweep.name}: {summary(states)}"])


def summary(states: Iterable[CellState]) -> str:
    """The number of cells in each state, in words."""
    found = [state.state for state in states]
    counts = {
        state: found.count(state) for state in ("done", "running", "queued", "stopped", "failed", "lost", "not started")
    }
    parts = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return f"{len(found)} cell{'s' * (len(found) != 1)}: {parts}"


def one_line(text: str) -> str:
    """The beginning of a text, for a table."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1].rstrip()}…"
