"""What the files of a run say of it: read, checked, and not yet judged.

Files may be damaged, half-written or gone a moment later; whatever can't be used is unknown. Of metrics.jsonl, which may
have gigabytes, only the end is read.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

from evals.collect.sweeps import Sweep, read_sweeps
from evals.collect.walk import RunFolder, Skipped, walk
from evals.json_text import parse_json
from evals.results import SCHEMA
from launch.jobs import Event, events
from training.length import parse_length

TAIL = 1 << 14
"""Bytes read of the end of metrics.jsonl: about twenty lines."""
THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of the last logged lines of a run's current start."""

    tokens_per_second: float
    """Of the steps alone, as in metrics.jsonl."""
    seconds_per_step: float
    """Of steps and of saving checkpoints, without evaluations."""
    seconds_per_line: float
    """Between two lines of metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """Training's own evaluations, without those of jobs of their own."""

    steps: tuple[int, ...] = ()
    """After which the model was scored."""
    every_steps: int | None = None
    """Steps between two of them; None where that isn't known, or only start and end are scored."""
    at_steps: tuple[int, ...] = ()
    """Further steps after which the model is scored, as far as the recipe alone says which."""
    has_tasks: bool = False
    """Whether there is anything to score, which the last step then is in any case."""
    mean_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A run on disk. Times are in seconds since 1970; None is unknown."""

    id: str
    path: Path
    problem: str | None = None
    """Why run.json can't be used."""
    status: str = ""
    """As run.json says."""
    error: str | None = None
    stopped_by: str | None = None
    step: int | None = None
    steps: int | None = None
    started_at: float | None = None
    """The current start, or the last."""
    written_at: float = 0.0
    """Last sign of life of the run's processes."""
    has_begun: bool = True
    """Whether the current start has logged a step."""
    speed: Speed | None = None
    is_finite: bool = True
    """Whether the last logged loss is a number."""
    skipped_steps: int = 0
    rewinds: int = 0
    checkpoint: int | None = None
    """Step of the last one."""
    checkpoint_at: float | None = None
    evaluations: Evaluations = Evaluations()
    events: tuple[Event, ...] = ()
    """What became of its jobs."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Everything under some folders."""

    runs: list[Facts]
    sweeps: list[Sweep]
    skipped: list[Skipped]


def find(roots: Sequence[Path], *, threads: int = THREADS) -> Found:
    """Every run under the roots, cells of sweeps that have no folder yet included, by id.

    Raises:
        EvalError: a root does not exist.
    """
    walked = walk(roots, threads=threads)
    with ThreadPoolExecutor(threads) as pool:
        runs = {facts.id: facts for facts in pool.map(read_facts, walked.runs)}
    sweeps, damaged = read_sweeps(walked.sweeps)
    places = {file.folder: file.path.parent for file in walked.sweeps}
    for sweep in sweeps:
        for cell in sweep.cells:
            path = places[sweep.folder] / Path(cell.run).relative_to(sweep.folder or ".")
            runs.setdefault(cell.run, Facts(id=cell.run, path=path, status="not started"))
    return Found(runs=[runs[name] for name in sorted(runs)], sweeps=sweeps, skipped=sorted([*walked.skipped, *damaged]))


def read_facts(folder: RunFolder) -> Facts:
    """What the files of one run say."""
    happened = tuple(events(folder.path))
    record, problem = _record(folder)
    is_running = record.get("status") == "running"
    entries = _tail(folder.path / "metrics.jsonl") if "metrics.jsonl" in folder.records else []
    started_at, checkpoint = _started(record), _count(record.get("last_checkpoint"))
    checkpoint_at = None if checkpoint is None else _modified(folder.path / f"checkpoints/{checkpoint}/MANIFEST.json")
    stamp = folder.records.get("metrics.jsonl")
    current = _of_this_start(
        entries,
        written_at=stamp.mtime_ns / 1e9 if stamp else 0.0,
        started_at=started_at,
        # Saved before this start began, a checkpoint is where it began, or a later one is.
        after=checkpoint if checkpoint_at and started_at and checkpoint_at < started_at else None,
    )
    return Facts(
        id=folder.id, path=folder.path, problem=problem, status=_text(record.get("status")) or "",
        error=_text(record.get("error")), stopped_by=_text(record.get("stopped_by")),
        step=_further(_count(record.get("step")), *(entry["step"] for entry in entries[-1:])), steps=_count(record.get("steps")), started_at=started_at,
        written_at=max(folder.updated_at, *(_signs_of_life(folder.path) if is_running else [0.0])),
        has_begun=bool(current), speed=_speed(current, record),
        is_finite=not entries or "loss" not in entries[-1] or _number(entries[-1]["loss"]) is not None,
        skipped_steps=_count(record.get("skipped_steps")) or 0, rewinds=_count(record.get("rewinds")) or 0,
        checkpoint=checkpoint, checkpoint_at=checkpoint_at,
        evaluations=_evaluations(folder, record), events=happened,
    )  # fmt: skip


def _further(*steps: int | None) -> int | None:
    """run.json is written now and then, metrics.jsonl at every logged step."""
    return max((step for step in steps if step is not None), default=None)


