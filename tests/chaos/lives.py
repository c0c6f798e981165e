"""The lives of a run that is killed again and again, and what must be true after each of them and in the end.

A life is a start of `training.main` on one or two ranks. A blow ends it, or only one of its processes: ranks are killed at a
moment, or a process kills itself at its n-th system call. Everything is drawn from a seed; when a blow by the clock falls
is up to the machine.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.chaos.system_calls import WRITER
from tests.ranks import ROOT, base_environment, free_port
from training.checkpoint.manifest import Checkpoint, folders, verify
from training.errors import CheckpointError

EVERY_STEPS, KEEP = 2, 2
LONGEST_LIFE = 120.0
"""Seconds after which a life has failed."""
SECONDS_TO_DIE = 60.0
"""In which the others must have ended after the death of a rank, and all helpers after that of their rank."""


@dataclass(frozen=True, kw_only=True)
class Blow:
    """What happens to a life, once it has done some steps and some seconds have passed."""

    kind: Literal["all ranks", "one rank", "a rank's own call", "a writer's own call", "PREEMPT", "SIGTERM"]
    rank: int = 0
    steps: int = 0
    seconds: float = 0.0
    call: int = 0
    """At which of its points (tests.chaos.system_calls.Killer) a process kills itself; after `steps` all are killed anyway."""

    def __str__(self) -> str:
        """In words."""
        who = "" if self.kind in ("all ranks", "PREEMPT") else f" of rank {self.rank}"
        at = f" at point {self.call}, else all" if self.call else ""
        return f"{self.kind}{who}{at} after {self.steps} steps and {self.seconds:.2f} s"


def draw(source: random.Random, world_size: int, seconds_to_start: float) -> Blow:
    """A blow, of which many come in a row: most by the progress of the run, so that it comes to an end."""
    rank = source.randrange(world_size)
    soon = {"steps": source.randint(1, 2 * EVERY_STEPS + 1), "seconds": source.uniform(0, 0.06)}
    match source.choices(("clock", "all", "one", "rank", "writer", "PREEMPT", "SIGTERM"), (15, 25, 20, 10, 20, 5, 5))[
        0
    ]:
        case "clock":
            return Blow(
                kind=source.choice(("all ranks", "one rank")),
                rank=rank,
                seconds=source.uniform(0, 1.3 * seconds_to_start),
            )
        case "all":
            return Blow(kind="all ranks", **soon)
        case "one":
            return Blow(kind="one rank", rank=rank, **soon)
        case "rank":
            return Blow(kind="a rank's own call", rank=rank, call=source.randint(1, 250), **soon)
        case "writer":
            return Blow(kind="a writer's own call", rank=rank, call=source.randint(1, 80), **soon)
        case "PREEMPT":
            return Blow(kind="PREEMPT", **soon)
        case _:
            return Blow(kind="SIGTERM", rank=rank, **soon)


@dataclass(frozen=True, kw_only=True)
class Life:
    """What became of a life."""

    blow: Blow | None
    world_size: int
    resumed_from: int | None
    """None: it ended before that."""
    reached: int
    """Last step in metrics.jsonl at its end."""
    newest: int
    """Step of the newest checkpoint at its end; 0: none."""
    codes: tuple[int, ...]
    """Exit codes of the ranks, a signal as its negative number."""
    killed_itself: str | None
    """Which process did so, and at which call."""
    seconds: float
    problems: tuple[str, ...]
    """Promises that were broken."""

    @property
    def is_done(self) -> bool:
        return set(self.codes) == {0}

    @property
    def num_kills(self) -> int:
        """Times that SIGKILL came from without or by a process' own hand."""
        was_struck = -signal.SIGKILL in self.codes and not (self.killed_itself or "").startswith("rank")
        return was_struck + (self.killed_itself is not None)

    def __str__(self) -> str:
        """A line of a log."""
        start = "before it resumed" if self.resumed_from is None else f"from {self.resumed_from}"
        how = self.killed_itself or str(self.blow or "undisturbed")
        return (
            f"{self.seconds:5.1f} s  {self.world_size} ranks {start:18} to {self.reached:4}, saved {self.newest:4}, "
            f"exit codes {','.join(map(str, self.codes)):7}  {how}"
            + "".join(f"\n    BROKEN: {text}" for text in self.problems)
        )


