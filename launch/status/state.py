"""From what a run's files and Slurm's queue say to one word about the run, and when it will be done. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from launch.plan.units import duration
from launch.status.found import Evaluations, Facts, seconds_since_1970

if TYPE_CHECKING:
    from launch.jobs import Event
    from launch.slurm import Queued

Name = Literal[
    "failed", "damaged", "lost", "running", "evaluating", "saving", "starting", "requeued", "queued", "stopped", "not started",
    "done",
]  # fmt: skip
ORDER: tuple[Name, ...] = (
    "failed", "damaged", "lost", "running", "evaluating", "saving", "starting", "requeued", "queued", "stopped", "not started",
    "done",
)  # fmt: skip
"""What needs somebody first, what is going on, what waits, what is over."""
GOING_ON: tuple[Name, ...] = ("running", "evaluating", "saving", "starting")

SILENCE = 600.0
"""Seconds without a sign of life, after which a run that says it is running is called lost, unless its lines are further
apart than a third of that."""
LONG_SILENCE = 1800.0
"""The same while a base is loaded or the model scored, where nothing may be written for long."""
EXIT_DONE, EXIT_STOPPED = 0, 85
ON_NODES = ("RUNNING", "CONFIGURING", "COMPLETING")
"""States of a job that waits no longer; what else is in the queue is pending, held or suspended."""
HOPELESS = "DependencyNeverSatisfied"


@dataclass(frozen=True, kw_only=True)
class State:
    """What is shown of a run. Times are in seconds; None is unknown.

    Attributes:
        id: folder of the run.
        state: one word.
        why: what to know about that, on one line; may be empty.
        step: it has come to.
        steps: of the whole run.
        tokens_per_second: of the last logged steps.
        eta_seconds: until it is done, of a run that is going on.
        checkpoint: step of the last one.
        checkpoint_age_seconds: since it was complete.
        job: Slurm's id of the job it is in, waits in or was in last.
        job_state: in the queue; None where it isn't there.
        restart: how often that job was requeued.
    """

    id: str
    state: Name
    why: str = ""
    step: int | None = None
    steps: int | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    checkpoint: int | None = None
    checkpoint_age_seconds: float | None = None
    job: str | None = None
    job_state: str | None = None
    restart: int = 0


def states(facts: Iterable[Facts], queue: Mapping[str, Queued] | None, now: float) -> list[State]:
    """The states of all runs, what needs attention first.

    Args:
        facts: of the runs.
        queue: this user's jobs; None where Slurm can't be asked.
        now: seconds since 1970.
    """
    found = [state_of(each, queue, now) for each in facts]
    return sorted(found, key=lambda state: (ORDER.index(state.state), state.id))


def state_of(facts: Facts, queue: Mapping[str, Queued] | None, now: float) -> State:
    """The state of a run."""
    queued = _queued(facts, queue or {})
    name, why = _judge(facts, queued, is_slurm_here=queue is not None, now=now)
    last = facts.events[-1] if facts.events else None
    job = queued.job if queued else last.job if last else None
    return State(
        id=facts.id,
        state=name,
        why=" ".join(why.split()),
        step=facts.step,
        steps=facts.steps,
        tokens_per_second=facts.speed.tokens_per_second if facts.speed else None,
        eta_seconds=eta(facts) if name in GOING_ON else None,
        checkpoint=facts.checkpoint,
        checkpoint_age_seconds=None if facts.checkpoint_at is None else max(0.0, now - facts.checkpoint_at),
        job=job,
        job_state=queued.state if queued else None,
        restart=max((event.restart for event in facts.events if event.job == job), default=0),
    )


def eta(facts: Facts) -> float | None:
    """Seconds until a run that goes on as it does is done; None where its speed isn't known.

    Steps that are left, each as long as those of the last logged lines of this start, saving included; and evaluations
    that are left, each as long as the mean of those so far. Waiting in the queue is not part of it.
    """
    if facts.speed is None or facts.step is None or facts.steps is None:
        return None
    evaluations = _evaluations_left(facts.evaluations, facts.step, facts.steps)
    steps = max(0, facts.steps - facts.step)
    return steps * facts.speed.seconds_per_step + evaluations * facts.evaluations.mean_seconds


def _evaluations_left(evaluations: Evaluations, step: int, steps: int) -> int:
    """How often the model will be scored; the evaluation of the step just reached may be going on."""
    if not evaluations.has_tasks:
        return 0
    every, between = evaluations.every_steps, 0
    if every:
        is_over = step % every == 0 and (step == 0 or step in evaluations.steps)
        between = max(0, (steps - 1) // every - (step - 1) // every - is_over)
    regular = range(0, steps, every) if every else ()
    between += sum(
        step <= point < steps and point not in regular and point not in evaluations.steps
        for point in evaluations.at_steps
    )
    return between + (steps not in evaluations.steps)


def _judge(facts: Facts, queued: Queued | None, *, is_slurm_here: bool, now: float) -> tuple[Name, str]:
    """The state, and why."""
    if facts.status == "done":
        return "done", _flaws(facts)
    if facts.problem is not None:
        return "damaged", facts.problem
    if queued is not None and queued.state not in ON_NODES:
        is_back = any(event.event == "requeued" and event.job == queued.job for event in facts.events)
        return ("requeued" if is_back else "queued"), f"waits: {queued.reason}" if queued.reason else "waits"
    said = _of_the_batch_script(facts)
    if queued is not None and said is not None and said.event == "requeued":
        return "requeued", said.message
    if facts.status == "running" and said is None:
        return _running(facts, queued, is_slurm_here=is_slurm_here, now=now)
    if queued is not None or _has_just_started(facts, now):
        return "starting", "its job runs, training has not begun yet"
    return _ended(facts, said, is_slurm_here=is_slurm_here, now=now)


def _running(facts: Facts, queued: Queued | None, *, is_slurm_here: bool, now: float) -> tuple[Name, str]:
    """Of a run that says it is running."""
    begun = [at for event in facts.events if event.event == "started" and (at := _at(event)) is not None]
    silence = now - max(facts.written_at, facts.started_at or 0.0, *begun)
    name = _doing(facts)
    limit = SILENCE if name == "running" else LONG_SILENCE
    if name == "evaluating":
        limit = max(limit, 3 * facts.evaluations.mean_seconds)
    if facts.speed is not None:
        limit = max(limit, 3 * facts.speed.seconds_per_line)
    if silence <= limit:
        return name, _flaws(facts) or ("loads, or scores the base" if name == "starting" else "")
    if queued is not None:
        return name, f"its job runs, but it wrote nothing for {duration(silence)}"
    if facts.events and not is_slurm_here:
        return name, f"wrote nothing for {duration(silence)}; squeue can't be asked here whether its job runs"
    return "lost", f"says it is running, but wrote nothing for {duration(silence)}"


def _doing(facts: Facts) -> Name:
    """What a run is at, as far as its files tell."""
    is_at_end = facts.step is not None and facts.step == facts.steps
    if not (facts.has_begun or is_at_end):
        return "starting"
    if facts.step is not None and _is_due(facts.evaluations, facts.step, facts.steps):
        return "evaluating"
    return "saving" if is_at_end else "running"


def _is_due(evaluations: Evaluations, step: int, steps: int | None) -> bool:
    """Whether the model has to be scored before it goes on from this step."""
    is_wanted = (
        step == steps
        or step in evaluations.at_steps
        or (evaluations.every_steps is not None and step % evaluations.every_steps == 0)
    )
    return evaluations.has_tasks and step > 0 and is_wanted and step not in evaluations.steps


def _ended(facts: Facts, said: Event | None, *, is_slurm_here: bool, now: float) -> tuple[Name, str]:
    """Of a run that doesn't go on, and that no job in the queue is of."""
    message = said.message if said else ""
    if said is not None and said.event == "requeued":
        if not is_slurm_here:
            return "requeued", f"{message}; squeue can't be asked here"
        return "stopped", f"{message}; but job {said.job} is not in the queue any more: submit it again"
    if facts.status == "failed":
        return "failed", message or facts.error or "no reason was written"
    if facts.status == "preempted":
        return "stopped", message or f"by {facts.stopped_by or 'request'}, everything saved"
    if facts.status == "running" and said is not None:
        is_stopped = said.code in (EXIT_DONE, EXIT_STOPPED)
        return ("stopped" if is_stopped else "failed"), message or f"its job ended with exit code {said.code}"
    if facts.status == "not started":
        return _not_started(facts, is_slurm_here=is_slurm_here, now=now)
    return "damaged", f'run.json has the unknown status "{facts.status}"'


