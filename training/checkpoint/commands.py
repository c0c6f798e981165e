"""`ls` and `verify`: which checkpoints there are, and whether they still are what was written. No torch in here."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_pipeline.commands.formatting import format_bytes
from data_pipeline.commands.progress import ProgressReporter
from data_pipeline.commands.tables import print_table
from data_pipeline.files import unseen
from training.checkpoint import storage
from training.checkpoint.manifest import (
    MANIFEST,
    Checkpoint,
    file_damage,
    folders,
    open_checkpoint,
    read_manifest,
)
from training.checkpoint.recorded import first_step, recorded_config
from training.checkpoint.retention import retention_of, scores
from training.errors import CheckpointError
from training.files import read_json
from training.record.run_record import usable_record

if TYPE_CHECKING:
    from rich.table import Table

READERS = 8
"""Files that are read at once: hashing keeps a core busy, and shared storage is faster for several readers."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a path on the command line names."""

    path: Path
    """A folder of checkpoints, or a single one."""
    folders: list[Path]
    """The checkpoints that are meant, the newest first."""
    leftovers: list[Path]
    """Folders beside them of saves that were not completed, or are not yet, and of deletions."""
    is_run: bool
    """Whether that is all that a run has saved, so that a start of it begins with one of these."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of `ls`."""

    path: Path
    step: int | None
    state: Literal["ok", "damaged", "unfinished", "deleted"]
    """As far as names and sizes tell. Unfinished and deleted ones go with the next save or start."""
    problem: str | None
    checkpoint: Checkpoint | None
    """None unless the state is ok."""
    kept: list[str]
    """Why the run keeps it; empty where that is not known."""

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        manifest = {} if self.checkpoint is None else self.checkpoint.manifest
        return {
            "path": str(self.path),
            "step": self.step,
            "tokens_seen": None if self.checkpoint is None else self.checkpoint.tokens_seen,
            "written": manifest.get("written"),
            "world_size": manifest.get("world_size"),
            "placement": manifest.get("placement"),
            "bytes": size_on_disk(self.path),
            "kept": self.kept,
            "state": self.state,
            "problem": self.problem,
        }


def find(path: Path) -> Place:
    """The checkpoints that a run directory, its folder of checkpoints or a single checkpoint stands for.

    Raises:
        CheckpointError: there is none, or what is there can't be looked at.
    """
    try:
        # "." has neither a name nor a parent.
        return _found(Path(os.path.abspath(path)))
    except OSError as error:
        raise CheckpointError(unseen(error)) from error


def _found(path: Path) -> Place:
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: {'is a file' if path.exists() else 'no such folder'}; name a run, or a checkpoint"
        )
    for root in (path / "checkpoints", path):
        found, leftovers = _contents(root)
        if found or leftovers:
            return Place(path=root, folders=found, leftovers=leftovers, is_run=root.name == "checkpoints")
    if (path / MANIFEST).exists() or (path.name.isdigit() and path.parent.name == "checkpoints"):
        return Place(path=path, folders=[path], leftovers=[], is_run=False)
    raise CheckpointError(
        f"{path}: there is no checkpoint, neither here nor in checkpoints/; name a run, or a checkpoint"
    )


def _contents(root: Path) -> tuple[list[Path], list[Path]]:
    """The checkpoints under `root`, the newest first, and what saves and deletions have left beside them."""
    found = folders(root)
    others = storage.leftovers(root) if root.is_dir() else []
    # Of a save that was killed before the new one had the name: the next start gives it back.
    nameless = [path for path, match in others if match[3] == "replaced" and not (root / match[1]).exists()]
    newest_first = sorted([*found, *nameless], key=lambda path: _step(path) or 0, reverse=True)
    return newest_first, sorted(path for path, _ in others if path not in nameless)


def list_checkpoints(paths: Sequence[Path], *, as_json: bool) -> int:
    """Print a line for every checkpoint, the newest of a run first; return the exit code."""
    code, listed = 0, []
    for path in paths:
        try:
            place = find(path)
        except CheckpointError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
            continue
        entries = entries_of(place)
        if any(entry.state == "damaged" for entry in entries):
            code = max(code, 1)
        if as_json:
            listed += [entry.as_dict() for entry in entries]
        else:
            _print_entries(place, entries)
    if as_json:
        print(json.dumps(listed, indent=1))
    return code


def entries_of(place: Place) -> list[Entry]:
    """What is in a place, as far as names, sizes and manifests tell."""
    opened: list[tuple[Path, Checkpoint | CheckpointError]] = []
    for folder in place.folders:
        try:
            opened.append((folder, open_checkpoint(folder)))
        except CheckpointError as error:
            opened.append((folder, error))
    kept = _kept(place, [found for _, found in opened if isinstance(found, Checkpoint)])
    entries = [
        Entry(
            path=folder, step=_step(folder), state="damaged", problem=_problem(folder, found), checkpoint=None,
            kept=[],
        )
        if isinstance(found, CheckpointError)
        else Entry(path=folder, step=found.step, state="ok", problem=None, checkpoint=found, kept=kept.get(found.step, []))
        for folder, found in opened
    ]  # fmt: skip
    return entries + [
        Entry(
            path=folder,
            step=_step(folder),
            state="unfinished" if folder.suffix == ".unfinished" else "deleted",
            problem=None,
            checkpoint=None,
            kept=[],
        )
        for folder in place.leftovers
    ]


