"""The training loop: explicit, one screen, no callbacks."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import Any

import torch

from data_pipeline.errors import PipelineError
from training.batches import TimedRows, chain_hash, take_step
from training.config import Config
from training.display import Display
from training.engine import Engine, MicroBatch
from training.errors import NonFiniteGradients
from training.evaluation import Evaluation
from training.flops import flops_per_token, peak_flops
from training.progress import Progress
from training.record import RunRecord
from training.saving import Saver
from training.stopping import StopRequest


def train(
    engine: Engine,
    rows: Iterator[Any],
    progress: Progress,
    *,
    config: Config,
    record: RunRecord,
    display: Display,
    evaluation: Evaluation,
    saver: Saver,
    stop: StopRequest,
) -> bool:
    """Train from `progress.step` to the end; return False when stopped early (with everything saved).

    Raises:
        PipelineError: on all ranks, when one of them can't read its data.
        NonFiniteGradients: after train.max_skipped_steps skipped steps in a row.
    """
    rows_per_rank = config.train.global_batch_rows // engine.world.size
    tokens_per_step = config.train.global_batch_rows * config.data.seq_len
    meter = Meter(engine, config)
    while True:
        # At the top, so that a run stopped in an evaluation takes it up again; what has been scored is not scored twice.
        if evaluation.is_due(progress.step) and not evaluation.run(progress):
            return saver.stopped(progress)
        if progress.step == config.train.steps:
            return True
        began = time.perf_counter()
        batch, hash_sum, waited, problem = try_step(rows, rows_per_rank, config.train.micro_batch_rows)
        hash_total, longest_wait = agree(engine, hash_sum, waited, problem)
        meter.data_seconds += longest_wait
        result = engine.step(batch, progress.step)

        progress.step += 1
        progress.tokens_seen += tokens_per_step
        progress.data_hash = chain_hash(progress.data_hash, hash_total)
        progress.skipped_in_a_row = 0 if result.is_applied else progress.skipped_in_a_row + 1
        progress.skipped_steps += not result.is_applied
        is_stopped = stop.any_rank(engine.any_rank)
        progress.seconds += time.perf_counter() - began
        meter.steps, meter.seconds = meter.steps + 1, meter.seconds + time.perf_counter() - began

        is_last = progress.step == config.train.steps
        display.step(progress.step, result.loss, meter.tokens_per_second)
        if progress.step % config.train.log_every_steps == 0 or is_last or not result.is_applied:
            meter.stall_seconds = saver.take_stall_seconds()
            record.log_metrics(meter.line(progress, result))
            record.update(**progress.as_dict())
            meter.reset()
        if progress.skipped_in_a_row >= config.train.max_skipped_steps:
            # Not saved: the weights have blown up, and must not push out good checkpoints.
            raise NonFiniteGradients(
                f"gradients were not finite for {progress.skipped_in_a_row} steps in a row, up to step {progress.step}; "
                "start a new run (another run.dir) with a lower optim.lr, or look at the data of these steps"
            )
        if is_stopped:
            return saver.stopped(progress)
        if is_last or (progress.step % config.checkpoint.every_steps == 0 and result.is_applied):
            saver.save(progress)


def try_step(
    rows: Iterator[Any], num_rows: int, micro_batch_rows: int
) -> tuple[list[MicroBatch], int, float, str | None]:
    """The next step's micro-batches, their hash, the seconds they were waited for, and what is wrong with the data."""
    timed = TimedRows(rows)
    try:
        batches, hash_sum = take_step(timed, num_rows=num_rows, micro_batch_rows=micro_batch_rows)
    except PipelineError as error:
        return [], 0, timed.seconds, str(error)
    return batches, hash_sum, timed.seconds, None


def agree(engine: Engine, hash_sum: int, waited: float, problem: str | None) -> tuple[int, float]:
    """The sum of all ranks' hashes and the longest of their waits for data (a collective).

    Raises:
        PipelineError: on all ranks, when one of them has a problem; else the others would wait for it in the step.
    """
    waits = [0.0] * engine.world.size
    waits[engine.world.rank] = waited
    hash_total, num_problems, *waits = engine.sum_over_ranks([hash_sum, problem is not None, *waits])
    if num_problems:
        raise PipelineError(next(text for text in engine.gather(problem) if text is not None))
    return int(hash_total), max(waits)


class Meter:
    """What happened since the last line of metrics.jsonl."""

    def __init__(self, engine: Engine, config: Config) -> None:
        self._device = engine.device
        self._tokens_per_step = config.train.global_batch_rows * config.data.seq_len
        forwards, backwards = config.hidden_key.passes()
        self._flops = flops_per_token(
            engine.num_parameters, engine.model.config, config.data.seq_len, forwards=forwards, backwards=backwards
        )
        peak = peak_flops(engine.device)
        self._peak = peak * engine.world.size if peak else None
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.steps = 0
        self.seconds = self.data_seconds = self.stall_seconds = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Input tokens per second of all ranks together."""
        return self.steps * self._tokens_per_step / self.seconds if self.seconds else 0.0

    def line(self, progress: Progress, result: Any) -> dict[str, Any]:
        """A line of metrics.jsonl; seconds are sums since the last line, those of data of each step's slowest rank."""
        return {
            "step": progress.step,
            "tokens_seen": progress.tokens_seen,
            "loss": result.loss,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "penalty": result.penalty,
            "compensation": result.compensation,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.tokens_per_second * self._flops / self._peak if self._peak else None,
            "peak_memory_bytes": peak_memory_bytes(self._device),
            "skipped_steps": progress.skipped_steps,
            "data_seconds": self.data_seconds,
            "stall_seconds": self.stall_seconds,
            "data_hash": progress.data_hash,
        }


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this rank has held: of its GPU, or the process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
