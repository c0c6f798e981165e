"""The run record: run.json, metrics.jsonl and logs, readable without this software.

Nothing of the environment is copied into it except versions and the launcher's world; a command line is recorded
with the values of anything that looks like a secret blanked.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import functools
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from data_pipeline.files import unseen
from training.config import Config, to_dict
from training.errors import StorageError
from training.files import read_json, sync_file, write_json
from training.recipe import ConfigError
from training.record.appended import AppendedFile
from training.record.log_file import LogFile
from training.record.unwritten import Unwritten
from training.world import SlurmJob, World

if TYPE_CHECKING:
    from data_pipeline.stream.token_stream import RowDocument

log = logging.getLogger("palimpsest")

SCHEMA = 1
PACKAGES = ("torch", "deepspeed", "transformers", "safetensors", "sentencepiece", "numpy")
MAY_CHANGE = (
    "run.dir",
    "train.micro_batch_rows",
    "train.log_every_steps",
    "train.max_skipped_steps",
    "train.hang_timeout",
    "train.wall_time",
    "train.stop_before",
    "train.placement",
    "train.sequence_parallel",
    "model.revision",
    "model.activation_checkpointing",
    "model.compile",
    "model.kernels",
    "monitor",
    "checkpoint",
    "eval.batch_tokens",
    "eval.data_dir",
    "eval.code_isolation",
    "data.workers",
    "data.cache_dir",
    "data.cache_gb",
    "data.token_cache",
    "data.tokenizer_engine",
)
"""Settings that a run may be continued with at another value. The rows per micro-batch leave data and loss alone, but
decide which noise a row draws (dropout, MonteCLoRA)."""

ORDERED = ("adapter.rank_pattern", "adapter.alpha_pattern")
"""Tables in which the order counts: the first pattern that matches."""

LENGTHS_IN_STEPS = {
    "train.steps": ("train.tokens", "train.epochs"),
    "optim.warmup_steps": ("optim.warmup",),
    "optim.cooldown_steps": ("optim.cooldown",),
    "eval.every_steps": ("eval.every",),
    "eval.at_steps": ("eval.at",),
}
"""Settings that are what the settings named beside them say, where one of those is set."""

FINGERPRINTS = {
    "base_fingerprint": "base weights (model.base)",
    "init_fingerprint": "an adapter to start with (adapter.init_from)",
    "tokenizer_fingerprint": "a tokenizer (data.tokenizer)",
    "data_fingerprint": "documents (data.sources)",
}
"""Facts of a run that must stay what they are, and what they are of."""

SECRET = re.compile(r"(?<![a-z])(token|secret|password|passwd|api[-_]?key|credentials?)(?![a-z])", re.IGNORECASE)


def different_settings(run_dir: Path, config: Config) -> list[str]:
    """What a run directory's recipe and `config` disagree on, one line each; [] when the directory is new or fits."""
    record = read_json(run_dir / "run.json") or {}
    # One of a job that waits to begin (launch/jobs.py) has none.
    return differences(record["config"], to_dict(config)) if isinstance(record.get("config"), dict) else []


def differences(
    there: dict[str, Any], here: dict[str, Any], may_change: tuple[str, ...] = MAY_CHANGE, keeps: tuple[str, ...] = ()
) -> list[str]:
    """What two configurations disagree on, one line each.

    Args:
        there: one, as plain values.
        here: the other.
        may_change: the beginnings of settings that may differ.
        keeps: of settings among them that may not.
    """
    theirs, ours = flatten(there), flatten(here)
    lines = []
    for path in sorted((theirs.keys() | ours.keys()) - _derived(theirs) - _derived(ours)):
        # As text, in which the order of a table shows.
        before, now = json.dumps(theirs.get(path)), json.dumps(ours.get(path))
        if before != now and (path.startswith(keeps) or not path.startswith(may_change)):
            lines.append(f"{path}: {before} there, {now} here")
    return lines


def _derived(flat: dict[str, Any]) -> set[str]:
    """Settings that follow from another one, in which the same length is written."""
    return {
        steps
        for steps, written in LENGTHS_IN_STEPS.items()
        if any(flat.get(name) not in (None, []) for name in written)
    }


def listing(lines: list[str]) -> str:
    """Some differences, below each other, for the end of a message."""
    return "".join(f"\n      {line}" for line in lines[:8]) + ("\n      …" if len(lines) > 8 else "")


