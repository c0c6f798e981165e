"""One word for a run: every state, from what files and queue say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.slurm import Queued
from launch.status.found import find
from launch.status.state import LONG_SILENCE, SILENCE, State, states
from tests.unit.launch.status.run_folders import LENGTH, NOW, ROWS, add_event, line, make_run

TASKS = {"eval": {"tasks": {"code": {}}, "every_steps": 20}}


def state_of(root: Path, queue: dict[str, Queued] | None = None) -> State:
    (found,) = states(find([root]).runs, queue, NOW)
    return found


def queued(state: str, reason: str = "", job: str = "12") -> dict[str, Queued]:
    return {job: Queued(job=job, state=state, reason=reason, ends=None, nodes="")}


def check(root: Path, state: str, why: str, queue: dict[str, Queued] | None = None) -> None:
    found = state_of(root, queue)
    assert (found.state, found.why) == (state, why)


def test_a_run_that_is_done(tmp_path: Path) -> None:
    make_run(tmp_path, "done", step=100, skipped_steps=1, rewinds=2)
    found = state_of(tmp_path)
    assert (found.state, found.why, found.eta_seconds) == ("done", "1 step skipped; 2 loss spikes undone", None)


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path, lines=[line(s) for s in range(1, 41)], last_checkpoint=30, checkpoint_at=NOW - 90)
    add_event(run, "started", at=NOW - 1100, restart=2)
    found = state_of(tmp_path, queued("RUNNING"))
    assert (found.state, found.why, found.step, found.steps) == ("running", "", 40, 100)
    assert found.tokens_per_second == pytest.approx(ROWS * LENGTH / 2)
    assert found.eta_seconds == pytest.approx(60 * 2.0)
    assert (found.checkpoint, found.checkpoint_age_seconds) == (30, 90.0)
    assert (found.job, found.job_state, found.restart) == ("12", "RUNNING", 2)


def test_what_is_left_has_evaluations_too(tmp_path: Path) -> None:
    def eta(name: str, at: int, evals: tuple[int, ...], **settings: Any) -> float | None:
        config = {"eval": TASKS["eval"] | settings}
        lines = [line(s) for s in range(max(1, at - 5), at + 1)]
        make_run(tmp_path / name, lines=lines, evals=evals, eval_seconds=7.0 * len(evals), config=config)
        return state_of(tmp_path / name).eta_seconds

    # 60 steps of 2 s, then of 20, 40, 60, 80 and 100 those that are left.
    assert eta("between", 41, (0, 20, 40)) == pytest.approx(59 * 2 + 3 * 7)
    assert eta("just scored", 40, (0, 20, 40)) == pytest.approx(60 * 2 + 3 * 7)
    assert eta("being scored", 40, (0, 20)) == pytest.approx(60 * 2 + 4 * 7)
    assert eta("first", 1, (0,)) == pytest.approx(99 * 2 + 5 * 7)
    assert eta("at the end only", 50, (0,), every_steps=0) == pytest.approx(50 * 2 + 7)
    assert eta("never", 50, (), tasks={}, every_steps=0) == pytest.approx(50 * 2)
    assert eta("another distance", 50, (0, 30), every_steps=30) == pytest.approx(50 * 2 + 3 * 7)
    # 10, 50 and 80 of the points; the last is one of every 20 too.
    points = {"at_steps": [10, 50, 80]}
    assert eta("points only", 41, (0, 10), every_steps=0, **points) == pytest.approx(59 * 2 + 3 * 7)
    assert eta("points too", 41, (0, 10, 20, 40), **points) == pytest.approx(59 * 2 + 4 * 7)
    assert eta("at a point", 50, (0, 10, 20, 40, 50), **points) == pytest.approx(50 * 2 + 3 * 7)


def test_what_it_is_at(tmp_path: Path) -> None:
    make_run(tmp_path / "a", lines=[line(s) for s in range(30, 41)], evals=(0, 20), config=TASKS)
    check(tmp_path / "a", "evaluating", "")
    make_run(tmp_path / "b", lines=[line(s) for s in range(90, 101)], evals=(0, 20, 100), config=TASKS)
    check(tmp_path / "b", "saving", "")
    make_run(tmp_path / "c")
    check(tmp_path / "c", "starting", "loads, or scores the base")
    make_run(tmp_path / "d", lines=[line(4, loss=None)])
    check(tmp_path / "d", "running", "the last loss is not a number")


def test_a_run_is_lost_when_it_says_nothing_for_long(tmp_path: Path) -> None:
    make_run(tmp_path / "a", lines=[line(4)], started_at=NOW - 90_000, written_at=NOW - SILENCE - 20)
    check(tmp_path / "a", "lost", "says it is running, but wrote nothing for 10 min")
    make_run(tmp_path / "b", lines=[line(4)], started_at=NOW - 90_000, written_at=NOW - SILENCE + 1)
    check(tmp_path / "b", "running", "")
    # Three of its lines are longer than ten minutes.
    slow = [line(20, steps=20, step_seconds=900.0)]
    make_run(tmp_path / "c", lines=slow, started_at=NOW - 90_000, written_at=NOW - 2600)
    check(tmp_path / "c", "running", "")
    make_run(tmp_path / "d", lines=slow, started_at=NOW - 90_000, written_at=NOW - 2800)
    assert state_of(tmp_path / "d").state == "lost"
    # Loading and scoring may take longer.
    make_run(tmp_path / "e", started_at=NOW - 90_000, written_at=NOW - LONG_SILENCE + 1)
    assert state_of(tmp_path / "e").state == "starting"
    make_run(tmp_path / "f", started_at=NOW - 90_000, written_at=NOW - LONG_SILENCE - 1)
    assert state_of(tmp_path / "f").state == "lost"
    make_run(tmp_path / "g", lines=[line(40)], started_at=NOW - 90_000, written_at=NOW - 5000, evals=(0, 20), eval_seconds=4000.0, config=TASKS)  # fmt: skip
    assert state_of(tmp_path / "g").state == "evaluating"


def test_a_run_with_a_job_is_not_lost(tmp_path: Path) -> None:
    add_event(
        make_run(tmp_path, lines=[line(4)], started_at=NOW - 90_000, written_at=NOW - 3700), "started", at=NOW - 90_100
    )
    check(tmp_path, "running", "its job runs, but it wrote nothing for 1.0 h", queued("RUNNING"))
    check(tmp_path, "lost", "says it is running, but wrote nothing for 1.0 h", queued("RUNNING", job="99"))
    check(tmp_path, "running", "wrote nothing for 1.0 h; squeue can't be asked here whether its job runs")


def test_runs_that_wait(tmp_path: Path) -> None:
    add_event(tmp_path, "submitted")
    check(tmp_path, "queued", "waits: Priority", queued("PENDING", "Priority"))
    check(tmp_path, "queued", "waits", queued("PENDING"))
    check(tmp_path, "starting", "its job runs, training has not begun yet", queued("RUNNING"))
    check(tmp_path, "not started", "job 12, submitted 15 min ago, is not in the queue any more", {})
    check(tmp_path, "queued", "submitted 15 min ago; squeue can't be asked here", None)


def test_a_run_that_comes_back(tmp_path: Path) -> None:
    make_run(tmp_path, "preempted", stopped_by="wall time", step=40)
    add_event(tmp_path, "started", at=NOW - 1100)
    add_event(tmp_path, "requeued", at=NOW - 60, code=85, message="stopped at step 40; requeued (1 of at most 50)")
    check(tmp_path, "requeued", "waits: BeginTime", queued("PENDING", "BeginTime"))
    check(tmp_path, "requeued", "stopped at step 40; requeued (1 of at most 50)", queued("COMPLETING"))
    check(tmp_path, "requeued", "stopped at step 40; requeued (1 of at most 50); squeue can't be asked here")
    why = "stopped at step 40; requeued (1 of at most 50); but job 12 is not in the queue any more: submit it again"
    check(tmp_path, "stopped", why, {})
    add_event(tmp_path, "started", at=NOW - 20, restart=1)
    check(tmp_path, "starting", "its job runs, training has not begun yet", queued("RUNNING"))
    check(tmp_path, "starting", "its job runs, training has not begun yet", None)


def test_runs_that_stopped(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "preempted", stopped_by="SIGTERM")
    check(tmp_path / "a", "stopped", "by SIGTERM, everything saved")
    make_run(tmp_path / "b", "preempted")
    check(tmp_path / "b", "stopped", "by request, everything saved")
    make_run(tmp_path / "c", "preempted", stopped_by="wall time")
    add_event(tmp_path / "c", "ended", code=85, message="the limit of 50 requeues is reached")
    check(tmp_path / "c", "stopped", "the limit of 50 requeues is reached")
    make_run(tmp_path / "d")
    add_event(tmp_path / "d", "ended", code=85)
    check(tmp_path / "d", "stopped", "its job ended with exit code 85")


def test_runs_that_failed(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "failed", error="rank 1: ValueError:\n  boom")
    check(tmp_path / "a", "failed", "rank 1: ValueError: boom")
    make_run(tmp_path / "b", "failed")
    check(tmp_path / "b", "failed", "no reason was written")
    # Killed without a word, and the batch script knows.
    make_run(tmp_path / "c", lines=[line(3)])
    add_event(tmp_path / "c", "ended", code=137, message="failed with exit code 137")
    check(tmp_path / "c", "failed", "failed with exit code 137")
    add_event(tmp_path / "e", "ended", code=1, message="preflight failed on n2; nothing was started")
    check(tmp_path / "e", "failed", "before training began: preflight failed on n2; nothing was started")
    add_event(tmp_path / "only", "ended", code=0, message="preflight only: nothing was trained")
    check(tmp_path / "only", "not started", "preflight only: nothing was trained")
    add_event(tmp_path / "f", "ended", code=2)
    check(tmp_path / "f", "failed", "before training began: its job ended with exit code 2")


def test_what_a_job_said_before_a_later_start_is_over(tmp_path: Path) -> None:
    make_run(tmp_path, lines=[line(3)], started_at=NOW - 100)
    add_event(tmp_path, "ended", at=NOW - 900, code=1, message="failed with exit code 1")
    check(tmp_path, "running", "")


def test_the_job_that_says_most(tmp_path: Path) -> None:
    """Of a training job and the evaluation that waits for it."""
    add_event(tmp_path, "submitted", job="12")
    add_event(tmp_path, "submitted", job="13")
    waiting = queued("PENDING", "Priority") | queued("PENDING", "Dependency", job="13")
    assert (state_of(tmp_path, waiting).job, state_of(tmp_path, waiting).why) == ("12", "waits: Priority")
    make_run(tmp_path, "failed", error="boom", started_at=NOW - 800)
    add_event(tmp_path, "ended", job="12", at=NOW - 60, code=1, message="failed: boom")
    hopeless = queued("COMPLETING") | queued("PENDING", "DependencyNeverSatisfied", job="13")
    check(tmp_path, "failed", "failed: boom", hopeless)


def test_damaged_and_unknown(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "sleeping")
    check(tmp_path / "a", "damaged", 'run.json has the unknown status "sleeping"')
    (make_run(tmp_path / "b") / "run.json").write_text("[]")
    check(tmp_path / "b", "damaged", "run.json is no record of a run")


def test_what_needs_somebody_comes_first(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "done")
    make_run(tmp_path / "b", lines=[line(2)])
    make_run(tmp_path / "c", "preempted")
    make_run(tmp_path / "d", "failed")
    make_run(tmp_path / "e", "failed")
    add_event(tmp_path / "f", "submitted")
    make_run(tmp_path / "g", lines=[line(2)], written_at=NOW - 9000, started_at=NOW - 9100)
    found: list[Any] = [
        (state.state, state.id) for state in states(find([tmp_path]).runs, queued("PENDING", "Resources"), NOW)
    ]
    assert found == [
        ("failed", "d"), ("failed", "e"), ("lost", "g"), ("running", "b"), ("queued", "f"), ("stopped", "c"), ("done", "a"),
    ]  # fmt: skip
