"""Run folders in every state, as training and the batch scripts leave them."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launch.jobs import Event, note

NOW = 1_800_000_000.0
ROWS, LENGTH = 8, 64


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def line(step: int, *, step_seconds: float = 2.0, steps: int = 1, **values: Any) -> dict[str, Any]:
    """A line of metrics.jsonl about some steps."""
    tokens = steps * ROWS * LENGTH
    return {
        "step": step, "tokens_seen": step * ROWS * LENGTH, "loss": 2.0, "tokens_per_second": tokens / step_seconds,
        "step_seconds": step_seconds, "stall_seconds": 0.0,
    } | values  # fmt: skip


def make_run(
    run: Path,
    status: str = "running",
    *,
    lines: list[dict[str, Any]] | None = None,
    started_at: float = NOW - 1000,
    written_at: float = NOW - 10,
    evals: tuple[int, ...] = (),
    config: dict[str, Any] | None = None,
    checkpoint_at: float | None = None,
    **record: Any,
) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    settings = {"train": {"global_batch_rows": ROWS}, "data": {"seq_len": LENGTH}} | (config or {})
    content = {
        "schema": 1, "status": status, "config": settings, "step": 0, "steps": 100, "started": iso(started_at),
        "starts": [{"at": iso(started_at), "world_size": 2}], "last_checkpoint": None,
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(content | record))
    if lines is not None:
        (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    for step in evals:
        (run / "evals").mkdir(exist_ok=True)
        (run / "evals" / f"{step}.json").write_text("{}")
    for file in run.rglob("*"):
        os.utime(file, (written_at, written_at))
    if checkpoint_at is not None:
        manifest = run / f"checkpoints/{record['last_checkpoint']}/MANIFEST.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text("{}")
        os.utime(manifest, (checkpoint_at, checkpoint_at))
    return run


def add_event(run: Path, name: str, *, job: str = "12", at: float = NOW - 900, **values: Any) -> None:
    record = run / "run.json"
    before = record.stat().st_mtime if record.exists() else at
    note(run, Event(job=job, event=name, at=iso(at), **values))  # type: ignore[arg-type]
    os.utime(record, (before, before))


def make_sweep(root: Path, cells: dict[str, dict[str, Any]], *, name: str = "rank-study") -> None:
    content = {
        "schema": 1, "name": name, "file": f"/recipes/{name}.toml", "axes": list(next(iter(cells.values()))),
        "cells": [{"index": i, "name": cell, "run": cell, "values": values} for i, (cell, values) in enumerate(cells.items())],
    }  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    (root / "sweep.json").write_text(json.dumps(content))
