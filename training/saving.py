"""Saving and resuming a run: the engine's slices, the stream's cursors and the progress, as one checkpoint.

A save takes its course beside the training:

    copying     the ranks' slices are copied into memory; on a GPU beside the next forward and backward
    writing     each rank's writer puts its file on storage
    committing  all files are there: rank 0's writer adds the manifest, gives the checkpoint its name and deletes old ones

At every boundary between two steps the ranks tell each other who is still busy (`Saver.signals`, in the all-reduce that is there
for stop requests, training/boundary.py); when nobody is, all go on to the next phase together. So a step never waits for
storage; only the next save waits for the last.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_pipeline.stream.token_stream import merge_states
from training import resuming
from training.checkpoint import storage
from training.checkpoint.image import Copying, ShardImage, shard_name, sizes_of
from training.checkpoint.manifest import Checkpoint, folders, open_checkpoint
from training.checkpoint.retention import Retention, scores
from training.checkpoint.writer import BackgroundWriter, DirectWriter, Writer
from training.config import Config, to_dict
from training.costs.fitting import copy_problem
from training.duration import parse_duration
from training.engine import Engine
from training.errors import CheckpointError
from training.origin import Origin, is_among
from training.prefetch import StepBatches
from training.progress import Progress
from training.ranks import distributed
from training.ranks.agreement import refuse_problems
from training.ranks.distributed import from_rank_0
from training.ranks.lifeline import Lifeline
from training.recipe import ConfigError
from training.record.run_record import FINGERPRINTS, RunRecord, versions
from training.watch.display import Display

log = logging.getLogger("palimpsest")

LAST_TRIES = 3
"""How often a save is tried that a run can't end without."""


class Phase(enum.Enum):
    """What a save is at."""

    COPYING = enum.auto()
    WRITING = enum.auto()
    COMMITTING = enum.auto()


@dataclass(kw_only=True)
class Pending:
    """A save on its way."""

    step: int
    folder: Path
    content: dict[str, Any]
    """Of the manifest, as far as it is known before the files are there; on rank 0."""
    stream: dict[str, Any]
    counts: dict[str, dict[str, int]]
    keep_all: bool
    is_rewound: bool
    """Whether another checkpoint of this step is there, which it is to replace."""
    copying: Copying
    phase: Phase = Phase.COPYING
    began: float = field(default_factory=time.monotonic)
    answer: dict[str, Any] | None = None