def directory_problems(config: Config) -> list[str]:
    """Why `config` can't run in its directory: that belongs to another recipe, or isn't a run directory at all."""
    try:
        return _directory_problems(config)
    except OSError as error:
        return [f'run.dir = "{config.run.dir}": {unseen(error)}']


def _directory_problems(config: Config) -> list[str]:
    run_dir = config.run.dir
    if (run_dir.exists() or run_dir.is_symlink()) and not run_dir.is_dir():
        what = "a file, not a directory" if run_dir.exists() else "a link to what is not there"
        return [f'run.dir = "{run_dir}": is {what}']
    if (run_dir / "run.json").exists() and read_json(run_dir / "run.json") is None:
        return [f'run.dir = "{run_dir}": its run.json can\'t be read, so it is unknown whose run this is; restore it, '
                "or choose another directory"]  # fmt: skip
    if wrong := _unusable(read_json(run_dir / "run.json") or {}):
        return [f'run.dir = "{run_dir}": its run.json is damaged: {wrong} is not what a run writes there; restore it, '
                "or choose another directory"]  # fmt: skip
    if lines := different_settings(run_dir, config):
        return [
            f'run.dir = "{run_dir}": belongs to a different recipe; choose another directory, or remove it:{listing(lines)}'
        ]
    existing = next(folder for folder in (run_dir, *run_dir.parents) if folder.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f'run.dir = "{run_dir}": {existing} can\'t be written']
    # A start that ended before its run.json has made logs/, so may another rank of this start by now; and a job that waits has
    # made slurm/, and a run.json that says no more than that.
    if "config" not in (read_json(run_dir / "run.json") or {}):
        foreign = {path.name for path in run_dir.glob("[!.]*")} - {"logs", "PREEMPT", "PROFILE", "slurm", "run.json"}
        if foreign:
            return [f'run.dir = "{run_dir}": holds files but no record of a run; choose an empty or new directory']
    return []


def usable_record(run_dir: Path) -> dict[str, Any]:
    """The content of run.json; empty where there is none, or a damaged one, which `directory_problems` tells."""
    record = read_json(run_dir / "run.json") or {}
    return {} if _unusable(record) else record


def _unusable(record: Mapping[str, Any]) -> str | None:
    """A part of a run.json that a start of the run relies on and that is of another kind than what runs write; None: none."""
    return next((name for name, is_usable in _USABLE.items() if not is_usable(record.get(name))), None)


def _is_place(value: Any) -> bool:
    """Whether it says where a run began: a checkpoint with its step and hash."""
    return (
        isinstance(value, Mapping)
        and type(value.get("step")) is int
        and all(isinstance(value.get(name), str) and "\0" not in value[name] for name in ("path", "sha256"))
        and isinstance(value.get("given", ""), str)
    )


def _is_start(value: Any) -> bool:
    """Whether it is a start of a run, of a job or of none."""
    return isinstance(value, Mapping) and isinstance(value.get("job"), Mapping | None)


def _is_time(value: Any) -> bool:
    try:
        return value is None or bool(datetime.fromisoformat(value))
    except (TypeError, ValueError):
        return False


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300)


def _is_count(value: Any) -> bool:
    return value is None or type(value) is int


def _is_list(value: Any, is_usable: Callable[[Any], bool]) -> bool:
    return value is None or (isinstance(value, list) and all(map(is_usable, value)))


_USABLE: dict[str, Callable[[Any], bool]] = {
    "config": lambda value: isinstance(value, Mapping | None),
    "step": _is_count,
    "tokens_seen": _is_count,
    "seconds": _is_number,
    "eval_seconds": _is_number,
    "starts": lambda value: _is_list(value, _is_start),
    "finished": _is_time,
    "last_checkpoint": _is_count,
    "branched_from": lambda value: value is None or _is_place(value),
    "origins": lambda value: _is_list(value, _is_place),
    "epoch": lambda value: value is None or (isinstance(value, Mapping) and _is_count(value.get("rows"))),
}
"""What is read of run.json when a run goes on."""


def flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested table as dotted paths; tables in which the order counts stay whole."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        is_section = isinstance(value, dict) and value and f"{prefix}{key}" not in ORDERED
        flat |= flatten(value, f"{prefix}{key}.") if is_section else {f"{prefix}{key}": value}
    return flat


class RunJson:
    """The file run.json: what it says, and whether that is on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {}

    def __str__(self) -> str:
        """What is missing when it can't be written."""
        return f"what is new in {self.path.name}"

    def flush(self) -> None:
        """Write it.

        Raises:
            OSError: storage did not take it; what was there before still is.
        """
        try:
            write_json(self.path, self.content)
        except OSError:
            remove_temporaries(self.path.parent, self.path.name)
            raise