def _problem(folder: Path, error: CheckpointError) -> str:
    """The message without the path of the folder, which is beside it."""
    return str(error).removeprefix(f"{folder}/").removeprefix(f"{folder}: ")


def _step(folder: Path) -> int | None:
    found = re.match(r"\.?(\d+)", folder.name)
    return int(found[1]) if found else None


def _kept(place: Place, checkpoints: Sequence[Checkpoint]) -> dict[int, list[str]]:
    """Why the run keeps its checkpoints, by step; nothing where its recipe can't be made out."""
    if not place.is_run or not checkpoints:
        return {}
    run_dir, steps = place.path.parent, [checkpoint.step for checkpoint in checkpoints]
    record = usable_record(run_dir)
    epoch = record.get("epoch")
    try:
        retention = retention_of(
            recorded_config(checkpoints[0]),
            epoch.get("rows") if isinstance(epoch, dict) else None,
            first_step(record, place.path),
        )
        return retention.kept(steps, newest=max(steps), scores=scores(run_dir, retention.best, steps))
    except ValueError:
        return {}


def size_on_disk(folder: Path) -> int:
    """Bytes of the files in a folder, as far as they can be looked at; they may be disappearing."""
    total = 0
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                total += path.stat().st_size
    return total


def _print_entries(place: Place, entries: Sequence[Entry]) -> None:
    table = _table("step", "tokens", "written", "ranks", "placement", "size", "kept as", "state")
    for entry in entries:
        found = entry.as_dict()
        table.add_row(
            "" if entry.step is None else f"{entry.step:,}",
            "" if found["tokens_seen"] is None else f"{found['tokens_seen']:,}",
            _local_time(found["written"]),
            str(found["world_size"] or ""),
            found["placement"] or "",
            format_bytes(found["bytes"]),
            ", ".join(entry.kept),
            entry.state,
        )
    print(place.path)
    print_table(table)
    for entry in entries:
        if entry.problem is not None:
            print(f"{entry.state}: {entry.path}: {entry.problem}")


def _table(*headings: str) -> Table:
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        is_number = heading in ("step", "tokens", "ranks", "size")
        made.add_column(heading, justify="right" if is_number else "left", overflow="fold", no_wrap=is_number)
    return made


def _local_time(written: str | None) -> str:
    try:
        return datetime.fromisoformat(written or "").astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return ""


def verify_checkpoints(paths: Sequence[Path], *, only_newest: bool) -> int:
    """Read checkpoints and print everything that is damaged in them; return the exit code."""
    code = num_checked = num_damaged = 0
    with ProgressReporter(sys.stderr, unit="bytes") as reporter:
        for path in paths:
            try:
                place = find(path)
            except CheckpointError as error:
                print(f"error: {error}", file=sys.stderr)
                code = 2
                continue
            chosen = place.folders[:1] if only_newest else place.folders
            good = []
            for folder in chosen:
                damages = damages_of(folder, reporter)
                if _is_gone(folder):
                    print(f"{folder}: was deleted meanwhile, by its run", flush=True)
                    continue
                num_checked, num_damaged = num_checked + 1, num_damaged + bool(damages)
                if damages:
                    print(f"{folder}: DAMAGED", *damages, sep="\n  ", flush=True)
                else:
                    good.append(folder)
                    print(f"{folder}: ok, {format_bytes(size_on_disk(folder))}", flush=True)
            if place.is_run:
                print(f"{place.path}: {_what_a_start_does(place, good, chosen)}")
    if num_damaged:
        print(f"{num_damaged:,} of {num_checked:,} checkpoints damaged")
    elif code == 0:
        print("nothing is damaged")
    return max(code, 1 if num_damaged else 0)


def _is_gone(folder: Path) -> bool:
    try:
        return not folder.exists()
    except OSError:
        return False


def _what_a_start_does(place: Place, good: Sequence[Path], checked: Sequence[Path]) -> str:
    record = read_json(place.path.parent / "run.json") or {}
    if good and good[0] == place.folders[0] and record.get("status") == "done":
        return "the run is done, and a start of it trains no further"
    if good:
        return f"a start of this run continues from step {_step(good[0])}"
    if len(checked) < len(place.folders):
        return "the newest is damaged, and a start of this run looks for an older one; leave out --newest to see which"
    if not checked:
        return "there is no complete checkpoint yet, and nothing that a start of this run could continue from"
    return (
        "every checkpoint is damaged, and a start of this run is refused; restore one, or remove the run directory to begin the "
        "run anew"
    )


def damages_of(folder: Path, reporter: ProgressReporter) -> list[str]:
    """Read all of a checkpoint; everything that is wrong with it, with the files' names."""
    try:
        checkpoint = read_manifest(folder)
    except CheckpointError as error:
        return [str(error)]
    files, damages, done = checkpoint.manifest["files"], [], 0
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
        for entry, damage in zip(files, pool.map(partial(file_damage, checkpoint), files), strict=True):
            done += entry["bytes"]
            reporter.report(f"reading {folder}", done, checkpoint.bytes)
            damages += [] if damage is None else [damage]
    return damages
