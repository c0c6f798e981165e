"""Saving and resuming a run: the engine's slices, the stream's cursors and the progress, as one checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipeline.stream.token_stream import merge_states
from training import checkpoint
from training.config import Config
from training.distributed import from_rank_0
from training.engine import Engine
from training.errors import CheckpointError
from training.prefetch import StepBatches
from training.progress import Progress
from training.record import RunRecord
from training.watch.display import Display

log = logging.getLogger("palimpsest")


class Saver:
    """Writes and reads the checkpoints of one run; every method is a collective."""

    def __init__(
        self,
        engine: Engine,
        batches: StepBatches,
        config: Config,
        record: RunRecord,
        display: Display,
    ) -> None:
        self._engine, self._batches, self._config = engine, batches, config
        self._record, self._display = record, display
        self._stall_seconds = 0.0
        self.saved_step: int | None = None
        """Step of the newest checkpoint that this start has written or read."""
        self._is_rewound = False

    @property
    def root(self) -> Path:
        """Folder of the run's checkpoints."""
        return self._config.run.dir / "checkpoints"

    def save(self, progress: Progress, *, keep_all: bool = False) -> None:
        """Write a checkpoint of the current step, unless there is one; older ones than checkpoint.keep are deleted."""
        if self.saved_step == progress.step and not self._is_rewound:
            return
        began = time.perf_counter()
        engine, world = self._engine, self._engine.world
        if world.rank == 0:
            checkpoint.start(self.root, progress.step)
        engine.barrier()
        folder = checkpoint.unfinished_folder(self.root, progress.step)
        entry = checkpoint.write_shard(folder, engine.local_state(), world.rank, world.size)
        streams = self._from_each_stream(self._batches.state_dict())
        files = engine.gather(entry)
        if world.rank == 0:
            keep = None if keep_all else self._config.checkpoint.keep
            checkpoint.finish(self.root, progress.step, self._manifest(progress, files, streams), keep)
        engine.barrier()
        self._stall_seconds += time.perf_counter() - began
        self.saved_step, self._is_rewound = progress.step, False
        self._record.update(last_checkpoint=progress.step, data=self.data_counts())
        log.info("saved checkpoint of step %d in %.2f s", progress.step, time.perf_counter() - began)

    def data_counts(self) -> dict[str, dict[str, int]]:
        """What all ranks together have left out or cut so far, by source."""
        return sum_counts(self._from_each_stream(self._batches.counts()))

    def _from_each_stream(self, value: Any) -> list[Any]:
        """The values of all ranks, or, of ranks that share rows and so have the same stream, of one."""
        return self._engine.gather(value)[:: self._config.train.sequence_parallel]

    def _manifest(
        self, progress: Progress, files: list[dict[str, Any]], streams: list[dict[str, Any]]
    ) -> dict[str, Any]:
        return {
            "step": progress.step,
            "progress": progress.as_dict(),
            "world_size": self._engine.world.size,
            "optimizer_steps": self._engine.optimizer_steps(),
            "parameters": self._engine.shapes(),
            "base_fingerprint": self._record.content.get("base_fingerprint"),
            "stream": merge_states(streams),
            "files": files,
        }

    def stopped(self, progress: Progress) -> bool:
        """Save because the run was asked to stop; False, so that the loop can return it."""
        self.save(progress)
        return False

    def resume(self, progress: Progress) -> bool:
        """Continue from the newest good checkpoint, if there is one; return whether there was."""
        found = self._newest()
        if found is None:
            return False
        self._load(found, progress)
        self._batches.load_state_dict(found.manifest["stream"])
        return True

    def rewind(self, progress: Progress) -> bool:
        """Put the model back to the newest good checkpoint, and the data not; return whether there was one."""
        found = self._newest()
        if found is None:
            return False
        self._load(found, progress)
        # Saved again even if the run is stopped at once: the data have moved on.
        self._is_rewound = True
        return True

    def _newest(self) -> checkpoint.Checkpoint | None:
        # One rank reads and hashes everything; each then reads its own part.
        found, damages = from_rank_0(lambda: checkpoint.newest_good(self.root), self._engine.world)
        for message in damages:
            self._display.say(f"damaged checkpoint ignored: {message}")
        if found is None and damages:
            raise CheckpointError(
                f"{self.root}: every checkpoint is damaged; remove the folder to start over at step 0"
            )
        return found

    def _load(self, found: checkpoint.Checkpoint, progress: Progress) -> None:
        engine = self._engine
        theirs, ours = found.manifest.get("base_fingerprint"), self._record.content.get("base_fingerprint")
        if theirs != ours:
            raise CheckpointError(
                f"{found.path}: was trained from another base ({theirs}) than model.base holds now ({ours})"
            )
        rank, size = engine.world.rank, engine.world.size
        state = checkpoint.read_state(found, engine.state_names(), engine.shapes(), rank, size)
        engine.load_local_state(state, found.manifest["optimizer_steps"])
        for name, value in found.manifest["progress"].items():
            setattr(progress, name, value)
        self.saved_step = progress.step

    def take_stall_seconds(self) -> float:
        """Seconds that training stood still for saving since the last call."""
        seconds, self._stall_seconds = self._stall_seconds, 0.0
        return seconds


def sum_counts(counts: Iterable[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """Sum the counts of every rank, by source and kind."""
    total: dict[str, dict[str, int]] = {}
    for of_rank in counts:
        for source, of_source in of_rank.items():
            summed = total.setdefault(source, {})
            for kind, number in of_source.items():
                summed[kind] = summed.get(kind, 0) + number
    return total
