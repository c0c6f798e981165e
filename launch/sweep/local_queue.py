"""Cells on this machine, one after another or several at once: failures are tried again, Ctrl-C lets what runs save."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from evals.results import DIVERGED
from launch import local, slurm
from launch.jobs import events
from launch.slurm import Queued, SlurmError
from launch.sweep.board import Board
from launch.sweep.cells import Cell, Sweep
from launch.sweep.ranks import Ranks
from launch.sweep.record import LOGS
from launch.sweep.states import one_line, state_of
from training.files import read_json
from training.recipe import ConfigError

DONE, WRONG_CONFIGURATION, STOPPED = 0, 2, 85
"""Exit codes of training; all others are failures."""
POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Share:
    """What each of the cells that run at once gets of this machine."""

    ranks: int
    at_once: int
    cores: int
    gpus: tuple[str, ...]
    """As CUDA_VISIBLE_DEVICES names them; empty on a machine without."""

    @property
    def problems(self) -> list[str]:
        """What can't be shared out."""
        wanted = self.ranks * self.at_once
        found = [f"{option} {value}: must be at least 1"
                 for option, value in (("--ranks", self.ranks), ("--at-once", self.at_once)) if value < 1]  # fmt: skip
        if not found and self.gpus and wanted > len(self.gpus):
            there = f"there {'is' if len(self.gpus) == 1 else 'are'} {len(self.gpus)}"
            found = [
                f"--ranks {self.ranks} --at-once {self.at_once}: {wanted} ranks at once need as many GPUs, and {there}"
            ]
        return found

    def environment(self, slot: int) -> dict[str, str]:
        """Variables of the ranks of a cell, the `slot`th of those that run at once."""
        env = local.environment()
        env.setdefault("OMP_NUM_THREADS", str(max(1, self.cores // (self.ranks * self.at_once))))
        if self.gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus[slot * self.ranks : (slot + 1) * self.ranks])
        return env


def share_of_this_machine(ranks: int, at_once: int) -> Share:
    """The cores and GPUs that this process may use, shared out."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    gpus = there if visible is None else [name.strip() for name in visible.split(",") if name.strip()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Share(ranks=ranks, at_once=at_once, cores=cores, gpus=tuple(gpus))


@dataclass
class _Running:
    cell: Cell
    attempt: int
    slot: int
    ranks: Ranks
    began: float


class LocalQueue:
    """Trains cells; `run` returns when all of them have ended, or when it was told to stop and those that ran have saved."""

    def __init__(self, sweep: Sweep, cells: Sequence[Cell], *, share: Share, retries: int, board: Board) -> None:
        """`retries` is how often a cell is tried again after a failure that isn't one of its configuration."""
        self.sweep = sweep
        self.codes: dict[str, int] = {}
        """Last exit codes, by the cells' names."""
        self.is_stopping = False
        self._signals = 0
        """Received and not acted upon."""
        self._waiting = deque(cells)
        self._running: list[_Running] = []
        self._share, self._retries, self._board = share, retries, board

    def run(self) -> dict[str, int]:
        """Train; returns the last exit codes of all cells that have ended, by name.

        However it ends, no cell is left running: not when the terminal is closed, nor when nobody reads what is printed.
        """
        with _handlers(self._note_signal):
            try:
                while self._running or (self._waiting and not self.is_stopping):
                    self._obey()
                    self._start_more()
                    self._board.show([_progress(each) for each in self._running])
                    time.sleep(POLL_SECONDS)
                    for each in list(self._running):
                        if (code := each.ranks.poll()) is not None:
                            self._running.remove(each)
                            self._end(each, code)
            finally:
                self._save_what_runs()
        return self.codes

    def _save_what_runs(self) -> None:
        """Stop what still runs and wait for it, without a word: after an error there may be nowhere to print it."""
        for each in self._running:
            each.ranks.stop()
        while self._running:
            time.sleep(POLL_SECONDS)
            if self._signals:
                for each in self._running:
                    each.ranks.kill()
            self._running = [each for each in self._running if each.ranks.poll() is None]

    def _start_more(self) -> None:
        used = {each.slot for each in self._running}
        for slot in range(self._share.at_once):
            while slot not in used and self._waiting and not self.is_stopping:
                cell = self._waiting.popleft()
                if not self._is_somebody_elses(cell):
                    self._start(cell, attempt=1, slot=slot)
                    used.add(slot)

    def _is_somebody_elses(self, cell: Cell) -> bool:
        """Whether a job has taken the cell while it waited here, or has even done it; that is then said."""
        state = state_of(cell, _jobs_of(cell))
        if state.state != "done" and not state.job:
            return False
        self._board.say(f"{cell.name}: {'done already' if state.state == 'done' else f'left to {state.why}'}")
        return True

    def _start(self, cell: Cell, *, attempt: int, slot: int) -> None:
        log = self.sweep.root / LOGS / f"{cell.name}.log"
        again = f", try {attempt} of {self._retries + 1}" if attempt > 1 else ""
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n=== {datetime.now(UTC).isoformat(timespec='seconds')} {cell.name}{again}\n")
        ds_config = [] if self.sweep.ds_config is None else ["--ds_config", str(self.sweep.ds_config)]
        arguments = ["--recipe", str(cell.recipe), *ds_config, *cell.arguments]
        env = self._share.environment(slot)
        ranks = Ranks(arguments, count=self._share.ranks, environment=env, output=log)
        self._running.append(_Running(cell, attempt, slot, ranks, time.monotonic()))
        self._board.say(f"{cell.name}: started{again}")

    def _end(self, each: _Running, code: int) -> None:
        name, seconds = each.cell.name, time.monotonic() - each.began
        if self.is_stopping and code == 128 + signal.SIGTERM:
            # Asked before it could listen, when nothing could be lost yet.
            code = STOPPED
        self.codes[name] = code
        record = read_json(each.cell.run_dir / "run.json") or {}
        log = self.sweep.root / LOGS / f"{name}.log"
        if code == DONE:
            self._board.say(f"{name}: done, {record.get('step')} steps in {seconds:.0f} s")
        elif code == STOPPED:
            self._board.say(f"{name}: stopped after step {record.get('step', 0)}, everything saved")
        else:
            error = str(record.get("error") or "") if record.get("status") == "failed" else ""
            why = f": {one_line(error)}" if error else ""
            self._board.say(f"{name}: failed with exit code {code}{why}; see {log}")
            is_final = code == WRONG_CONFIGURATION or DIVERGED.search(error)
            if not is_final and each.attempt <= self._retries and not self.is_stopping:
                self._start(each.cell, attempt=each.attempt + 1, slot=each.slot)

    def _note_signal(self, number: int, frame: object) -> None:
        self._signals += 1

    def _obey(self) -> None:
        """Of the signals that have come the first lets what runs save; another one ends it."""
        while self._signals:
            self._signals -= 1
            for each in self._running:
                if self.is_stopping:
                    each.ranks.kill()
                else:
                    each.ranks.stop()
            if not self.is_stopping and self._running:
                self._board.say("stopping: what runs is saved first; Ctrl-C again to end it without")
            self.is_stopping = True


@contextmanager
def _handlers(handle: Callable[[int, object], None]) -> Iterator[None]:
    """Have Ctrl-C, SIGTERM and a closed terminal call `handle`, and then do again what they did before."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _jobs_of(cell: Cell) -> Mapping[str, Queued] | None:
    """This user's jobs, as far as this cell may be in one."""
    try:
        return slurm.queue() if events(cell.run_dir) else {}
    except SlurmError:
        return None


def _progress(each: _Running) -> str:
    record = read_json(each.cell.run_dir / "run.json") or {}
    is_new = record.get("status") == "running" and record.get("steps")
    where = f"step {record.get('step', 0)} of {record['steps']}" if is_new else "starting"
    minutes, seconds = divmod(int(time.monotonic() - each.began), 60)
    return f"{each.cell.name}: {where}, {minutes}:{seconds:02} min"


@contextmanager
def only_queue(root: Path) -> Iterator[None]:
    """Hold the right to decide what becomes of this sweep's cells: to train them here, or to submit them.

    Raises:
        ConfigError: another one holds it.
    """
    with (root / ".queue").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                [
                    f"{root}: another queue of this sweep is going on, or it is just being submitted; one has all its cells"
                ]
            ) from error
        except OSError:
            pass  # Storage without locks.
        yield