class Metrics(AppendedFile):
    """The file metrics.jsonl, of which a run that goes back cuts the end."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._cut_after: int | None = None
        """Lines of later steps in the file are still to be cut."""

    def cut(self, step: int) -> None:
        """Drop lines after `step` and those that are none, of what waits now and of the file with the next flush."""
        self.keep(lambda line: is_line_until(line, step))
        self._cut_after = step if self._cut_after is None else min(step, self._cut_after)

    def flush(self) -> None:
        """Write what waits; see `AppendedFile.flush`."""
        if self._cut_after is not None:
            self._cut_file(self._cut_after)
            self._cut_after = None
        super().flush()

    def _cut_file(self, step: int) -> None:
        try:
            # Behind that are lines that wait to be written again.
            lines = self.path.read_bytes()[: self.torn_at].splitlines(keepends=True)
        except FileNotFoundError:
            # Nothing was written yet, unless the whole directory is away.
            self.path.parent.stat()
            return
        temporary = self.path.with_suffix(".tmp")
        try:
            temporary.write_bytes(b"".join(line for line in lines if is_line_until(line, step)))
            sync_file(temporary)
            temporary.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self.torn_at = None


def is_line_until(line: bytes, step: int) -> bool:
    """Whether a line of metrics.jsonl is whole, and of `step` or before."""
    try:
        return line.endswith(b"\n") and bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def remove_temporaries(folder: Path, name: str = "*") -> None:
    """Remove what write_json has left of files that it could not finish, as far as storage lets us."""
    for leftover in folder.glob(f".{name}.*.tmp"):
        with contextlib.suppress(OSError):
            leftover.unlink()


class RunRecord:
    """Writer of one run directory; only rank 0 writes run.json, metrics.jsonl and anomalies.jsonl.

    Once it is open nothing that storage refuses is an error: it waits in `unwritten`, and training goes on.
    """

    def __init__(self, run_dir: Path, world: World, say: Callable[[str], None] = log.warning) -> None:
        """`say` tells the user what storage refuses, and when it takes it again."""
        self.dir = run_dir
        self.world = world
        self.unwritten = Unwritten(say)
        self._json = RunJson(run_dir / "run.json")
        self._metrics = Metrics(run_dir / "metrics.jsonl")
        self._anomalies = AppendedFile(run_dir / "anomalies.jsonl")
        self._written = 0.0
        self._lock: TextIO | None = None

    @property
    def content(self) -> dict[str, Any]:
        """What run.json says, or would if storage had taken it."""
        return self._json.content

    @property
    def is_writer(self) -> bool:
        """Whether this rank writes the shared files."""
        return self.world.rank == 0

    def lock(self) -> bool:
        """Whether no other start of this run is going on; from now until unlock or the end of the process (rank 0)."""
        self._lock = (self.dir / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.unlock()
            return False
        except OSError as error:
            log.warning("no lock on %s (%s): don't start this run twice at once", self.dir, error)
        return True

    def refuse_changes(self, facts: dict[str, Any]) -> None:
        """Refuse to continue a run on another base, tokenizer or data than it was started with; nothing is written.

        Raises:
            ConfigError: naming what changed.
        """
        earlier = read_json(self.dir / "run.json") or {}
        changed = [name for name in FINGERPRINTS if name in earlier and earlier[name] != facts[name]]
        if changed:
            raise ConfigError(
                [
                    f'run.dir = "{self.dir}": was started with {FINGERPRINTS[name]} of other content than now; '
                    "put it back, or choose another directory"
                    for name in changed
                ]
            )

    def unlock(self) -> None:
        """Let another start of this run begin."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def open(
        self,
        config: Config,
        facts: dict[str, Any],
        *,
        steps: int | None = None,
        job: SlurmJob | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """Create or continue run.json.

        Args:
            config: the recipe as written.
            facts: added to the record (parameters, fingerprints...).
            steps: length of the run, where the recipe leaves it open.
            job: the Slurm job of this start.
            notes: what there is to say of this start.

        Raises:
            ConfigError: the directory can't be written.
        """
        earlier = read_json(self.dir / "run.json") or {}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        start: dict[str, Any] = {"at": now, "world_size": self.world.size}
        if job is not None:
            start["job"] = asdict(job)
        if notes:
            start["notes"] = list(notes)
        self._json.content = {
            "schema": SCHEMA,
            "status": "running",
            "config": to_dict(config),
            "command": redact(sys.argv),
            "versions": versions(),
            "git": git_state(Path(__file__).resolve().parents[2]),
            "world": {"size": self.world.size, "launcher": self.world.launcher, "local_size": self.world.local_size},
            "step": earlier.get("step", 0),
            "steps": config.train.steps if steps is None else steps,
            "tokens_seen": earlier.get("tokens_seen", 0),
            "seconds": earlier.get("seconds", 0.0),
            "eval_seconds": earlier.get("eval_seconds", 0.0),
            "started": earlier.get("started", now),
            "starts": [*earlier.get("starts", []), start],
            "finished": None,
            "last_checkpoint": earlier.get("last_checkpoint"),
            **({} if job is None else {"job": {**asdict(job), "event": "running", "at": now}}),
            **facts,
        }
        if not self.is_writer:
            return
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            remove_temporaries(self.dir)
            self._json.flush()
        except OSError as error:
            raise ConfigError([f'run.dir = "{self.dir}": can\'t be written: {error.strerror}']) from error
        self._written = time.monotonic()

    def update(self, **values: Any) -> None:
        """Change some values of run.json, on disk at most every few seconds unless the status changes."""
        self.content.update(values)
        if "status" in values or time.monotonic() - self._written > 5:
            self.write()

    def finish(self, status: str, **values: Any) -> None:
        """Record how this start of the run ended."""
        self.update(**values, finished=datetime.now(UTC).isoformat(timespec="seconds"), status=status)
        self.unwritten.retry()

    def settle(self) -> StorageError | None:
        """Write what storage has not taken so far, in several attempts because the run is about to end; say what stays missing."""
        missing = self.unwritten.settle()
        return None if missing is None else StorageError(f"{self.dir}: storage did not take {missing}")

    def write(self) -> None:
        """Write run.json now (rank 0)."""
        if self.is_writer:
            self.unwritten.write(self._json)
        self._written = time.monotonic()

    def log_metrics(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl (rank 0)."""
        if self.is_writer:
            self._metrics.add(json_line(line))
            self.unwritten.write(self._metrics)

    def log_anomaly(self, line: dict[str, Any], documents: Iterable[RowDocument]) -> None:
        """Append a step that was skipped or undone to anomalies.jsonl, with the documents it was trained on (rank 0)."""
        if not self.is_writer:
            return
        sources = list(self.content["config"]["data"]["sources"])
        found = [
            {"source": sources[each.source], "number": each.number, "epoch": each.epoch, "offset": each.offset}
            for each in documents
        ]
        self._anomalies.add(json_line({**line, "documents": found}))
        self.unwritten.write(self._anomalies)

    def cut_metrics(self, step: int) -> None:
        """Drop lines after `step`, and a half-written last one: the resumed run will write them again (rank 0)."""
        if self.is_writer:
            self._metrics.cut(step)
            self.unwritten.write(self._metrics)


def json_line(values: dict[str, Any]) -> bytes:
    """A line of a file of JSON lines."""
    return json.dumps({key: finite(value) for key, value in values.items()}).encode() + b"\n"


def finite(value: Any) -> Any:
    """The value, or None for an infinity or NaN, which JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_log(run_dir: Path, rank: int) -> logging.Logger:
    """This rank's log file, which also gets warnings, and on a fatal signal or SIGUSR2 the stacks of all threads."""
    folder = run_dir / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f'run.dir = "{run_dir}": can\'t be made: {error.strerror}']) from error
    path = folder / f"rank{rank}.log"
    handler = LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    stacks = path.open("a")
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGUSR2, stacks, all_threads=True)
    return logging.getLogger("palimpsest")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what computes, and of the machine's software."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "system": platform.platform(), **found}


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit of the source and whether it was changed; None outside a git checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed_files": len(git("status", "--porcelain").splitlines())}
    except (OSError, subprocess.SubprocessError):
        return None


def redact(arguments: list[str]) -> list[str]:
    """The command line with values of secret-looking options blanked."""
    result, hide_next = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hide_next and not argument.startswith("--"):
            result.append("***")
        elif equals and SECRET.search(name):
            result.append(f"{name}=***")
        else:
            result.append(argument)
        hide_next = not equals and argument.startswith("--") and bool(SECRET.search(argument))
    return [os.path.basename(result[0]), *result[1:]] if result else result
