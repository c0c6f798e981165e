"""Proof that a stream survives being killed: its rows after random kills at random world sizes, against those of one run.

Each leg of the proof starts the processes of a world size, gives them the state saved last, takes rows from them, saves
now and then as training does (all ranks, between two steps), and kills them with SIGKILL at a random row. What comes
after the last save is lost with the processes, and must come again in the next leg. Every row that comes, saved or not,
is compared by its hash with that row of a stream that was never interrupted.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from data_pipeline.config import DataConfig
from data_pipeline.stream.killed_rank import Job, Rank, ResumeProofError, hash_of
from data_pipeline.stream.token_stream import TokenStream, merge_states

Progress = Callable[[str, int, int], None]

MAX_WORLD_SIZE = 8
"""World sizes are chosen up to this one, unless they are given."""

_MOST_STEPS_BETWEEN_SAVES = 5


class Leg(NamedTuple):
    """One life of the processes.

    Attributes:
        world_size: how many.
        first_step: the step they began with.
        saved_steps: steps in the last state they saved, counted from the beginning of the stream.
        rows: rows taken from them, over all.
        unsaved_rows: of these, those after the last save.
        seconds_to_open: the slowest one's time to open the sources and the tokenizer.
        seconds_to_first_row: the slowest one's time from there over loading the state to its first row.
        killed: whether they were killed, rather than at the end.
    """

    world_size: int
    first_step: int
    saved_steps: int
    rows: int
    unsaved_rows: int
    seconds_to_open: float
    seconds_to_first_row: float
    killed: bool


class Mismatch(NamedTuple):
    """A row that is not that of the uninterrupted stream: the leg (from 0), its lane, and its number there (from 0)."""

    leg: int
    lane: int
    row: int


@dataclass(frozen=True)
class ResumeProof:
    """What came of it.

    Attributes:
        rows: rows of the uninterrupted stream.
        legs: the lives of the processes, in order.
        mismatches: rows that differed.
        rows_repeated: rows that a resumed stream gave again although they were in its state.
        rows_lost: rows that a resumed stream passed over.
        rows_compared: rows whose hashes were compared.
        seconds: for all of it.
    """

    rows: int
    legs: list[Leg]
    mismatches: list[Mismatch]
    rows_repeated: int
    rows_lost: int
    rows_compared: int
    seconds: float

    @property
    def restarts(self) -> int:
        """How often the stream was taken up again."""
        return len(self.legs) - 1

    @property
    def world_sizes(self) -> list[int]:
        """The number of processes in each leg."""
        return [leg.world_size for leg in self.legs]

    @property
    def holds(self) -> bool:
        """Whether every row was right."""
        return not self.mismatches and self.rows_repeated == self.rows_lost == 0


def prove(
    config: DataConfig,
    *,
    num_lanes: int,
    seed: int,
    rows: int,
    restarts: int,
    world_sizes: Sequence[int] | None = None,
    rng_seed: int = 0,
    progress: Progress | None = None,
) -> ResumeProof:
    """Carry out the proof.

    Args:
        config: what the stream reads.
        num_lanes: rows of the global batch.
        seed: of the stream.
        rows: how many rows to compare; rounded up to whole steps of `num_lanes`.
        restarts: how often to kill and resume, at most once for every step.
        world_sizes: those to choose from, each a divisor of `num_lanes`; by default its divisors up to MAX_WORLD_SIZE.
        rng_seed: decides when to kill and which world size is next, another one wherever there is one.
        progress: told (what, rows done, rows to do).

    Raises:
        ResumeProofError: an argument is impossible, or a process failed or is stuck.
        PipelineError: the stream itself cannot be read.
    """
    began = time.perf_counter()
    world_sizes = _world_sizes(num_lanes, world_sizes)
    if rows < 1 or restarts < 0:
        raise ResumeProofError(
            f"{rows} rows and {restarts} restarts prove nothing; ask for 1 row and 0 restarts at least"
        )
    num_steps = -(-rows // num_lanes)
    expected = _uninterrupted(config, num_lanes, seed, num_steps, progress)
    trial = _Trial(config, num_lanes, seed, expected, progress or (lambda what, done, total: None))
    choose = random.Random(rng_seed)
    # A leg is killed in the steps of its share; what it saved decides where the next one begins.
    kills = sorted(choose.sample(range(1, num_steps), min(restarts, num_steps - 1)))
    for kill in [*kills, None]:
        before = trial.legs[-1].world_size if trial.legs else None
        others = [size for size in world_sizes if size != before]
        trial.run_leg(choose.choice(others or world_sizes), kill, choose)
    return ResumeProof(
        rows=num_steps * num_lanes,
        legs=trial.legs,
        mismatches=trial.mismatches,
        rows_repeated=trial.rows_repeated,
        rows_lost=trial.rows_lost,
        rows_compared=trial.rows_compared,
        seconds=time.perf_counter() - began,
    )


def _world_sizes(num_lanes: int, wanted: Sequence[int] | None) -> list[int]:
    if wanted is None:
        return [size for size in range(1, MAX_WORLD_SIZE + 1) if num_lanes % size == 0]
    if unfit := [size for size in wanted if size < 1 or num_lanes % size]:
        raise ResumeProofError(
            f"the world sizes {unfit} do not divide the global batch of {num_lanes} rows; name divisors"
        )
    if not wanted:
        raise ResumeProofError("there is no world size to choose from; name one at least")
    return list(wanted)


def _uninterrupted(
    config: DataConfig, num_lanes: int, seed: int, num_steps: int, progress: Progress | None
) -> list[list[bytes]]:
    """The hashes of rows by lane."""
    hashes: list[list[bytes]] = [[] for _ in range(num_lanes)]
    with TokenStream(config, num_lanes=num_lanes, lanes=range(num_lanes), seed=seed) as stream:
        for done, row in enumerate(itertools.islice(stream, num_steps * num_lanes), start=1):
            hashes[row.lane].append(hash_of(row))
            if progress is not None and done % num_lanes == 0:
                progress("uninterrupted", done, num_steps * num_lanes)
    return hashes


@dataclass
class _Trial:
    """The interrupted stream: what is saved, and what was found."""

    config: DataConfig
    num_lanes: int
    seed: int
    expected: list[list[bytes]]
    progress: Progress
    state: dict[str, Any] | None = None
    steps: int = 0
    legs: list[Leg] = field(default_factory=list)
    mismatches: list[Mismatch] = field(default_factory=list)
    rows_repeated: int = 0
    rows_lost: int = 0
    rows_compared: int = 0
    _next_row: dict[int, int] = field(default_factory=dict)

    def run_leg(self, world_size: int, kill: int | None, choose: random.Random) -> None:
        """Start `world_size` processes, and kill them amid the step `kill`, or after the last one."""
        first_step = self.steps
        steps = (len(self.expected[0]) if kill is None else max(kill, first_step)) - first_step
        save_every = choose.randint(1, max(_MOST_STEPS_BETWEEN_SAVES, steps // 10))
        per_rank = self.num_lanes // world_size
        with contextlib.ExitStack() as stack:
            ranks = [
                stack.enter_context(Rank(self._job(range(rank * per_rank, (rank + 1) * per_rank), save_every)))
                for rank in range(world_size)
            ]
            for rank in ranks:
                self._check_begin(rank.begin())
            for _ in range(steps):
                for rank in ranks:
                    self._compare(rank.take(per_rank))
            # Amid a step every rank is somewhere else.
            if kill is not None:
                for rank in ranks:
                    self._compare(rank.take(choose.randint(1, per_rank)))
            rows = sum(rank.rows for rank in ranks)
        if saves := min(len(rank.states) for rank in ranks):
            self.state = merge_states([rank.states[saves - 1] for rank in ranks])
            self.steps = first_step + saves * save_every
        self.legs.append(
            Leg(
                world_size=world_size,
                first_step=first_step,
                saved_steps=self.steps,
                rows=rows,
                unsaved_rows=rows - (self.steps - first_step) * self.num_lanes,
                seconds_to_open=max(rank.seconds_to_open for rank in ranks),
                seconds_to_first_row=max(rank.seconds_to_first_row for rank in ranks),
                killed=kill is not None,
            )
        )

    def _job(self, lanes: range, save_every: int) -> Job:
        return Job(self.config, self.num_lanes, lanes, self.seed, self.state, save_every)

    def _check_begin(self, lane_rows: dict[int, int]) -> None:
        """Compare how many rows a resumed process takes for done with how many were saved."""
        self._next_row |= lane_rows
        self.rows_repeated += sum(max(0, self.steps - rows) for rows in lane_rows.values())
        self.rows_lost += sum(max(0, rows - self.steps) for rows in lane_rows.values())

    def _compare(self, rows: list[tuple[int, bytes]]) -> None:
        for lane, digest in rows:
            number = self._next_row[lane]
            self._next_row[lane] += 1
            if self.expected[lane][number : number + 1] != [digest]:
                self.mismatches.append(Mismatch(len(self.legs), lane, number))
        self.rows_compared += len(rows)
        total = len(self.expected) * len(self.expected[0])
        self.progress(f"life {len(self.legs) + 1}", sum(self._next_row.values()), total)
