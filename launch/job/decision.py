"""After training has ended within a job: is the job requeued, and what are people told? Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evals.results import DIVERGED
from launch.jobs import Event

DONE, WRONG_CONFIGURATION, PREEMPTED = 0, 2, 85
KILLED = (130, 138, 143)
"""Exit codes of ranks that a signal has ended before they could heed it."""
WALL_TIME = "wall time"
"""run.json's `stopped_by` of a run that has looked at the clock itself."""
TIMES_WITHOUT_PROGRESS = 2
"""Starts of a job in a row that may end at the step at which they began."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How training, or the preflight before it, ended within a job."""

    code: int
    """Of srun, the highest of all ranks."""
    is_time_up: bool = False
    """Whether Slurm has sent the signal that comes before the wall time."""
    is_cancelled: bool = False
    """Whether the batch script got SIGTERM: scancel, or a preemption after which Slurm itself requeues."""
    is_preempted: bool = False
    """Whether Slurm took the nodes away: with a grace time only the ranks are told, and a job that ends within it doesn't come back
    by itself."""
    failing_nodes: Sequence[str] = ()
    """What preflight has named, where it was preflight that failed."""
    is_preflight: bool = False


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How often a job may come back."""

    max_requeues: int
    retries: int
    """After failures of training that come no further than the failure before."""
    excludes_failing: bool


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of the job."""

    requeue: bool
    message: str
    exclude: tuple[str, ...] = ()
    """Nodes on which the job must not start again."""


def decide(
    ended: Ended, limits: Limits, *, restart: int, step: int, stopped_by: str | None, error: str | None,
    history: Sequence[Event], nodes: Sequence[str],
) -> Verdict:  # fmt: skip
    """Decide.

    Args:
        ended: how it ended.
        limits: how often it may come back.
        restart: how often it has come back already.
        step: the run's last saved or recorded step.
        stopped_by: run.json's reason of a run that was stopped, None where there is none.
        error: run.json's, of a run that failed.
        history: this job's events so far, its own start included.
        nodes: of the job.
    """
    is_late = ended.is_preflight and (ended.is_time_up or ended.is_cancelled)
    if ended.code == DONE and not is_late:
        return Verdict(requeue=False, message="preflight only: nothing was trained" if ended.is_preflight else "done")
    if ended.code == WRONG_CONFIGURATION:
        return Verdict(requeue=False, message="the configuration is wrong (exit code 2); its problems are above")
    if ended.is_cancelled:
        why = "stopped by SIGTERM (scancel, or a preemption, after which Slurm requeues by itself)"
        if ended.is_preflight:
            return Verdict(requeue=False, message=f"{why}, before training had begun")
        saved = "everything saved; submit it again to go on" if ended.code == PREEMPTED else f"exit code {ended.code}"
        return Verdict(requeue=False, message=f"{why}, {saved}")
    if ended.is_preflight:
        return _after_preflight(ended, limits, restart, nodes)
    if ended.is_time_up and ended.code in KILLED:
        return _bounded(limits.max_requeues, restart, "the wall time came before training had begun")
    if ended.code == PREEMPTED and ended.is_preempted:
        return _bounded(limits.max_requeues, restart, f"preempted at step {step}, everything saved")
    if ended.code == PREEMPTED:
        if not ended.is_time_up and stopped_by != WALL_TIME:
            return Verdict(requeue=False, message=f"stopped by {stopped_by or 'request'} at step {step}, everything saved; submit it again to go on")  # fmt: skip
        why = f"stopped at step {step} before the wall time, everything saved"
        starts = _starts_of_training(history)
        stuck = starts[-TIMES_WITHOUT_PROGRESS:]
        if len(stuck) == TIMES_WITHOUT_PROGRESS and all(start.step == step for start in stuck):
            return Verdict(requeue=False, message=f"{why}, but {TIMES_WITHOUT_PROGRESS} starts in a row have not come beyond this step: not requeued; ask for more time (--time)")  # fmt: skip
        return _bounded(limits.max_requeues, restart, why)
    why = f"failed with exit code {ended.code}" + (f": {error}" if error else "")
    if error and DIVERGED.search(error):
        return Verdict(requeue=False, message=f"{why}; not tried again, as the training itself diverges")
    # What happens again at the same step is no accident of a machine.
    failures = sum(_is_failure(event) and event.step >= step for event in history)
    if failures >= limits.retries:
        tried = f" (and {failures} times before)" if failures else ""
        return Verdict(requeue=False, message=f"{why}{tried}; the last checkpoint is kept")
    return _bounded(limits.max_requeues, restart, f"{why}; retry {failures + 1} of {limits.retries}")


def _is_failure(event: Event) -> bool:
    return event.event == "requeued" and event.code not in (PREEMPTED, None) and not event.is_preflight


def _starts_of_training(history: Sequence[Event]) -> list[Event]:
    """Starts after which preflight has let the ranks train."""
    following = [*history[1:], None]  # One too many where no event could be read.
    return [
        event for event, after in zip(history, following, strict=False)
        if event.event == "started" and not (after is not None and after.is_preflight)
    ]  # fmt: skip


def _after_preflight(ended: Ended, limits: Limits, restart: int, nodes: Sequence[str]) -> Verdict:
    """A job comes back without the nodes that failed, as long as others are left to it."""
    failing = tuple(sorted(set(ended.failing_nodes)))
    why = f"preflight failed on {', '.join(failing)}" if failing else "preflight failed"
    if ended.is_time_up:
        return _bounded(limits.max_requeues, restart, "the wall time came before training had begun")
    if ended.code in KILLED:
        return Verdict(requeue=False, message="stopped by a signal before training had begun")
    if not failing or not limits.excludes_failing:
        return Verdict(requeue=False, message=f"{why}; nothing was started")
    if set(failing) >= set(nodes):
        return Verdict(requeue=False, message=f"{why}, which are all nodes of the job; nothing was started")
    verdict = _bounded(limits.max_requeues, restart, f"{why}; excluded")
    return Verdict(requeue=verdict.requeue, message=verdict.message, exclude=failing if verdict.requeue else ())


def _bounded(most: int, restart: int, why: str) -> Verdict:
    if restart >= most:
        return Verdict(requeue=False, message=f"{why}; not requeued: the limit of {most} requeues is reached (MAX_REQUEUES); submit it again to go on")  # fmt: skip
    return Verdict(requeue=True, message=f"{why}; requeued ({restart + 1} of at most {most})")