@dataclass(kw_only=True)
class Run:
    """A run directory through its lives."""

    folder: Path
    arguments: tuple[str, ...]
    """Of training.main, beside the run directory."""
    newest: int = 0
    """Step of the newest checkpoint that was ever there under its name."""

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def live(self, blow: Blow | None = None, world_size: int = 2) -> Life:
        """Start it, strike, wait for its end, and look at what is left."""
        began = time.monotonic()
        mark = uuid.uuid4().hex
        scratch = self.folder.with_name(f"{self.folder.name}-lives")
        scratch.mkdir(exist_ok=True)
        outputs = [scratch / f"{mark}-{rank}.txt" for rank in range(world_size)]
        last_words = scratch / f"{mark}-killed.txt"
        ranks = self._start(blow, outputs, mark, last_words)
        newest_before = self.newest
        problems: list[str] = []
        try:
            was_struck = self._strike(blow, ranks, outputs[0], began)
            self._wait(ranks, began, problems, outputs)
        finally:
            for rank in ranks:
                if rank.poll() is None:
                    rank.kill()
                    rank.wait()
        problems += self._orphans(mark)
        codes = tuple(rank.returncode for rank in ranks)
        resumed = self._resumed_from(outputs[0])
        if resumed is not None and resumed != newest_before:
            problems.append(f"resumed after step {resumed}, but that of step {newest_before} was there")
        problems += self._damages()
        died = last_words.read_text() if last_words.exists() else None
        problems += self._wrong_codes(codes, blow, was_struck, died)
        if problems:
            problems += [f"{path}: ...{path.read_text(errors='replace')[-3000:]}" for path in outputs]
        return Life(
            blow=blow, world_size=world_size, resumed_from=resumed, reached=self._reached(), newest=self.newest,
            codes=codes, killed_itself=died, seconds=time.monotonic() - began, problems=tuple(problems),
        )  # fmt: skip

    def _start(
        self, blow: Blow | None, outputs: list[Path], mark: str, last_words: Path
    ) -> list[subprocess.Popen[bytes]]:
        port, size = free_port(), len(outputs)
        started = []
        for rank, output in enumerate(outputs):
            env = base_environment() | {
                "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CHAOS_LIFE": mark,
            }  # fmt: skip
            if blow is not None and blow.call and rank == blow.rank:
                program = WRITER if blow.kind == "a writer's own call" else "training.main"
                env["CHAOS_KILL"] = json.dumps({"program": program, "point": blow.call, "words": str(last_words)})
                env["PYTHONPATH"] = os.pathsep.join((str(ROOT / "tests" / "chaos" / "injected"), env["PYTHONPATH"]))
            with output.open("wb") as file:
                command = [sys.executable, "-m", "training.main", *self.arguments, "--run.dir", str(self.folder)]
                started.append(subprocess.Popen(command, env=env, cwd=ROOT, stdout=file, stderr=file))
        return started

    def _strike(self, blow: Blow | None, ranks: list[subprocess.Popen[bytes]], output: Path, began: float) -> bool:
        """Wait for the moment of the blow, watching checkpoints come; whether it came before the end of the life."""
        struck_at = None
        while all(rank.poll() is None for rank in ranks):
            self._look()
            if time.monotonic() - began > LONGEST_LIFE:
                return False
            if blow is not None and struck_at is None:
                resumed = self._resumed_from(output)
                if not blow.steps or (resumed is not None and self._reached() - resumed >= blow.steps):
                    struck_at = (time.monotonic() if blow.steps else began) + blow.seconds
            if struck_at is not None and time.monotonic() >= struck_at:
                assert blow is not None
                self._hit(blow, ranks)
                return True
            time.sleep(0.005)
        return False

    def _hit(self, blow: Blow, ranks: list[subprocess.Popen[bytes]]) -> None:
        match blow.kind:
            case "PREEMPT":
                (self.folder / "PREEMPT").touch()
            case "SIGTERM":
                ranks[blow.rank].terminate()
            case "one rank":
                ranks[blow.rank].kill()
            case _:
                for rank in ranks:
                    rank.kill()

    def _wait(
        self, ranks: list[subprocess.Popen[bytes]], began: float, problems: list[str], outputs: Sequence[Path]
    ) -> None:
        """Wait for the end of all ranks; after the death of one, the others have only so long."""
        died_at = None
        while left := [number for number, rank in enumerate(ranks) if rank.poll() is None]:
            self._look()
            now = time.monotonic()
            if died_at is None and len(left) < len(ranks):
                died_at = now
            if now - began > LONGEST_LIFE or (died_at is not None and now - died_at > SECONDS_TO_DIE):
                problems.append(f"ranks {left} did not end, and were killed")
                return
            if died_at is not None and now - died_at > 1 and self._resumed_from(outputs[0]) is None:
                # They may wait for a rank that has not come yet; a launcher ends them.
                return
            time.sleep(0.005)
        self._look()

    def _look(self) -> None:
        """Remember the newest checkpoint under its name."""
        with contextlib.suppress(OSError):
            self.newest = max(self.newest, *(int(folder.name) for folder in folders(self._checkpoints)), 0)

    def _orphans(self, mark: str) -> list[str]:
        """Helper processes of the life that outlive it."""
        deadline = time.monotonic() + SECONDS_TO_DIE
        while left := _processes_with(mark):
            if time.monotonic() > deadline:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return [f"processes {left} outlived their rank"]
            time.sleep(0.01)
        return []

    def _damages(self) -> list[str]:
        """What is wrong with what is there under a name: before the next start has put anything in order."""
        found: list[Checkpoint] = []
        problems = []
        for folder in folders(self._checkpoints):
            try:
                found.append(verify(folder))
            except CheckpointError as error:
                problems.append(f"damaged under its name: {error}")
        if self.newest not in (0, *(each.step for each in found)):
            problems.append(f"the committed step {self.newest} is lost")
        # One more where a kill came between a commit and what it was to delete.
        if len(found) > KEEP + 1:
            problems.append(f"checkpoints {[each.step for each in found]} are there, and {KEEP} are to be kept")
        return problems

    def _wrong_codes(self, codes: tuple[int, ...], blow: Blow | None, was_struck: bool, died: str | None) -> list[str]:
        if blow is None or not (was_struck or died):
            return [] if set(codes) == {0} else [f"exit codes {codes} of an undisturbed life"]
        if blow.kind in ("PREEMPT", "SIGTERM"):
            if set(codes) == {85}:
                step = json.loads((self.folder / "run.json").read_text())["step"]
                return [] if self.newest == step else [f"stopped after step {step}, but the newest is {self.newest}"]
            return [] if set(codes) == {0} else [f"exit codes {codes} after a request to stop"]
        return []

    def _reached(self) -> int:
        """The last step in metrics.jsonl."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            *_, last, _ = (self.folder / "metrics.jsonl").read_bytes().rsplit(b"\n", 2)
            return int(json.loads(last)["step"])
        return 0

    def _resumed_from(self, output: Path) -> int | None:
        """The step after which a life goes on, as rank 0 said; None while it hasn't come to that."""
        text = output.read_text(errors="replace")
        if found := re.search(r"resuming after step (\d+) of", text):
            return int(found[1])
        return 0 if " parameters train" in text else None

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


