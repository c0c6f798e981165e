"""The metrics where people watch them: TensorBoard, and Weights & Biases when a project is named.

A monitor never stops a run: what goes wrong with one is said once, and the run goes on without it. metrics.jsonl has it all.
"""

from __future__ import annotations

import hashlib
import io
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from training.config import Config, to_dict
from training.record.appended import AppendedFile
from training.record.unwritten import Unwritten

_GROUPS = {
    "train": ("loss", "lr", "grad_norm", "penalty", "compensation", "skipped_steps", "tokens_seen"),
    "speed": (
        "tokens_per_second", "target_tokens_per_second", "mfu", "flops", "hardware_flops", "communication_bytes",
        "peak_memory_bytes",
    ),
}  # fmt: skip
"""Where a value of metrics.jsonl is shown; seconds are a group of their own."""

_FLUSH_SECONDS = 10.0
"""Time between two attempts to write what TensorBoard shows."""


class Monitor(Protocol):
    """Something that shows numbers by step."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Show `values` at `step`."""

    def close(self) -> None:
        """Write what is still to be written."""


class EventFile(AppendedFile):
    """A file of TensorBoard's events; what storage does not take waits."""

    def add_event(self, **content: Any) -> None:
        """Have an event with these fields wait for the next flush."""
        # Here and not above: it takes a moment, and only rank 0 needs it.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
        self.add(record.getvalue())

    def flush(self) -> None:
        """Write what waits; see `AppendedFile.flush`."""
        # Without its parents: a run directory that is away for a while must not be made anew.
        self.path.parent.mkdir(exist_ok=True)
        super().flush()


class TensorBoard:
    """Event files in <run>/tensorboard.

    Written as metrics.jsonl is and not by the library's writer, which loses what a full disk refuses and makes a directory anew
    that is away for a while.
    """

    def __init__(self, run_dir: Path, first_step: int, unwritten: Unwritten) -> None:
        """Shown from `first_step` on; what an earlier start wrote for it and later steps is shown no longer."""
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = EventFile(run_dir / "tensorboard" / name, called="events for TensorBoard")
        self._unwritten = unwritten
        self._next_flush = 0.0
        self._file.add_event(file_version="brain.Event:2")
        self.go_back(first_step)

    def go_back(self, first_step: int) -> None:
        """What was written for `first_step` and later ones is shown no longer."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._file.add_event(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Show `values` at `step`."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        shown = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._file.add_event(step=step, summary=Summary(value=shown))
        if time.monotonic() >= self._next_flush:
            self._next_flush = time.monotonic() + _FLUSH_SECONDS
            self._unwritten.write(self._file)

    def close(self) -> None:
        """Write what is still to be written."""
        self._unwritten.write(self._file)
        self._unwritten.retry()


class WandB:
    """A run of Weights & Biases, online or not as WANDB_MODE says, that every start of this run continues.

    Of the machine and the environment nothing is sent but the use of CPU, memory and GPU; of the run its configuration and
    its numbers.
    """

    def __init__(self, run_dir: Path, config: Config) -> None:
        import wandb

        self._run = wandb.init(
            project=config.monitor.wandb_project,
            id=hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16],
            name=run_dir.name,
            dir=str(run_dir),
            resume="allow",
            config=to_dict(config),
            settings=wandb.Settings(
                console="off",
                quiet=True,
                save_code=False,
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
                x_save_requirements=False,
                login_timeout=30,
            ),
        )
        # Its own count of steps only grows; a run that goes on from a checkpoint repeats some.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Show `values` at `step`."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Send what is still to be sent."""
        self._run.finish()


class Monitors:
    """All monitors of a run, opened with the first numbers; only rank 0 has any."""

    def __init__(
        self,
        config: Config,
        *,
        rank: int,
        first_step: int,
        say: Callable[[str], None],
        unwritten: Unwritten | None = None,
    ) -> None:
        """Of a run that has made `first_step` steps; `say` tells the user what could not be done."""
        self._config, self._first_step, self._say = config, first_step, say
        self._unwritten = unwritten or Unwritten(say)
        self._open: dict[str, Monitor] = {}
        self._names = []
        if rank == 0 and config.monitor.tensorboard:
            self._names.append("TensorBoard")
        if rank == 0 and config.monitor.wandb_project is not None:
            self._names.append("wandb")

    def write(self, line: Mapping[str, Any]) -> None:
        """Show a line of metrics.jsonl."""
        values = {f"{group}/{name}": line.get(name) for group, names in _GROUPS.items() for name in names}
        values |= {f"seconds/{name.removesuffix('_seconds')}": line[name] for name in line if name.endswith("_seconds")}
        self._write(line["step"], {name: value for name, value in values.items() if value is not None})

    def write_scores(self, step: int, results: Mapping[str, Mapping[str, Any]]) -> None:
        """Show the score of every task of an evaluation (what evals.evaluate returns) after `step` steps."""
        values = {f"eval/{task}": result["score"] for task, result in results.items()}
        for task, result in results.items():
            if posterior := result.get("posterior"):
                values[f"eval/{task} (posterior)"] = posterior["score"]
        self._write(step, values)

    def go_back(self, step: int) -> None:
        """The run has gone back to its state after `step` steps; what follows takes the place of what is shown."""
        self._first_step = step
        board = self._open.get("TensorBoard")
        if isinstance(board, TensorBoard):
            board.go_back(step + 1)

    def close(self) -> None:
        """Write what is still to be written; nothing is shown after that."""
        for name, monitor in list(self._open.items()):
            with self._guarded(name):
                monitor.close()
        self._names.clear()

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        for name in list(self._names):
            with self._guarded(name):
                self._monitor(name).write(step, values)

    def _monitor(self, name: str) -> Monitor:
        """The monitor with this name, opened if it isn't."""
        if name not in self._open:
            run_dir = self._config.run.dir
            self._open[name] = (
                TensorBoard(run_dir, self._first_step + 1, self._unwritten)
                if name == "TensorBoard"
                else WandB(run_dir, self._config)
            )
        return self._open[name]

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """What fails with this monitor is said, and is the last that is done with it."""
        try:
            yield
        except Exception as error:  # Whatever it is, it is not worth a run.
            self._open.pop(name, None)
            if name in self._names:
                self._names.remove(name)
            self._say(f"going on without {name}: {type(error).__name__}: {error}")