def _not_started(facts: Facts, *, is_slurm_here: bool, now: float) -> tuple[Name, str]:
    if not facts.events:
        return "not started", ""
    last = facts.events[-1]
    if last.event == "ended" and last.code == EXIT_DONE:  # preflight alone was asked for
        return "not started", last.message
    if last.event == "ended":
        return "failed", f"before training began: {last.message or f'its job ended with exit code {last.code}'}"
    at = _at(last)
    when = f"{last.event} {duration(max(0.0, now - at))} ago" if at else last.event
    if not is_slurm_here:
        return "queued", f"{when}; squeue can't be asked here"
    return "not started", f"job {last.job}, {when}, is not in the queue any more"


def _queued(facts: Facts, queue: Mapping[str, Queued]) -> Queued | None:
    """The job in the queue that says most of the run: one that runs, one that waits its turn, one that waits for another."""
    last = {event.job: event.event for event in facts.events}
    found = [queue[job] for job, event in last.items() if event != "ended" and job in queue]
    hopeful = [job for job in found if job.reason != HOPELESS]
    return min(hopeful, key=lambda job: (job.state not in ON_NODES, job.reason == "Dependency"), default=None)


def _has_just_started(facts: Facts, now: float) -> bool:
    """Whether a job of it, which may be somebody else's, has begun lately, and training in it has not."""
    last = facts.events[-1] if facts.events else None
    at = _at(last) if last is not None and last.event == "started" else None
    return at is not None and at > (facts.started_at or 0.0) and now - at <= LONG_SILENCE


def _of_the_batch_script(facts: Facts) -> Event | None:
    """What the batch script said of the last start when it had ended; None where that goes on or wasn't in a job."""
    last = facts.events[-1] if facts.events else None
    if last is None or last.event not in ("ended", "requeued"):
        return None
    at = _at(last)
    is_older = at is not None and facts.started_at is not None and at < facts.started_at
    return None if is_older else last


def _flaws(facts: Facts) -> str:
    """What was not as it should be, of a run that goes on or is done."""
    counted = ((facts.skipped_steps, "step", "skipped"), (facts.rewinds, "loss spike", "undone"))
    found = [f"{n} {what}{'' if n == 1 else 's'} {done}" for n, what, done in counted if n]
    return "; ".join(([] if facts.is_finite else ["the last loss is not a number"]) + found)


def _at(event: Event) -> float | None:
    return seconds_since_1970(event.at)
