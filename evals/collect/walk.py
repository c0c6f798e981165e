"""Find run folders on shared storage, and what has changed in them: names, sizes and times; no file is opened.

A folder with run.json or metrics.jsonl is a run; runs inside a run are not looked for. One with sweep.json holds the runs
of a sweep. On network storage the time goes
into waiting, so many folders are listed at once.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from evals.errors import EvalError
from evals.json_text import valid_unicode
from evals.results import result_file_step

RECORDS = ("run.json", "metrics.jsonl")
SWEEP = "sweep.json"
NOT_ENTERED = ("checkpoints", "export", "profile", "tensorboard")
"""Subfolders of runs with many or large files, in which no runs are looked for, whatever they are in."""
THREADS = 16
_RANK_FILE = re.compile(r"rank-(0|[1-9][0-9]*)\.json")


class Stamp(NamedTuple):
    """What tells that a file is not the one that was read before."""

    size: int
    mtime_ns: int


class Skipped(NamedTuple):
    """Something that could not be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run's folder and its files that collect reads.

    Attributes:
        id: the folder relative to its root.
        path: the folder.
        records: stamps of run.json and metrics.jsonl, as far as they exist.
        evals: stamps of evals/<step>.json and evals/<step>.<name>.json by step, in the order in which they count.
        ranks: stamps of weights/rank-<step>.json by step.
    """

    id: str
    path: Path
    records: dict[str, Stamp]
    evals: dict[int, dict[str, Stamp]] = field(default_factory=dict)
    ranks: dict[int, dict[str, Stamp]] = field(default_factory=dict)

    @property
    def updated_at(self) -> float:
        """When one of its records or evaluations was last written, in seconds since 1970."""
        stamps = [*self.records.values(), *(stamp for files in self.evals.values() for stamp in files.values())]
        return max((stamp.mtime_ns for stamp in stamps), default=0) / 1e9


class SweepFile(NamedTuple):
    """A sweep.json, and the id of the folder that it is in, empty for a root itself."""

    folder: str
    path: Path


class Walked(NamedTuple):
    """What is under some roots: runs by id, what could not be looked at, and sweeps."""

    runs: list[RunFolder]
    skipped: list[Skipped]
    sweeps: list[SweepFile]


def walk(roots: Sequence[Path], *, threads: int = THREADS) -> Walked:
    """Every run under the roots by id, what could not be looked at, and every sweep.

    Links to folders are not followed: what they lead to inside a root is found there, and what is outside is another
    root. With several roots, ids begin with the root's name, or its path where names are the same.

    Raises:
        EvalError: a root does not exist or can't be looked at; all such roots are named.
    """
    roots = [Path(os.path.abspath(root)) for root in roots]
    if unusable := [problem for problem in map(_root_problem, roots) if problem is not None]:
        raise EvalError("; ".join(unusable))
    roots = _without_nested(roots)
    names = {root: "" if len(roots) == 1 else root.name for root in roots}
    if len(set(names.values())) < len(roots):
        names = {root: root.as_posix().lstrip("/") for root in roots}
    runs: list[RunFolder] = []
    skipped: list[Skipped] = []
    sweeps: list[SweepFile] = []
    with ThreadPoolExecutor(threads) as pool:
        pending: set[Future[_Listing]] = {pool.submit(_list, root, root, names[root]) for root in roots}
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for listing in (future.result() for future in done):
                runs += [] if listing.run is None else [listing.run]
                skipped += listing.skipped
                sweeps += [] if listing.sweep is None else [listing.sweep]
                pending |= {pool.submit(_list, path, listing.root, listing.name) for path in listing.subfolders}
    return Walked(sorted(runs, key=lambda run: run.id), sorted(skipped), sorted(sweeps))


def _root_problem(root: Path) -> str | None:
    """Why a root can't be looked into; None: it can."""
    try:
        mode = os.stat(root).st_mode
    except FileNotFoundError:
        return f"{root}: no such folder; give the folder that holds the runs"
    except OSError as error:
        return f"{root}: can't be looked at: {error.strerror}"
    return None if stat.S_ISDIR(mode) else f"{root}: is a file; give the folder that holds the runs"


class _Listing(NamedTuple):
    """What one folder holds."""

    root: Path
    name: str
    run: RunFolder | None
    subfolders: list[Path]
    skipped: list[Skipped]
    sweep: SweepFile | None = None