def _record(folder: RunFolder) -> tuple[dict[str, Any], str | None]:
    if "run.json" not in folder.records:
        return {}, "there is no run.json, only metrics.jsonl"
    try:
        content = parse_json((folder.path / "run.json").read_bytes())
    except OSError as error:
        return {}, f"run.json can't be read: {error.strerror}"
    except ValueError as error:
        return {}, f"run.json is damaged: {error}"
    if not isinstance(content, dict) or not isinstance(content.get("status"), str):
        return {}, "run.json is no record of a run"
    schema = content.get("schema", SCHEMA)
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        return {}, f"run.json is another program's: schema {schema!r} is not known here"
    return content, None


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last whole lines that have a step."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            lines = file.read(TAIL).splitlines()[1 if size > TAIL else 0 :]
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and _count(entry.get("step")) is not None:
            found.append(entry)
    return found


def _of_this_start(
    entries: Sequence[dict[str, Any]], *, written_at: float, started_at: float | None, after: int | None
) -> list[dict[str, Any]]:
    """The lines that the current start has written, as far as that can be told: lines have no times.

    The last one is as old as the file, and each one before it older by the seconds that the one after it is about.
    """
    found: list[dict[str, Any]] = []
    for entry in reversed(entries):
        if (started_at is not None and written_at < started_at) or (after is not None and entry["step"] <= after):
            break
        found.append(entry)
        written_at -= (_number(entry.get("step_seconds")) or 0.0) + (_number(entry.get("stall_seconds")) or 0.0)
    return found[::-1]


def _speed(entries: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> Speed | None:
    """Over all of these lines; a line has as many steps as its tokens make."""
    seconds = stalled = tokens = 0.0
    lines = 0
    for entry in entries:
        of_line, rate = _number(entry.get("step_seconds")), _number(entry.get("tokens_per_second"))
        if of_line is not None and rate is not None and of_line > 0 and rate > 0:
            lines += 1
            seconds += of_line
            stalled += max(0.0, _number(entry.get("stall_seconds")) or 0.0)
            tokens += of_line * rate
    per_step = _tokens_per_step(record)
    if not (lines and per_step and math.isfinite(tokens) and tokens > 0):
        return None
    return Speed(
        tokens_per_second=tokens / seconds,
        seconds_per_step=(seconds + stalled) * per_step / tokens,
        seconds_per_line=(seconds + stalled) / lines,
    )


def _tokens_per_step(record: Mapping[str, Any]) -> int | None:
    rows = _count(_get(record, "config", "train", "global_batch_rows"))
    length = _count(_get(record, "config", "data", "seq_len"))
    return rows * length if rows and length else None


def _evaluations(folder: RunFolder, record: Mapping[str, Any]) -> Evaluations:
    steps = tuple(step for step, files in folder.evals.items() if f"{step}.json" in files)
    wanted = _get(record, "config", "eval")
    wanted = wanted if isinstance(wanted, dict) else {}
    every, at_steps = _count(wanted.get("every_steps")), tuple(_points(record, wanted))
    if wanted.get("every") is not None:
        # Written in tokens or epochs: what it comes to in steps shows in what was scored.
        regular = [step for step in steps if step not in at_steps]
        gaps = [later - earlier for earlier, later in itertools.pairwise(regular)]
        every = min(gaps, default=0)
    seconds = _number(record.get("eval_seconds")) or 0.0
    return Evaluations(
        steps=steps, every_steps=every or None, at_steps=at_steps,
        has_tasks=any(bool(wanted.get(key)) for key in ("tasks", "suites", "final_suites")),
        mean_seconds=max(0.0, seconds) / len(steps) if steps else 0.0,
    )  # fmt: skip


def _points(record: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[int]:
    """Steps that eval.at and eval.at_steps mean, those in epochs left out: how long one is, the data decide."""
    written, steps = wanted.get("at"), wanted.get("at_steps")
    yield from (step for step in (steps if isinstance(steps, list) else []) if isinstance(step, int))
    of_unit: dict[str, int | Fraction | None] = {"step": 1, "token": _tokens_per_step(record)}
    if total := _count(record.get("steps")):
        of_unit["%"] = Fraction(100, total)
    for text in written if isinstance(written, list) else []:
        with contextlib.suppress(ValueError):
            length = parse_length(str(text))
            if unit := of_unit.get(length.unit):
                yield max(1, round(length.number / unit))


def _signs_of_life(run: Path) -> Iterator[float]:
    """When the log was written, and answers of an evaluation that goes on."""
    yield _modified(run / "logs" / "rank0.log") or 0.0
    try:
        kept = sorted((run / "evals" / "kept").iterdir())
    except OSError:
        return
    yield from (_modified(path) or 0.0 for path in kept)


def _started(record: Mapping[str, Any]) -> float | None:
    """When the last start began to train."""
    starts = record.get("starts")
    last = starts[-1] if isinstance(starts, list) and starts else None
    return seconds_since_1970(last.get("at") if isinstance(last, dict) else record.get("started"))


def seconds_since_1970(text: Any) -> float | None:
    """Of a time in ISO 8601, UTC where it says no zone; None where it is none."""
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _get(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e300 else None
