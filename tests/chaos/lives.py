"""The lives of a run that is killed again and again, and what must be true after each of them and in the end.

A life is a start of `training.main` on one or two ranks. A blow ends it, or only one of its processes: ranks are killed at a
moment, or a process kills itself at its n-th system call. Everything is drawn from a seed; when a blow by the clock falls
is up to the machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.chaos.system_calls import TRAINING, WRITER, kill_where_asked
from tests.ranks import ROOT, Rank, program, rank_environments, start
from tests.unit.training.checkpoint.checking import verify
from training.checkpoint.manifest import Checkpoint, folders
from training.errors import CheckpointError

EVERY_STEPS, KEEP = 2, 2
"""Steps between checkpoints, and how many of them are kept."""
LONGEST_LIFE = 240.0
"""Seconds after which a life has failed."""
SECONDS_TO_DIE = 60.0
"""In which the others must have ended after the death of a rank, and all helpers after that of their rank."""
SECONDS_FOR_A_LAUNCHER = 1.0
"""After which the others are killed when a rank dies before all have found together, as a launcher would."""

BLOWS_AT_END = 3
"""While the last checkpoint and what is exported are written."""

OWN_CALL = ("a rank's own call", "a writer's own call")


@dataclass(frozen=True, kw_only=True)
class Blow:
    """What happens to a life, once it has done some steps and some seconds have passed."""

    kind: Literal["all ranks", "one rank", "a rank's own call", "a writer's own call", "PREEMPT", "SIGTERM"]
    rank: int = 0
    steps: int = 0
    """0: the seconds count from the start of the processes."""
    seconds: float = 0.0
    latest: int | None = None
    """Steps after which it comes at once, however few seconds have passed."""
    call: int = 0
    """At which of its points (tests.chaos.system_calls.Killer) a process kills itself; at last all are killed anyway."""

    def __str__(self) -> str:
        """In words."""
        when = f"{self.seconds:.2f} s after {f'step +{self.steps}' if self.steps else 'the start'}"
        when += "" if self.latest is None else f" or at step +{self.latest}"
        what = {"all ranks": "SIGKILL to all ranks", "one rank": f"SIGKILL to rank {self.rank}", "PREEMPT": "PREEMPT file",
                "SIGTERM": f"SIGTERM to rank {self.rank}"}.get(self.kind, "SIGKILL to all ranks")  # fmt: skip
        return f"{what} {when}"


def draw(source: random.Random, world_size: int, seconds_to_start: float, most_steps: int) -> Blow:
    """A blow; most come by the progress of the run, so that many in a row don't keep it from its end."""
    rank = source.randrange(world_size)
    moment = {"steps": source.randint(1, min(2 * EVERY_STEPS + 1, most_steps)), "seconds": source.uniform(0, 0.06)}
    later: dict[str, Any] = moment | {"steps": min(moment["steps"] + 3 * EVERY_STEPS, most_steps)}
    match source.choices(("clock", "all", "one", "rank", "writer", "PREEMPT", "SIGTERM"), (20, 20, 20, 15, 20, 3, 2))[
        0
    ]:
        case "clock":
            kind: Any = source.choice(("all ranks", "one rank"))
            return Blow(kind=kind, rank=rank, seconds=source.uniform(0, 1.3 * seconds_to_start), latest=most_steps)
        case "all":
            return Blow(kind="all ranks", **moment)
        case "one":
            return Blow(kind="one rank", rank=rank, **moment)
        case "rank":
            return Blow(kind="a rank's own call", rank=rank, call=source.randint(1, 60), **later)
        case "writer":
            return Blow(kind="a writer's own call", rank=rank, call=source.randint(1, 30 if rank else 60), **later)
        case "PREEMPT":
            return Blow(kind="PREEMPT", **moment)
        case _:
            return Blow(kind="SIGTERM", rank=rank, **moment)


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
    was_struck: bool
    """Whether the blow came before the end."""
    seconds: float
    lost: tuple[str, ...]
    """Committed checkpoints that are gone or damaged, or not where the life went on."""
    broken: tuple[str, ...]
    """Other promises."""
    output: str
    """The end of what the ranks printed, if anything is broken."""

    @property
    def is_done(self) -> bool:
        """Whether the run has come to its end."""
        return set(self.codes) == {0}

    @property
    def num_kills(self) -> int:
        """Times that SIGKILL came: from without, to one rank or to all at once, or by a process' own hand."""
        came = self.was_struck and self.blow is not None and self.blow.kind not in ("PREEMPT", "SIGTERM")
        return came + (self.killed_itself is not None)

    def __str__(self) -> str:
        """A line of a log."""
        begin = "before it resumed" if self.resumed_from is None else f"from {self.resumed_from}"
        how = [self.killed_itself] if self.killed_itself else []
        how += [str(self.blow)] if self.was_struck else []
        codes = ",".join(map(str, self.codes))
        line = (
            f"{self.seconds:5.1f} s  {self.world_size} ranks, {begin:17} to step {self.reached:3}, saved {self.newest:3}, "
            f"exit codes {codes:7}  {'; '.join(how) or 'not disturbed'}"
        )
        return "\n".join(
            [line, *(f"    BROKEN: {text}" for text in self.lost + self.broken), *self.output.splitlines()]
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


@dataclass(kw_only=True)
class Run:
    """A run directory through its lives."""

    folder: Path
    arguments: tuple[str, ...]
    """Of training.main, beside the run directory."""
    newest: int = 0
    """Step of the newest checkpoint that was ever there under its name."""
    seconds_to_start: float = 1.0
    """From the start of the last life that came so far to its first step."""

    def live(self, blow: Blow | None = None, world_size: int = 2) -> Life:
        """Start it, strike, wait for its end, and look at what is left."""
        began, mark, newest_before = time.monotonic(), uuid.uuid4().hex, self.newest
        scratch = self.folder.with_name(f"{self.folder.name}-lives")
        scratch.mkdir(exist_ok=True)
        outputs = [scratch / f"{mark}-{rank}.txt" for rank in range(world_size)]
        last_words = scratch / f"{mark}-killed.txt"
        ranks = self._start(blow, outputs, mark, last_words)
        try:
            was_struck = self._strike(blow, ranks, outputs[0], began)
            broken = self._wait(ranks, outputs[0], began)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait(SECONDS_TO_DIE)
        broken += _orphans(mark)
        # Only now: a helper that outlived its rank for a moment may have committed.
        self._look()
        resumed = _resumed_from(outputs[0])
        lost = self._lost()
        if resumed is not None and resumed != newest_before:
            lost.append(f"went on after step {resumed}, and step {newest_before} was committed")
        codes = tuple(int(str(rank.returncode)) for rank in ranks)
        died = last_words.read_text() if last_words.exists() else None
        if died is None and not (was_struck and blow and blow.kind not in ("PREEMPT", "SIGTERM")):
            broken += self._wrong_end(codes, was_asked=was_struck)
        said = [f"--- rank {rank}\n{_said(path)[-4000:]}" for rank, path in enumerate(outputs)]
        return Life(
            blow=blow, world_size=world_size, resumed_from=resumed, reached=self.reached(), newest=self.newest,
            codes=codes, killed_itself=died, was_struck=was_struck, seconds=time.monotonic() - began,
            lost=tuple(lost), broken=tuple(broken), output="\n".join(said) if lost or broken else "",
        )  # fmt: skip

    def _start(self, blow: Blow | None, outputs: Sequence[Path], mark: str, last_words: Path) -> list[Rank]:
        ranks = []
        arguments = {"arguments": [*self.arguments, "--run.dir", str(self.folder)]}
        for rank, environment in enumerate(rank_environments(len(outputs))):
            environment["CHAOS_LIFE"] = mark
            if blow is not None and blow.kind in OWN_CALL and rank == blow.rank:
                asked = {
                    "program": TRAINING if blow.kind == "a rank's own call" else WRITER, "point": blow.call,
                    "words": str(last_words),
                }  # fmt: skip
                environment["CHAOS_KILL"] = json.dumps(asked)
                environment["PYTHONPATH"] += f"{os.pathsep}{ROOT / 'tests' / 'chaos' / 'injected'}"
            ranks.append(
                start("tests.chaos.lives:live_as_rank", arguments, environment=environment, output=outputs[rank])
            )
        return ranks

    def _strike(self, blow: Blow | None, ranks: Sequence[Rank], output: Path, began: float) -> bool:
        """Wait for the moment of the blow, watching checkpoints come; whether it came before the end of the life."""
        resumed, moment = None, None
        while all(rank.poll() is None for rank in ranks) and time.monotonic() - began < LONGEST_LIFE:
            self._look()
            if resumed is None and (resumed := _resumed_from(output)) is not None:
                self.seconds_to_start = time.monotonic() - began
            if blow is not None:
                done = 0 if resumed is None else self.reached() - resumed
                if moment is None and done >= blow.steps:
                    moment = (time.monotonic() if blow.steps else began) + blow.seconds
                is_late = blow.latest is not None and done >= blow.latest
                if is_late or (moment is not None and time.monotonic() >= moment):
                    self._hit(blow, ranks)
                    return True
            time.sleep(0.005)
        return False

    def _hit(self, blow: Blow, ranks: Sequence[Rank]) -> None:
        match blow.kind:
            case "PREEMPT":
                (self.folder / "PREEMPT").touch()
            case "SIGTERM":
                ranks[blow.rank].send_signal(signal.SIGTERM)
            case "one rank":
                ranks[blow.rank].kill()
            case _:
                for rank in ranks:
                    rank.kill()

    def _wait(self, ranks: Sequence[Rank], output: Path, began: float) -> list[str]:
        """Wait until all ranks have ended; after the first, the others have only so long."""
        first = None
        while left := [number for number, rank in enumerate(ranks) if rank.poll() is None]:
            self._look()
            now = time.monotonic()
            if first is None and len(left) < len(ranks):
                first = now
            if now - began > LONGEST_LIFE or (first is not None and now - first > SECONDS_TO_DIE):
                return [f"ranks {left} did not end by themselves"]
            if first is not None and now - first > SECONDS_FOR_A_LAUNCHER and _resumed_from(output) is None:
                # They may be waiting for one that will never come.
                return []
            time.sleep(0.005)
        return []

    def _look(self) -> None:
        """Remember the newest checkpoint under its name."""
        with contextlib.suppress(OSError):
            self.newest = max(self.newest, *(int(folder.name) for folder in folders(self.folder / "checkpoints")), 0)

    def _lost(self) -> list[str]:
        """What is wrong with the checkpoints that have a name, before a next start has put anything in order."""
        found: list[Checkpoint] = []
        problems = []
        for folder in folders(self.folder / "checkpoints"):
            try:
                found.append(verify(folder))
            except CheckpointError as error:
                problems.append(f"damaged under its name: {error}")
        if self.newest not in (0, *(each.step for each in found)):
            problems.append(f"the committed step {self.newest} is gone")
        # One more where a kill came between a commit and what it was to delete.
        if len(found) > KEEP + 1:
            problems.append(f"checkpoints {[each.step for each in found]} are there, of which {KEEP} should be kept")
        return problems

    def _wrong_end(self, codes: Sequence[int], *, was_asked: bool) -> list[str]:
        """What is wrong with the end of a life in which nothing was killed."""
        if set(codes) == {0}:
            return []
        if was_asked and set(codes) == {85}:
            step = json.loads((self.folder / "run.json").read_text())["step"]
            return (
                []
                if self.newest == step
                else [f"stopped after step {step}, and the newest checkpoint is {self.newest}"]
            )
        return [f"exit codes {tuple(codes)}, although nothing was killed"]

    def reached(self) -> int:
        """The last step in metrics.jsonl."""
        with contextlib.suppress(OSError, ValueError):
            lines = (self.folder / "metrics.jsonl").read_bytes().split(b"\n")
            # What follows the last end of a line is half a line, or nothing.
            return int(json.loads(lines[-2])["step"]) if len(lines) > 1 else 0
        return 0

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


def disturb(run: Run, *, kills: int, steps: int, source: random.Random, worlds: Sequence[int] = (2,)) -> Iterator[Life]:
    """Live until so much was killed, then with blows around the end of the run, which is `steps` long, and then to its end.

    World sizes take turns.
    """
    done, at_end = 0, 0
    for world_size in itertools.cycle(worlds):
        left = steps - run.newest
        if done < kills:
            # No further in a life, or the run would be over too soon.
            most_steps = max(1, left // (kills - done))
            blow: Blow | None = draw(source, world_size, run.seconds_to_start, most_steps)
        elif at_end < BLOWS_AT_END:
            at_end += 1
            seconds = source.uniform(0, 0.15) + (0 if left else run.seconds_to_start)
            blow = Blow(kind="all ranks", steps=left, seconds=seconds)
        else:
            blow = None
        life = run.live(blow, world_size)
        yield life
        if life.is_done:
            return
        done += life.num_kills


@dataclass(frozen=True, kw_only=True)
class Differences:
    """What tells a disturbed run from the undisturbed one."""

    batches: int
    """Steps that are missing, that are there twice, or whose batches, or any before them, are others."""
    losses: int
    """Steps with another loss, gradient norm or penalty."""
    files: int
    """Exported files with other bytes."""
    texts: tuple[str, ...]


def compare(run: Run, straight: Run, *, is_same_world: bool) -> Differences:
    """Compare two finished runs: to the last bit in the same world, else losses to 1e-5 and no files."""
    texts = []
    lines, reference = run.metrics(), {line["step"]: line for line in straight.metrics()}
    times = Counter(line["step"] for line in lines)
    wrong = [step for step in times.keys() | reference.keys() if times[step] != 1 or step not in reference]
    wrong += [line["step"] for line in lines if line["data_hash"] != reference.get(line["step"], line)["data_hash"]]
    if wrong:
        texts.append(f"missing, repeated or with other batches: steps {sorted(set(wrong))}")
    others = []
    for line in lines:
        there = reference.get(line["step"], line)
        for name in ("loss", "grad_norm", "penalty", "tokens_seen"):
            if not _are_equal(line[name], there[name], tolerance=0.0 if is_same_world else 1e-5):
                others.append(line["step"])
                texts.append(f"{name} of step {line['step']}: {line[name]}, undisturbed {there[name]}")
    files = _bytes(run.folder / "export"), _bytes(straight.folder / "export")
    names = [name for name in files[0].keys() | files[1].keys() if files[0].get(name) != files[1].get(name)]
    if not files[1] or (is_same_world and names):
        texts.append(f"exported with other bytes: {sorted(names)}")
    return Differences(
        batches=len(set(wrong)), losses=len(set(others)), files=len(names) if is_same_world else 0, texts=tuple(texts)
    )


def settings(recipe: Path, steps: int, *more: str) -> tuple[str, ...]:
    """A command line of training.main for a run that is to be disturbed."""
    return (
        "--ds_config", str(ROOT / "ds_configs" / "zero3_cpu.json"), "--recipe", str(recipe), "--train.steps", str(steps),
        "--eval.at_start", "false", "--monitor.tensorboard", "false", "--checkpoint.every_steps", str(EVERY_STEPS),
        "--checkpoint.keep", str(KEEP), "--checkpoint.retry_after", "1s", *more,
    )  # fmt: skip


def live_as_rank(arguments: list[str]) -> None:
    """One rank, which may have to kill itself."""
    kill_where_asked(TRAINING)
    program(arguments)


def _are_equal(one: float | None, other: float | None, *, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= tolerance * max(1.0, abs(other))


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _said(output: Path) -> str:
    """What a rank has printed; it may have been killed before it had a file for that."""
    return output.read_text(errors="replace") if output.exists() else ""


def _resumed_from(output: Path) -> int | None:
    """The step after which a life goes on, as rank 0 said; None while it hasn't come to that."""
    text = _said(output)
    if found := re.search(r"resuming after step (\d+) of", text):
        return int(found[1])
    return 0 if " parameters train" in text else None


def _orphans(mark: str) -> list[str]:
    """Helper processes of a life that outlive it; they are killed."""
    deadline = time.monotonic() + SECONDS_TO_DIE
    while left := _processes_with(mark):
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return [f"processes {left} outlived their rank"]
        time.sleep(0.01)
    return []


def _processes_with(mark: str) -> list[int]:
    """Processes that were started with the mark of a life."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"CHAOS_LIFE={mark}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found