def differences(run: Run, other: Run, *, is_same_world: bool) -> list[str]:
    """What tells two finished runs apart: batches, losses, exported weights; to the last bit in the same world."""
    ours, theirs = run.metrics(), other.metrics()
    found = []
    if [line["step"] for line in ours] != list(range(1, len(theirs) + 1)):
        found.append(f"steps in metrics.jsonl: {[line['step'] for line in ours]}")
        return found
    if [line["data_hash"] for line in ours] != [line["data_hash"] for line in theirs]:
        found.append("the batches differ")
    for name in ("loss", "grad_norm", "penalty", "tokens_seen"):
        for line, reference in zip(ours, theirs, strict=True):
            difference = abs(line[name] - reference[name])
            if difference > (0 if is_same_world else 1e-5 * max(1, abs(reference[name]))):
                found.append(f"{name} of step {line['step']}: {line[name]} and {reference[name]}")
                break
    if is_same_world:
        there, here = (sorted(path.name for path in each.folder.joinpath("export").iterdir()) for each in (other, run))
        _, differ, missing = filecmp.cmpfiles(run.folder / "export", other.folder / "export", there, shallow=False)
        if there != here or differ or missing:
            found.append(f"exported files differ: {differ + missing or (here, there)}")
    return found


def _processes_with(mark: str) -> list[int]:
    """Processes whose environment has the mark of a life."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"CHAOS_LIFE={mark}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found
