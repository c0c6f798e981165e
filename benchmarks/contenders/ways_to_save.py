"""Five ways to save what a rank trains, behind the same four methods; each gets the engine of this system and a folder."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

# Run by path, a script sees its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_pipeline import load_tokenizer
from data_pipeline.stream.state import state_of
from training.checkpoint.manifest import open_checkpoint
from training.checkpoint.retention import retention_of
from training.checkpoint.slices import read_state
from training.config import Config
from training.engine import Engine
from training.origin import Origin
from training.progress import Progress
from training.ranks.distributed import any_rank, sum_over_ranks
from training.record.run_record import RunRecord
from training.saving import Saver
from training.watch.display import Display


class Way(Protocol):
    """Saves and loads; every method but `folder` is a collective."""

    def save(self, step: int) -> float:
        """Begin to save; return the seconds that training stood still so far."""

    def cross(self) -> tuple[bool, float]:
        """After a step: whether the save goes on, and the seconds that it held training up in between."""

    def folder(self, step: int) -> Path:
        """Where a step's checkpoint is."""

    def load(self, step: int, *, is_verified: bool) -> bool:
        """Put the engine back to a saved step, with hashes checked or without; False where there is no such way."""


class NoStream:
    """Stands in for the data: a state of the size that a stream has."""

    def __init__(self, lanes: range) -> None:
        self._lanes = lanes

    def state_dict(self) -> dict[str, Any]:
        """A cursor per lane."""
        return state_of({}, ["document", "offset"], {lane: (lane, lane) for lane in self._lanes}, None)

    def counts(self) -> dict[str, dict[str, int]]:
        """Nothing was left out."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to go back to."""


class Ours:
    """training.saving, as the loop calls it."""

    def __init__(self, engine: Engine, config: Config) -> None:
        config.run.dir.mkdir(parents=True, exist_ok=True)
        self._engine = engine
        record = RunRecord(config.run.dir, engine.world)
        if config.data.tokenizer.is_file():
            # Without it nothing can be exported.
            record.content["tokenizer_fingerprint"] = load_tokenizer(config.data.tokenizer, "reference").fingerprint
        stream: Any = NoStream(engine.world.lanes(config.train.global_batch_rows))
        display = Display(label="", steps=1, is_shown=False)
        self._saver = Saver(engine, stream, config, record, display, retention_of(config, None))
        # As training does before its first step.
        self._saver.prepare()
        self._step = 0

    def save(self, step: int) -> float:
        """See `Way`."""
        self._step = step
        self._saver.save(Progress(step=step))
        return self._saver.take_stall_seconds()

    def cross(self) -> tuple[bool, float]:
        """See `Way`."""
        # What training.boundary does for a save.
        self._saver.go_on(sum_over_ranks(self._saver.signals()))
        return self._saver.saved_step != self._step, self._saver.take_stall_seconds()

    def folder(self, step: int) -> Path:
        """See `Way`."""
        return self._saver.root / str(step)

    def load(self, step: int, *, is_verified: bool) -> bool:
        """See `Way`."""
        if is_verified:
            return self._saver.resume(Progress(), Origin(root=self._saver.root))
        engine, found = self._engine, open_checkpoint(self.folder(step))
        state = read_state(found, engine.state_names(), engine.shapes(), engine.world.rank, engine.world.size)
        engine.load_local_state(state, found.manifest["optimizer_steps"])
        return True


class Blocking:
    """What the ways have in common that are done when they return."""

    def __init__(self, engine: Engine, config: Config) -> None:
        self._engine, self._root = engine, config.run.dir / "checkpoints"

    def save(self, step: int) -> float:
        """See `Way`."""
        if self._engine.world.rank == 0:
            shutil.rmtree(self._root, ignore_errors=True)
            self._root.mkdir(parents=True)
        dist.barrier()
        began = time.perf_counter()
        self._write(step)
        return time.perf_counter() - began

    def _write(self, step: int) -> None:
        raise NotImplementedError

    def cross(self) -> tuple[bool, float]:
        """See `Way`."""
        return any_rank(False), 0.0

    def folder(self, step: int) -> Path:
        """See `Way`."""
        return self._root / str(step)


class TorchSave(Blocking):
    """torch.save of each rank's masters and optimizer states, and fsync."""

    def _file(self, step: int) -> Path:
        return self.folder(step) / f"rank{self._engine.world.rank}.pt"

    def _write(self, step: int) -> None:
        path = self._file(step)
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            torch.save({"state": dict(self._engine.local_views()), "steps": self._engine.optimizer_steps()}, file)
            file.flush()
            os.fsync(file.fileno())
        dist.barrier()

    def load(self, step: int, *, is_verified: bool) -> bool:
        """See `Way`; there are no hashes."""
        if is_verified:
            return False
        found = torch.load(self._file(step), weights_only=True)
        self._engine.load_local_state(found["state"].items(), found["steps"])
        return True


class DeepSpeedSave(Blocking):
    """DeepSpeed's save_checkpoint, which leaves the writing to disk to the system: nothing is fsync'ed."""

    excludes_frozen = True

    def _write(self, step: int) -> None:
        self._deepspeed.save_checkpoint(self._root, tag=str(step), exclude_frozen_parameters=self.excludes_frozen)

    @property
    def _deepspeed(self) -> Any:
        # Under ZeRO-3 what is called for a forward is DeepSpeed's engine.
        return self._engine.placement.model

    def load(self, step: int, *, is_verified: bool) -> bool:
        """See `Way`; there are no hashes."""
        if is_verified:
            return False
        strict = not self.excludes_frozen
        path, _ = self._deepspeed.load_checkpoint(self._root, tag=str(step), load_module_strict=strict)
        return path is not None


class DeepSpeedSaveAll(DeepSpeedSave):
    """The same with what doesn't train."""

    excludes_frozen = False


class AsyncSave(Blocking):
    """torch.distributed.checkpoint's async_save, by a process of its own from memory that both see, made once."""

    def __init__(self, engine: Engine, config: Config) -> None:
        super().__init__(engine, config)
        options = StagingOptions(
            use_pinned_memory=False, use_shared_memory=True, use_async_staging=False, use_non_blocking_copy=False
        )
        self._stager = DefaultStager(options)
        self._upload: Any = None

    def _write(self, step: int) -> None:
        rank = self._engine.world.rank
        # The same name on two ranks would be one tensor to it.
        state = {f"{rank}/{name}": view.detach() for name, view in self._engine.local_views()}
        response = dcp.async_save(
            state, checkpoint_id=self.folder(step), async_stager=self._stager,
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
        )  # fmt: skip
        self._upload = getattr(response, "upload_completion", response)

    def cross(self) -> tuple[bool, float]:
        """See `Way`."""
        return any_rank(not self._upload.done()), 0.0

    def load(self, step: int, *, is_verified: bool) -> bool:
        """See `Way`; not measured."""
        return False


WAYS: dict[str, type[Any]] = {
    "ours": Ours, "ours_blocking": Ours, "torch": TorchSave, "deepspeed": DeepSpeedSave,
    "deepspeed_all": DeepSpeedSaveAll, "async": AsyncSave,
}  # fmt: skip
