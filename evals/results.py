"""The files of a run that evaluation writes and reads: evals/<step>.json, run.json, metrics.jsonl.

What was measured at a step may be in several files: evals/<step>.json, which training writes, and
evals/<step>.<name>.json of a job of its own (5000.forgetting.json). Readers merge their tasks.

Readers tolerate runs that are going or crashed: missing files, missing and unknown keys, a half-written last line.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.errors import EvalError
from evals.json_text import parse_json

SCHEMA = 1
KIND_LABELS = {"none": "full finetuning", "lora": "LoRA", "monteclora": "MonteCLoRA"}
"""adapter.kind -> what people call it."""
DIVERGED = re.compile(r"\b(NonFiniteGradients|LossSpikes)\b")
"""run.json's `error` of a run that would end in the same way again, however often it is started."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_RESULT_FILE = re.compile(rf"(0|[1-9][0-9]*)(?:\.({_NAME.pattern}))?\.json")


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


def result_file(run: Path, step: int, name: str | None = None) -> Path:
    """Where results at a step are: <run>/evals/<step>.json, or <step>.<name>.json for those of a job of its own.

    Raises:
        EvalError: the name cannot be part of a file's name.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise EvalError(f"{name!r}: no name for a file of results; use letters, digits, - and _")
    return Path(run) / "evals" / (f"{step}.json" if name is None else f"{step}.{name}.json")


def result_file_step(path: str | os.PathLike[str]) -> tuple[int, str | None] | None:
    """The step and name in a result file's name: 50.json -> (50, None), 50.code.json -> (50, "code"); None: no such."""
    match = _RESULT_FILE.fullmatch(os.path.basename(path))
    return None if match is None else (int(match[1]), match[2])


def result_files(run: Path, step: int | None = None) -> list[Path]:
    """A run's files of results, of one step or all, in the order in which they count: by step, the plain file first."""
    found = [(where, path) for path in (Path(run) / "evals").glob("*.json") if (where := result_file_step(path))]
    found.sort(key=lambda entry: (entry[0][0], entry[0][1] or ""))
    return [path for where, path in found if step in (None, where[0])]


def write_result(
    run: Path, *, step: int, tasks: Mapping[str, Mapping[str, Any]], seconds: float, name: str | None = None
) -> Path:
    """Write what `evaluate` returned to `result_file(run, step, name)` and return that path.

    Args:
        run: the run's folder.
        step: optimizer steps the model has had; 0 is the model as loaded.
        tasks: `evaluate`'s result.
        seconds: wall time of the evaluation.
        name: of the job, when it is not the training run itself.

    Raises:
        EvalError: the name cannot be part of a file's name.
    """
    path = result_file(run, step, name)
    write_json(path, {"schema": SCHEMA, "step": step, "seconds": seconds, "tasks": tasks})
    return path


def read_result(path: Path) -> dict[str, Any]:
    """Read an evaluation's file.

    Raises:
        EvalError: there is no such file, or it is not one of ours.
    """
    try:
        content = parse_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise EvalError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise EvalError(f"{path}: not JSON ({error}); delete it and evaluate again") from error
    if not isinstance(content, dict) or not isinstance(content.get("tasks"), dict):
        raise EvalError(f"{path}: no tasks in this file; it was not written by an evaluation")
    if broken := [name for name, task in content["tasks"].items() if not isinstance(task, dict)]:
        raise EvalError(f"{path}: task {broken[0]!r} is no result; delete the file and evaluate again")
    return content


def merge_results(paths: Sequence[Path]) -> dict[str, Any]:
    """The results of a step from its files: their tasks (one that is in two files is the first's) and seconds together.

    Returns:
        What `read_result` returns, and under `damaged` a message for each file that cannot be used.

    Raises:
        EvalError: none of the files can be used; every one is named.
    """
    usable, damaged = [], []
    for path in paths:
        try:
            usable.append(read_result(path))
        except EvalError as error:
            damaged.append(str(error))
    if not usable:
        raise EvalError("; ".join(damaged))
    tasks: dict[str, Any] = {}
    for content in usable:
        tasks |= {name: task for name, task in content["tasks"].items() if name not in tasks}
    known = [content["seconds"] for content in usable if isinstance(content.get("seconds"), int | float)]
    return usable[0] | {"seconds": math.fsum(known) if known else None, "tasks": tasks, "damaged": damaged}


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
    def is_from_scratch(self) -> bool:
        """Whether it began with random weights; unknown, and so no, before it has written its configuration."""
        return self.base is None and bool(self.get("config", "model") or self.adapter)

    @property
    def label(self) -> str:
        """What people call the run's method."""
        if self.is_from_scratch:
            return "from scratch"
        label = KIND_LABELS.get(self.adapter or "", self.adapter or "unknown")
        return f"{label} + HiddenKey" if self.get("config", "hidden_key", "enabled") is True else label

    def result(self, step: int) -> dict[str, Any]:
        """What was measured at a step, over all its files, as `merge_results` gives it; EvalError without a usable one."""
        return merge_results(result_files(self.path, step) or [result_file(self.path, step)])

    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps in order. A step logged again after a restart counts once, as logged last."""
        return read_metrics(self.path / "metrics.jsonl")


def load_run(path: Path) -> Run:
    """Open a run's folder, whatever state it is in; its evaluations and metrics are read on demand."""
    path = Path(path)
    try:
        record = parse_json((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    steps = {where[0] for file in result_files(path) if (where := result_file_step(file))}
    return Run(path, record if isinstance(record, dict) else {}, tuple(sorted(steps)))


def find_runs(root: Path) -> list[Run]:
    """Every run under a folder (itself included), by path. A folder with run.json or metrics.jsonl is a run.

    Raises:
        EvalError: the folder does not exist.
        OSError: it can't be listed.
    """
    root = Path(root)
    if not root.is_dir():
        raise EvalError(f"{root}: no such folder; give the folder that holds the runs")
    os.scandir(root).close()  # of a folder that can't be listed, the walk would say nothing
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
            entry = parse_json(line)
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
