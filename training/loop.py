"""The training loop: explicit, one screen, no callbacks."""

from __future__ import annotations

import time
from dataclasses import dataclass

from data_pipeline.errors import PipelineError
from training.batches import HASH_SIZE, StepBatch, chain_hash
from training.boundary import Boundary
from training.config import Config
from training.engine import Engine, StepResult
from training.errors import LossSpikes, NonFiniteGradients
from training.evaluation import Evaluation
from training.prefetch import StepBatches
from training.progress import Progress
from training.ranks import distributed
from training.ranks.lifeline import Lifeline
from training.record.run_record import RunRecord
from training.saving import Saver
from training.spikes import is_spike, remembered
from training.watch.display import Display
from training.watch.meter import Meter
from training.watch.monitors import Monitors
from training.watch.profiling import Profiler


@dataclass(frozen=True, kw_only=True)
class Watchers:
    """What looks at a run and changes nothing in it."""

    record: RunRecord
    display: Display
    lifeline: Lifeline
    meter: Meter
    monitors: Monitors
    profiler: Profiler


def train(
    engine: Engine,
    batches: StepBatches,
    progress: Progress,
    *,
    config: Config,
    watchers: Watchers,
    evaluation: Evaluation,
    saver: Saver,
    boundary: Boundary,
) -> bool:
    """Train from `progress.step` to the end; return False when stopped early (with everything saved).

    Raises:
        PipelineError: on all ranks, when one of them can't read its data.
        NonFiniteGradients: after train.max_skipped_steps skipped steps in a row.
        LossSpikes: after train.max_skipped_steps spikes since the same checkpoint.
    """
    record, meter = watchers.record, watchers.meter
    tokens_per_step = config.train.global_batch_rows * config.data.seq_len
    batches.start()
    while True:
        # At the top, so that a run stopped in an evaluation takes it up again; what has been scored is not scored twice.
        if evaluation.is_due(progress.step) and not evaluation.run(progress):
            return saver.stopped(progress)
        if progress.step == config.train.steps:
            refuse_nothing_learned(progress)
            saver.settle(progress)
            saver.drop_superfluous()
            return True
        watchers.lifeline.at(f"step {progress.step + 1}: data")
        meter.begin_step()
        began = time.perf_counter()
        batch, shared = take_batch(batches, engine, wants_profile=watchers.profiler.wants())
        # The slowest rank's wait may have begun before this rank's step.
        data_seconds = min(shared.longest_wait, time.perf_counter() - began)
        watchers.profiler.step_began(progress.step, is_asked=shared.wants_profile)
        result = engine.step(batch, progress.step, targets=shared.targets)
        is_stopped = boundary.cross(f"step {progress.step + 1}: its end")
        progress.seconds += meter.end_step(
            tokens=tokens_per_step, targets=shared.targets, pairs=shared.pairs, data_seconds=data_seconds
        )
        watchers.profiler.step_ended(progress.step)

        guard = config.train.spike_guard
        spikes = is_spike(result.loss, progress.recent_losses, deviations=guard, window=config.train.spike_window)
        progress.step += 1
        if spikes and go_back(engine, progress, batch, result, saver, evaluation, config, watchers):
            continue
        progress.tokens_seen += tokens_per_step
        progress.data_hash = chain_hash(progress.data_hash, shared.row_hash)
        progress.skipped_in_a_row = 0 if result.is_applied else progress.skipped_in_a_row + 1
        progress.skipped_steps += not result.is_applied
        if guard and result.is_applied and not spikes:
            progress.recent_losses = remembered(progress.recent_losses, result.loss, config.train.spike_window)

        is_last = progress.step == config.train.steps
        watchers.display.step(progress.step, result.loss, meter.tokens_per_second, meter.mfu)
        if progress.step % config.train.log_every_steps == 0 or is_last or not result.is_applied:
            line = meter.line(progress, result, stall_seconds=saver.take_stall_seconds())
            record.log_metrics(line)
            watchers.monitors.write(line)
            record.update(**progress.as_dict())
            meter.reset()
        if not result.is_applied:
            report(engine, batch, "skipped", progress.step, result, watchers)
        if progress.skipped_in_a_row >= config.train.max_skipped_steps:
            give_up(progress, saver, config)
        if is_stopped:
            return saver.stopped(progress)
        if is_last or (saver.is_due(progress.step) and result.is_applied):
            progress.rewinds_in_a_row = 0
            saver.save(progress)


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all ranks know of a step before it begins."""

    row_hash: int
    targets: int
    pairs: int
    wants_profile: bool
    longest_wait: float
    """Seconds that the slowest rank waited for its data."""


def take_batch(batches: StepBatches, engine: Engine, *, wants_profile: bool) -> tuple[StepBatch, Shared]:
    """This rank's next step, and what all ranks together have in it (a collective).

    Raises:
        PipelineError: on all ranks, when one of them has none; else the others would wait for it in the step.
    """
    batch, problem = None, None
    try:
        batch = batches.take()
    except PipelineError as error:
        problem = str(error)
    counts = [0, 0, 0] if batch is None else [batch.row_hash, batch.num_targets, batch.pairs]
    waits = [0.0] * engine.world.size
    waits[engine.world.rank] = batches.waited_seconds
    values = [*counts, problem is not None, wants_profile, *waits]
    row_hash, targets, pairs, num_problems, profiles, *waits = distributed.sum_over_ranks(values)
    if num_problems:
        raise PipelineError(next(text for text in engine.gather(problem) if text is not None))
    assert batch is not None
    return batch, Shared(
        row_hash=int(row_hash) % HASH_SIZE, targets=int(targets), pairs=int(pairs), wants_profile=profiles > 0,
        longest_wait=max(waits),
    )  # fmt: skip


def go_back(
    engine: Engine,
    progress: Progress,
    batch: StepBatch,
    result: StepResult,
    saver: Saver,
    evaluation: Evaluation,
    config: Config,
    watchers: Watchers,
) -> bool:
    """After a loss spike, put the model back to its last checkpoint, to go on with the data that follows (a collective).

    Returns:
        False where there is no checkpoint yet; the run then goes on.

    Raises:
        LossSpikes: it has gone back to the same checkpoint too often.
    """
    step, skipped = progress.step, progress.skipped_steps
    rewinds, in_a_row, seconds = progress.rewinds + 1, progress.rewinds_in_a_row + 1, progress.seconds
    if in_a_row > config.train.max_skipped_steps:
        raise LossSpikes(
            f"the loss spiked {in_a_row} times since the checkpoint of step {saver.saved_step}, last at step {step} with "
            f"{result.loss:.3f}; start a new run (another run.dir) with a lower optim.lr, or with a larger train.spike_guard"
        )
    report(engine, batch, "spike", step, result, watchers)
    if not saver.rewind(progress):
        watchers.display.say(
            f"the loss spiked to {result.loss:.3f} at step {step}; there is no checkpoint to go back to"
        )
        return False
    progress.rewinds, progress.rewinds_in_a_row, progress.seconds = rewinds, in_a_row, seconds
    progress.skipped_steps = skipped
    # So that a start after a kill goes on behind the spike, too.
    saver.save(progress)
    watchers.display.say(
        f"the loss spiked to {result.loss:.3f} at step {step}: back to step {progress.step}, with other data"
    )
    watchers.record.cut_metrics(progress.step)
    evaluation.drop_after(progress.step)
    watchers.monitors.go_back(progress.step)
    watchers.record.update(**progress.as_dict())
    watchers.meter.reset()
    return True


def refuse_nothing_learned(progress: Progress) -> None:
    """A run that skipped every step has the weights it began with, and they are not to be exported as its result.

    Raises:
        NonFiniteGradients: it did.
    """
    if progress.skipped_steps >= progress.step:
        raise NonFiniteGradients(
            f"all {progress.step} steps were skipped because loss or gradients were not finite, so nothing was learned; "
            "look for weights in model.base that are not numbers, or lower optim.lr"
        )


def give_up(progress: Progress, saver: Saver, config: Config) -> None:
    """End the run after too many skipped steps in a row, with a checkpoint (a collective).

    Raises:
        NonFiniteGradients: always.
    """
    skipped = progress.skipped_in_a_row
    # A start from this checkpoint may try as often again. It pushes out no other: what led here may be in the weights.
    progress.skipped_in_a_row = 0
    saver.settle(progress, keep_all=True)
    raise NonFiniteGradients(
        f"loss or gradients were not finite for {skipped} steps in a row, up to step {progress.step}, and none of them has "
        f"changed the weights; their documents are in {config.run.dir / 'anomalies.jsonl'}, the state is in "
        f"{saver.root / str(progress.step)}. Look at the data, or go back: remove that checkpoint and start with a lower "
        "optim.lr in another run.dir"
    )


def report(engine: Engine, batch: StepBatch, kind: str, step: int, result: StepResult, watchers: Watchers) -> None:
    """Write what was not as it should be, with the step's documents on all ranks, to anomalies.jsonl (a collective)."""
    documents = [document for of_rank in engine.gather(batch.documents) for document in of_rank]
    watchers.record.log_anomaly(
        {"step": step, "kind": kind, "loss": result.loss, "grad_norm": result.grad_norm}, documents
    )
