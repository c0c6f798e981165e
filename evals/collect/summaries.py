"""Every run's files read, as far as they changed, into small items; by several processes where there is much to read.

A run has an item for its record, one for its loss curve, and one for each evaluation and each rank of the weight
change. An item's key names its files with their sizes and times, those of step 0 included for a later evaluation, so
that it is read once in the life of a study.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from evals.collect.curve import read_curve
from evals.collect.points import Evaluation, read_evaluation, summarize
from evals.collect.records import read_record
from evals.collect.rounding import rounded
from evals.collect.walk import RunFolder, Stamp
from evals.json_text import parse_json

RECORD, CURVE = "record", "curve"
PER_CORE, MOST = 2, 16
"""Processes that read: more than cores, as they wait for storage, too; not more than a login node bears."""
CHUNK = 8
"""Runs that a process is given at a time."""
FEW_BYTES = 20_000_000
"""Up to so much to read, more processes take longer to start than they save."""
RANK_KEYS = (
    "share",
    "before",
    "after",
    "step",
    "modules",
    "layers",
    "rank",
    "full_rank",
    "max_rank",
    "relative_change",
)

Items = dict[str, Any]


class Part(NamedTuple):
    """One item of a run: its name in the run, its key in the cache, and the bytes to read for it."""

    name: str
    key: str
    size: int


def parts(run: RunFolder) -> list[Part]:
    """The items of a run: record, curve, point <step>, rank <step>."""
    found = [
        _part(run, name, {file: run.records[file]})
        for name, file in ((RECORD, "run.json"), (CURVE, "metrics.jsonl"))
        if file in run.records
    ]
    start = run.evals.get(0, {})
    found += [_part(run, f"point {step}", start | files if step else files) for step, files in run.evals.items()]
    return found + [_part(run, f"rank {step}", files) for step, files in run.ranks.items()]


def read_items(
    runs: Sequence[RunFolder], known: Mapping[str, Any], *, processes: int | None = None
) -> dict[str, Items]:
    """Run id -> part name -> item, of all runs; files are read for the parts whose key is not in `known`.

    Args:
        runs: the runs.
        known: key -> item, of an earlier time.
        processes: that read; None: as many as pay off. To start them, the main module must be importable.
    """
    wanted = {run.id: [part for part in parts(run) if part.key not in known] for run in runs}
    jobs = [(run, [part.name for part in wanted[run.id]]) for run in runs if wanted[run.id]]
    size = sum(part.size for each in wanted.values() for part in each)
    if processes is None:
        processes = 1 if size <= FEW_BYTES else min(MOST, PER_CORE * len(os.sched_getaffinity(0)))
    fresh = dict(_read_all(jobs, processes))
    return {
        run.id: {p.name: known[p.key] if p.key in known else fresh[run.id][p.name] for p in parts(run)} for run in runs
    }


def to_keep(runs: Iterable[RunFolder], items: Mapping[str, Items]) -> dict[str, Any]:
    """Key -> item of all that would be read the same again, for the cache."""
    found = {part.key: items[run.id][part.name] for run in runs for part in parts(run)}
    return {key: item for key, item in found.items() if item.get("is_settled", True)}


def _read_all(jobs: Sequence[tuple[RunFolder, list[str]]], processes: int) -> Iterator[tuple[str, Items]]:
    if processes <= 1 or len(jobs) < 2:
        yield from _read_chunk(jobs)
        return
    # Forked from a process with threads, a child can hang.
    context = multiprocessing.get_context("spawn")
    chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
    pool = ProcessPoolExecutor(processes, context, initializer=_begin)
    try:
        for done in pool.map(_read_chunk, chunks):
            yield from done
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    # Interrupted from the terminal, only the parent is to speak.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Millions of objects that refer to nothing: looking for cycles among them takes a third of the time.
    gc.disable()


def _read_chunk(jobs: Sequence[tuple[RunFolder, list[str]]]) -> list[tuple[str, Items]]:
    return [(run.id, _read_run(run, names)) for run, names in jobs]


def _read_run(run: RunFolder, names: Sequence[str]) -> Items:
    items: Items = {}
    if RECORD in names:
        items[RECORD] = _guarded(read_record, run.path / "run.json")
    if CURVE in names:
        items[CURVE] = _guarded(read_curve, run.path / "metrics.jsonl")
    items |= _points(run, [int(name.split()[1]) for name in names if name.startswith("point ")])
    for name in [name for name in names if name.startswith("rank ")]:
        (file,) = run.ranks[int(name.split()[1])]
        items[name] = _guarded(read_rank, run.path / "weights" / file)
    return items


def _points(run: RunFolder, steps: Sequence[int]) -> Items:
    """The evaluations at some steps; that at step 0 is read once for all of them."""
    if not steps:
        return {}
    start = _evaluation(run, 0) if 0 in run.evals else None
    items: Items = {}
    for step in steps:
        now = _evaluation(run, step) if step or start is None else start
        items[f"point {step}"] = summarize(now, start if step else None)
    return items


def _evaluation(run: RunFolder, step: int) -> Evaluation:
    return read_evaluation([run.path / "evals" / file for file in run.evals[step]])


def read_rank(path: Path) -> dict[str, Any]:
    """A rank of the weight change, without its rows; `problem` says why there is none.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        return {"problem": f"not JSON ({error})"}
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ("modules", "layers", "rank")
    ):
        return {"problem": "no rank of a weight change: it has no modules, layers and rank"}
    shape = len(content["layers"]), len(content["modules"])
    if not _is_grid(content["rank"], shape) or not _is_grid(content.get("full_rank", content["rank"]), shape):
        return {"problem": "no rank of a weight change: not a number for each layer and module"}
    return {key: rounded(content.get(key)) for key in RANK_KEYS} | {"problem": None}


def _is_grid(rows: Any, shape: tuple[int, int]) -> bool:
    """Whether these are so many rows of so many ranks, or nulls."""
    if not isinstance(rows, list) or len(rows) != shape[0]:
        return False
    if not all(isinstance(row, list) and len(row) == shape[1] for row in rows):
        return False
    return all(value is None or (type(value) is int and 0 <= value < 2**53) for row in rows for value in row)


def _guarded(read: Callable[[Path], dict[str, Any]], path: Path) -> dict[str, Any]:
    """What `read` gives; a file out of reach is a problem that may be none the next time."""
    try:
        return read(path)
    except OSError as error:
        return {"problem": f"cannot be read ({error.strerror})", "is_settled": False}


def _part(run: RunFolder, name: str, files: Mapping[str, Stamp]) -> Part:
    stamps = ";".join(f"{file}:{stamp.size}:{stamp.mtime_ns}" for file, stamp in files.items())
    return Part(name, f"{run.path}|{name}|{stamps}", sum(stamp.size for stamp in files.values()))
