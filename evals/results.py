"""The files of a run that evaluation writes and reads: evals/<step>.json, run.json, metrics.jsonl.

Readers tolerate runs that are going or crashed: missing files, missing and unknown keys, a half-written last line.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.errors import EvalError

SCHEMA = 1
KIND_LABELS = {"none": "full finetuning", "lora": "LoRA", "monteclora": "MonteCLoRA"}
"""adapter.kind -> what people call it."""


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that readers see the whole file or none of it. Numbers that JSON lacks (nan, inf) become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(_finite(content), file, ensure_ascii=False, allow_nan=False, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_result(run: Path, *, step: int, tasks: Mapping[str, Mapping[str, Any]], seconds: float) -> Path:
    """Write what `evaluate` returned to <run>/evals/<step>.json and return that path.

    Args:
        run: the run's folder.
        step: optimizer steps the model has had; 0 is the model as loaded.
        tasks: `evaluate`'s result.
        seconds: wall time of the evaluation.
    """
    path = Path(run) / "evals" / f"{step}.json"
    write_json(path, {"schema": SCHEMA, "step": step, "seconds": seconds, "tasks": tasks})
    return path


def read_result(path: Path) -> dict[str, Any]:
    """Read an evaluation's file.

    Raises:
        EvalError: there is no such file, or it is not one of ours.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise EvalError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise EvalError(f"{path}: not JSON ({error}); delete it and evaluate again") from error
    if not isinstance(content, dict) or not isinstance(content.get("tasks"), dict):
        raise EvalError(f"{path}: no tasks in this file; it was not written by an evaluation")
    return content


@dataclass(frozen=True)
class Run:
    """A run's folder: its record (run.json; empty when missing or broken) and the steps at which it was evaluated."""

    path: Path
    record: dict[str, Any]
    eval_steps: tuple[int, ...]

    def get(self, *keys: str, default: Any = None) -> Any:
        """The record's value under nested keys, or the default where any of them is missing or null."""
        value: Any = self.record
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return default if value is None else value

    @property
    def status(self) -> str:
        """running, done, preempted or failed, as the run said; unreadable without a usable run.json."""
        return str(self.get("status", default="unknown")) if self.record else "unreadable"

    @property
    def adapter(self) -> str | None:
        """adapter.kind, None when not recorded."""
        kind: str | None = self.get("config", "adapter", "kind")
        return kind

    @property
    def base(self) -> str | None:
        """Folder of the pretrained model the run started from; None for a run from scratch."""
        base: str | None = self.get("config", "model", "base")
        return base

    @property
    def label(self) -> str:
        """What people call the run's method."""
        if self.record and self.base is None:
            return "from scratch"
        label = KIND_LABELS.get(self.adapter or "", self.adapter or "unknown")
        return f"{label} + HiddenKey" if self.get("config", "hidden_key", "enabled") is True else label

    def result(self, step: int) -> dict[str, Any]:
        """The evaluation at a step; EvalError when unreadable."""
        return read_result(self.path / "evals" / f"{step}.json")

    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps in order. A step logged again after a restart counts once, as logged last."""
        return read_metrics(self.path / "metrics.jsonl")


def load_run(path: Path) -> Run:
    """Open a run's folder, whatever state it is in; its evaluations and metrics are read on demand."""
    path = Path(path)
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    steps = sorted(int(file.stem) for file in (path / "evals").glob("*.json") if file.stem.isdecimal())
    return Run(path, record if isinstance(record, dict) else {}, tuple(steps))


def find_runs(root: Path) -> list[Run]:
    """Every run under a folder (itself included), by path. A folder with run.json or metrics.jsonl is a run.

    Raises:
        EvalError: the folder does not exist.
    """
    root = Path(root)
    if not root.is_dir():
        raise EvalError(f"{root}: no such folder; give the folder that holds the runs")
    runs = []
    for folder, subfolders, files in os.walk(root, followlinks=False):
        subfolders.sort()
        if "run.json" in files or "metrics.jsonl" in files:
            runs.append(load_run(Path(folder)))
            subfolders.clear()  # a run's checkpoints can hold thousands of files
    return runs


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl as dicts, by step; lines that are not whole are skipped, a missing file is empty."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    by_step: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            by_step[entry["step"]] = entry
    return [by_step[step] for step in sorted(by_step)]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value