def _list(folder: Path, root: Path, name: str) -> _Listing:
    entries, problem = _entries(folder)
    if problem is not None:
        return _Listing(root, name, None, [], [problem])
    records = {entry.name: entry for entry in entries if entry.name in RECORDS}
    if not records:
        subfolders, skipped = _subfolders(folder, entries, root)
        is_sweep = any(entry.name == SWEEP and os.path.isfile(entry) for entry in entries)
        sweep = SweepFile(_id(folder, root, name), folder / SWEEP) if is_sweep else None
        return _Listing(root, name, None, subfolders, skipped, sweep)
    skipped = []
    run = RunFolder(
        id=_id(folder, root, name) or folder.name,
        path=folder,
        records=dict(_stamps(list(records.values()))),
        evals=_by_step(folder / "evals", result_file_step, skipped),
        ranks=_by_step(folder / "weights", _ranked, skipped),
    )
    return _Listing(root, name, run, [], skipped)


def _id(folder: Path, root: Path, name: str) -> str:
    """A folder as relative to its root, after the root's name where there are several."""
    parts = (name, folder.relative_to(root).as_posix())
    return valid_unicode("/".join(part for part in parts if part not in ("", ".")))


def _entries(folder: Path) -> tuple[list[os.DirEntry[str]], Skipped | None]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name), None
    except FileNotFoundError:
        return [], Skipped(str(folder), "vanished while it was looked at")
    except OSError as error:
        return [], Skipped(str(folder), f"cannot be listed ({error.strerror})")


def _subfolders(folder: Path, entries: Sequence[os.DirEntry[str]], root: Path) -> tuple[list[Path], list[Skipped]]:
    """Folders to look into, and links that are not followed. Hidden folders are nobody's runs."""
    found, skipped = [], []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_symlink():
            skipped += _link(Path(entry.path), folder, root)
        elif entry.name == "checkpoints" and entry.is_dir(follow_symlinks=False):
            skipped.append(Skipped(str(folder), "has checkpoints, but neither run.json nor metrics.jsonl"))
        elif entry.name not in NOT_ENTERED and entry.is_dir(follow_symlinks=False):
            found.append(Path(entry.path))
    return found, skipped


def _link(path: Path, folder: Path, root: Path) -> list[Skipped]:
    """Why a link to a folder is not followed; nothing where the same folder is found anyway."""
    target = Path(os.path.realpath(path))
    try:
        if not target.is_dir():
            return []
    except OSError as error:
        return [Skipped(str(path), f"a link to {target}, which can't be looked at ({error.strerror})")]
    if folder.resolve().is_relative_to(target):
        return [Skipped(str(path), f"a link to {target}, which it is in: a loop, not followed")]
    if not target.is_relative_to(root.resolve()):
        return [Skipped(str(path), f"a link to {target}, outside {root}: not followed; give it as another ROOT")]
    return []


def _ranked(name: str) -> tuple[int, str | None] | None:
    match = _RANK_FILE.fullmatch(name)
    return None if match is None else (int(match[1]), None)


def _by_step(
    folder: Path, where: Callable[[str], tuple[int, str | None] | None], skipped: list[Skipped]
) -> dict[int, dict[str, Stamp]]:
    """Stamps of the files of a folder that have a step in their names; {} where the folder does not exist."""
    if not os.path.isdir(folder):
        return {}
    entries, problem = _entries(folder)
    skipped += [] if problem is None else [problem]
    known = [(place, entry) for entry in entries if (place := where(entry.name)) is not None]
    known.sort(key=lambda found: (found[0][0], found[0][1] or ""))
    by_step: dict[int, dict[str, Stamp]] = {}
    for (step, _), entry in known:
        for name, stamp in _stamps([entry]):
            by_step.setdefault(step, {})[name] = stamp
    return by_step


def _stamps(entries: Sequence[os.DirEntry[str]]) -> Iterator[tuple[str, Stamp]]:
    """Names and stamps of files; one that vanished meanwhile is left out."""
    for entry in entries:
        try:
            status = entry.stat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            yield entry.name, Stamp(status.st_size, status.st_mtime_ns)


def _without_nested(roots: Sequence[Path]) -> list[Path]:
    """Roots without those that are in another one, whose runs are found there."""
    unique = list(dict.fromkeys(roots))
    return [root for root in unique if not any(root != other and root.is_relative_to(other) for other in unique)]