class Saver:
    """Writes and reads the checkpoints of one run. Methods are collectives unless they say otherwise."""

    def __init__(
        self,
        engine: Engine,
        batches: StepBatches,
        config: Config,
        record: RunRecord,
        display: Display,
        retention: Retention,
        lifeline: Lifeline | None = None,
    ) -> None:
        self._engine, self._batches, self._config = engine, batches, config
        self._record, self._display = record, display
        self._retention, self._lifeline = retention, lifeline
        self._world = engine.world
        self._stall_seconds = 0.0
        self.saved_step: int | None = None
        """Step of the newest checkpoint that this start has completed or read."""
        self.is_retry_due = False
        """Whether a save that failed is to be tried again now."""
        self._is_rewound = False
        self._pending: Pending | None = None
        self._failed_in_a_row = 0
        self._failed_at = 0.0
        self._is_ending = False
        self._began_at = 0
        """Step that this start began at: its state is where it came from."""
        self._writer: Writer | None = None
        self._start_name = from_rank_0(lambda: secrets.token_hex(4), self._world)
        self._attempts = 0
        self._whole: set[str] = set()
        """Names of checkpoints whose manifests were looked at."""

    @property
    def root(self) -> Path:
        """Folder of the run's checkpoints."""
        return self._config.run.dir / "checkpoints"

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be made after `step` steps; not a collective. After a failure only time decides."""
        return self.is_retry_due if self._failed_in_a_row else self._retention.is_due(step)

    def save(self, progress: Progress, *, keep_all: bool = False) -> None:
        """Begin to save the current step, unless that was done; waits until an earlier save is over.

        Raises:
            CheckpointError: an earlier save has failed, and checkpoint.max_failed have.
        """
        self.is_retry_due = False
        if self._has(progress.step):
            return
        began, stalled = time.perf_counter(), self._stall_seconds
        self.finish()
        self._attempts += 1
        self._alive(progress.step)
        writer, engine = self._ready_writer(), self._engine
        self._pending = Pending(
            step=progress.step,
            folder=storage.unfinished_folder(self.root, progress.step, f"{self._start_name}{self._attempts}"),
            content=self._content(progress) if self._world.rank == 0 else {},
            stream=self._batches.state_dict(),
            counts=self._batches.counts(),
            keep_all=keep_all,
            is_rewound=self._is_rewound,
            copying=engine.copy_state(writer),
        )
        self._is_rewound = False
        if self._config.checkpoint.background:
            self._is_busy()
        else:
            # It is written from where the next step would change it.
            self.finish()
        # What was waited for in here is in it already.
        self._stall_seconds = stalled + time.perf_counter() - began

    def _alive(self, step: int) -> None:
        if self._lifeline is not None:
            # Without a process that writes, this one does nothing else meanwhile.
            self._lifeline.at(f"saving step {step}", is_watched=self._config.checkpoint.background)

    def _has(self, step: int) -> bool:
        """Whether the state of this step is saved, or being saved."""
        if self._is_rewound:
            return False
        return step in (self.saved_step, self._pending.step if self._pending else None)

    def prepare(self) -> None:
        """Have ready what the first save needs: memory for the copy, and the process that writes it.

        Raises:
            ConfigError: a node has too little memory.
        """
        sizes = sizes_of(self._engine.shapes(), self._engine.state_names(), self._world.size)
        if not self._config.checkpoint.background:
            self._writer = DirectWriter(sizes)
            return
        problem = copy_problem(4 * sum(sizes.values()), self._world.local_size)
        refuse_problems(None if problem is None else ConfigError([problem]), self._world)
        writer = BackgroundWriter(ShardImage(sizes, self._engine.device))
        writer.start()
        self._writer = writer

    def _ready_writer(self) -> Writer:
        if self._writer is None:
            self.prepare()
        assert self._writer is not None
        return self._writer

    def _content(self, progress: Progress) -> dict[str, Any]:
        record = self._record.content
        return {
            "step": progress.step,
            "progress": progress.as_dict(),
            "world_size": self._world.size,
            "placement": self._config.train.placement,
            "optimizer_steps": self._engine.optimizer_steps(),
            "parameters": self._engine.shapes(),
            "states": self._engine.state_names(),
            "fingerprints": {name.removesuffix("_fingerprint"): record.get(name) for name in FINGERPRINTS},
            "config": record.get("config") or to_dict(self._config),
            "versions": versions(),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _is_busy(self) -> bool:
        """Whether this rank still has something to do in the present phase; what can begin is begun."""
        pending = self._pending
        if pending is None:
            return False
        writer = self._ready_writer()
        if pending.phase is Phase.COPYING and pending.copying.is_complete():
            path = pending.folder / shard_name(self._world.rank, self._world.size)
            writer.ask(do="write", path=str(path), read_back=self._config.checkpoint.read_back)
            pending.phase = Phase.WRITING
        if pending.phase is Phase.COPYING or (pending.phase is Phase.COMMITTING and self._world.rank != 0):
            return pending.phase is Phase.COPYING
        if pending.answer is None:
            pending.answer = writer.answer()
        limit = self._config.checkpoint.write_timeout
        if pending.answer is None and time.monotonic() - pending.began > parse_duration(limit):
            writer.give_up()
            pending.answer = {"error": f"storage has not finished after {limit} (checkpoint.write_timeout)"}
        return pending.answer is None

    def signals(self) -> tuple[float, float, float]:
        """What this rank tells the others at a boundary, to be summed up: that it is busy, that its part has failed, that it is
        time to try a failed save again, as rank 0's clock has it; not a collective.
        """
        is_busy = self._is_busy()
        has_failed = self._pending is not None and "error" in (self._pending.answer or {})
        wait = parse_duration(self._config.checkpoint.retry_after)
        is_waiting = self._failed_in_a_row > 0 and self._pending is None and self._world.rank == 0
        wants_retry = is_waiting and time.monotonic() - self._failed_at > wait
        return float(is_busy), float(has_failed), float(wants_retry)

    def go_on(self, signals: Sequence[float]) -> None:
        """What all ranks know at a boundary, the sums of their signals: go on to the next phase if nobody is busy.

        Raises:
            CheckpointError: the save has failed, and checkpoint.max_failed have.
        """
        busy, failed, retries = signals
        self.is_retry_due = retries > 0
        pending = self._pending
        if pending is None or busy:
            return
        began = time.perf_counter()
        if failed:
            self._fail(pending)
        elif pending.phase is Phase.WRITING:
            self._begin_commit(pending)
        else:
            self._end(pending)
        self._stall_seconds += time.perf_counter() - began

    def _begin_commit(self, pending: Pending) -> None:
        assert pending.answer is not None
        parts = self._engine.gather_to_rank_0((pending.answer["value"], pending.stream, pending.counts))
        pending.phase, pending.answer = Phase.COMMITTING, None
        if parts is None:
            return
        files, streams, counts = zip(*parts, strict=True)
        sharing = self._config.train.sequence_parallel
        pending.counts = sum_counts(counts[::sharing])
        self._ready_writer().ask(
            do="commit", folder=str(pending.folder), final=str(self.root / str(pending.step)),
            content={**pending.content, "stream": merge_states(streams[::sharing]), "files": files},
            superfluous=[] if pending.keep_all else self._unwanted(pending.step),
        )  # fmt: skip

    def _unwanted(self, newest: int) -> list[int]:
        """Checkpoints that are not needed once there is one of step `newest`; of rank 0."""
        retention = self._retention
        try:
            existing = [int(folder.name) for folder in folders(self.root) if self._counts(folder)]
            found = scores(self._config.run.dir, retention.best, existing)
        except OSError:
            return []
        # One whose scores wait for storage may be the best.
        awaited = [step for step in existing if retention.is_scored(step) and step not in found]
        superfluous = retention.superfluous(existing, newest=newest, scores=found)
        return [step for step in superfluous if step not in (newest, *awaited)]

    def _counts(self, folder: Path) -> bool:
        """Whether it takes the place of another checkpoint; a damaged one must not."""
        if folder.name not in self._whole:
            try:
                open_checkpoint(folder)
            except CheckpointError:
                return False
            self._whole.add(folder.name)
        return True

    def drop_superfluous(self) -> None:
        """Delete what the scores of the last step have made superfluous; not a collective."""
        if self._world.rank == 0 and self.saved_step is not None:
            with contextlib.suppress(OSError):
                storage.delete(self.root, self._unwanted(self.saved_step))

    def _end(self, pending: Pending) -> None:
        if self._failed_in_a_row:
            self._display.say(f"the checkpoint of step {pending.step} is saved: storage works again")
        self._pending, self._failed_in_a_row = None, 0
        self.saved_step = pending.step
        self._record.update(last_checkpoint=pending.step, data=pending.counts)
        log.info("saved checkpoint of step %d in %.2f s", pending.step, time.monotonic() - pending.began)
        # Rank 0's, of the commit.
        if left := (pending.answer or {}).get("value"):
            kept = ", ".join(str(step) for step in left)
            self._display.say(f"old checkpoints that could not be deleted: {kept}, in {self.root}")

    def _fail(self, pending: Pending) -> None:
        causes = self._engine.gather((pending.answer or {}).get("error"))
        cause = next(cause for cause in causes if cause is not None)
        self._pending, self._is_rewound = None, self._is_rewound or pending.is_rewound
        self._failed_in_a_row += 1
        self._failed_at = time.monotonic()
        limit, last = self._config.checkpoint.max_failed, self._last_good()
        if self._world.rank == 0:
            self._ready_writer().ask(do="discard", folder=str(pending.folder))
        message = f"the checkpoint of step {pending.step} could not be saved: {cause}; {last}"
        log.error(message)
        if self._is_ending:
            self._display.say(f"WARNING: {message}")
            return
        if self._failed_in_a_row >= limit:
            raise CheckpointError(
                f"{message}. That was failure {limit} of {limit} in a row (checkpoint.max_failed); when storage works again, "
                "start the run again"
            )
        self._display.say(
            f"WARNING: {message}. Training goes on, and it is tried again; this is failure {self._failed_in_a_row} of {limit} in "
            "a row (checkpoint.max_failed)"
        )

    def _last_good(self) -> str:
        return (
            "nothing is saved yet"
            if self.saved_step is None
            else f"the last good one is that of step {self.saved_step}"
        )

    def finish(self) -> None:
        """Wait until the save on its way, if there is one, is complete or has failed.

        Raises:
            CheckpointError: it has failed, and checkpoint.max_failed have.
        """
        while self._pending is not None:
            signals = distributed.sum_over_ranks(self.signals())
            if signals[0]:
                self._alive(self._pending.step)
                time.sleep(0.02)
            self.go_on(signals)

    def settle(self, progress: Progress, *, keep_all: bool = False) -> None:
        """Save the current step and wait until that is done, in several tries if need be: the run is about to end.

        Raises:
            CheckpointError: it can't be saved.
        """
        self._is_ending = True
        self.finish()
        for attempt in range(LAST_TRIES):
            if attempt:
                time.sleep(min(2.0 ** (attempt - 1), parse_duration(self._config.checkpoint.retry_after)))
            self.save(progress, keep_all=keep_all)
            self.finish()
            if self._has(progress.step):
                self._is_ending = False
                return
        raise CheckpointError(
            f"the state of step {progress.step} could not be saved in {LAST_TRIES} tries, see above; {self._last_good()}, "
            "where a start of this run goes on"
        )

    def data_counts(self) -> dict[str, dict[str, int]]:
        """What all ranks together have left out or cut so far, by source."""
        return sum_counts(self._engine.gather(self._batches.counts())[:: self._config.train.sequence_parallel])

    def stopped(self, progress: Progress) -> bool:
        """Save because the run was asked to stop, unless it is where it began; False, so that the loop can return it."""
        if progress.step == self._began_at and not self._is_rewound:
            self.finish()
        else:
            self.settle(progress)
        return False

    def resume(self, progress: Progress, origin: Origin) -> bool:
        """Continue where this start begins, if that is at a checkpoint; return whether it is.

        Raises:
            CheckpointError: the checkpoint is damaged, or was not made by such a run.
        """
        found = resuming.where_to_begin(origin, self.root, self._display.say, self._world)
        if found is None:
            return False
        self._load(found, progress)
        self._batches.load_state_dict(found.manifest["stream"])
        self._began_at = progress.step
        return True

    def rewind(self, progress: Progress) -> bool:
        """Put the model back to the newest good checkpoint, and the data not; return whether there was one."""
        self.finish()
        found = resuming.newest_good(self.root, self._display.say, self._world)
        if found is None:
            return False
        self._load(found, progress)
        # Saved again even if the run is stopped at once: the data have moved on.
        self._is_rewound = True
        return True

    def _load(self, found: Checkpoint, progress: Progress) -> None:
        resuming.load(found, self._engine, progress, self._record.content.get("base_fingerprint"))
        # One from elsewhere is not among this run's own yet.
        self.saved_step = progress.step if is_among(found.path, self.root) else None

    def take_stall_seconds(self) -> float:
        """Seconds that training stood still for saving since the last call; not a collective."""
        seconds, self._stall_seconds = self._stall_seconds, 0.0
        return seconds

    def close(self) -> None:
        """End the writer; not a collective."""
        if self._writer is not None:
            self._writer.close()


def sum_counts(counts: Iterable[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """Sum the counts of every rank, by source and kind."""
    total: dict[str, dict[str, int]] = {}
    for of_rank in counts:
        for source, of_source in of_rank.items():
            summed = total.setdefault(source, {})
            for kind, number in of_source.items():
                summed[kind] = summed.get(kind, 0) + number
    return total
