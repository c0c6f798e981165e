"""What became of a run's Slurm jobs: `slurm/jobs.jsonl` in the run directory, and the last event in run.json as `job`.

Events are written on the login node (submitted) and by the batch script before and after training, never while ranks of
the run write run.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from evals.json_text import parse_json
from training.files import read_json, write_json

FOLDER = "slurm"
"""Of the run directory: submitted scripts, the jobs' output and their events."""

Name = Literal["submitted", "started", "requeued", "ended"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a job of a run."""

    job: str
    """Slurm's id; of an array's task ARRAY_TASK, as in 12_3."""
    event: Name
    message: str = ""
    """For people: why it ended, why it was requeued or not."""
    code: int | None = None
    """Exit code of what the job ran."""
    is_preflight: bool = False
    """Whether it was preflight, before training, that ended."""
    restart: int = 0
    """How often the job had been requeued before."""
    nodes: tuple[str, ...] = ()
    step: int = 0
    """Of the run, when this happened."""
    at: str = ""
    """When, in ISO 8601 and UTC; now, unless given."""


def note(run_dir: Path, event: Event) -> None:
    """Append an event, and show it in run.json, which is made where training has not begun yet.

    Raises:
        OSError: the run directory can't be written.
    """
    event = dataclasses.replace(event, at=event.at or datetime.now(UTC).isoformat(timespec="seconds"))
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "jobs.jsonl").open("ab") as file:
        file.write(json.dumps(dataclasses.asdict(event)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    path = run_dir / "run.json"
    record = read_json(path)
    if record is None and path.exists():
        return  # Damaged; training says so.
    write_json(path, {**(record or {"schema": 1, "status": "not started"}), "job": dataclasses.asdict(event)})


def events(run_dir: Path) -> list[Event]:
    """All events in the order in which they were written; lines that can't be read are left out."""
    try:
        lines = (run_dir / FOLDER / "jobs.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    names = {field.name for field in dataclasses.fields(Event)}
    for line in lines:
        try:
            values = parse_json(line)
            event = Event(**{key: value for key, value in values.items() if key in names})
            event = dataclasses.replace(event, nodes=tuple(event.nodes))
        except (ValueError, TypeError, AttributeError):
            continue
        if _is_sound(event):
            found.append(event)
    return found


def _is_sound(event: Event) -> bool:
    """Whether its fields are what they are to be."""
    return (
        all(isinstance(text, str) for text in (event.job, event.event, event.message, event.at, *event.nodes))
        and isinstance(event.code, int | None)
        and isinstance(event.restart, int)
        and isinstance(event.step, int)
    )
