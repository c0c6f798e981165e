"""When a job comes back, and what people are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.job.decision import Ended, Limits, Verdict, decide
from launch.jobs import Event

NODES = ("n1", "n2")


def started(step: int) -> Event:
    return Event(job="7", event="started", step=step)


def verdict(
    code: int, *, restart: int = 0, step: int = 120, stopped_by: str | None = None, error: str | None = None,
    history: Sequence[Event] = (), most: int = 50, retries: int = 0, excludes: bool = True, **how: Any,
) -> Verdict:  # fmt: skip
    return decide(
        Ended(code=code, **how), Limits(max_requeues=most, retries=retries, excludes_failing=excludes),
        restart=restart, step=step, stopped_by=stopped_by, error=error, history=history or [started(0)], nodes=NODES,
    )  # fmt: skip


def test_the_time_is_up() -> None:
    found = verdict(85, is_time_up=True, stopped_by="SIGUSR1", restart=2)
    assert found.requeue
    assert found.message == "stopped at step 120 before the wall time, everything saved; requeued (3 of at most 50)"
    assert verdict(85, stopped_by="wall time").requeue, "the run looks at the clock itself, too"


def test_the_limit() -> None:
    found = verdict(85, is_time_up=True, restart=50)
    assert not found.requeue
    assert "not requeued: the limit of 50 requeues is reached (MAX_REQUEUES); submit it again" in found.message


def test_taken_away() -> None:
    """With a grace time Slurm tells the ranks only, and leaves a job that has ended within it ended."""
    found = verdict(85, stopped_by="SIGTERM", is_preempted=True)
    assert found == Verdict(requeue=True, message="preempted at step 120, everything saved; requeued (1 of at most 50)")
    assert not verdict(85, is_preempted=True, is_cancelled=True).requeue, "Slurm does it"
    assert not verdict(85, is_preempted=True, restart=50).requeue


def test_the_time_is_up_before_python_has_started() -> None:
    found = verdict(138, is_time_up=True)
    assert found.message == "the wall time came before training had begun; requeued (1 of at most 50)"


def test_preflight_is_no_failure_of_training() -> None:
    excluded = Event(job="7", event="requeued", code=1, step=120, is_preflight=True)
    assert verdict(1, retries=1, history=[started(120), excluded, started(120), excluded]).requeue
    assert verdict(85, is_time_up=True, history=[started(120), excluded, started(120)]).requeue
    assert not verdict(85, is_time_up=True, history=[started(120), excluded, started(120), started(120)]).requeue


def test_no_progress() -> None:
    once = [started(120)]
    assert verdict(85, is_time_up=True, history=once).requeue
    found = verdict(85, is_time_up=True, history=[started(0), *once, *once])
    assert not found.requeue
    assert "2 starts in a row have not come beyond this step: not requeued; ask for more time (--time)" in found.message
    assert verdict(85, is_time_up=True, history=[*once, started(119), *once]).requeue


@pytest.mark.parametrize(
    ("code", "how", "message"),
    [
        (0, {}, "done"),
        (2, {}, "the configuration is wrong (exit code 2); its problems are above"),
        (85, {"stopped_by": "PREEMPT file"}, "stopped by PREEMPT file at step 120, everything saved; submit it again to go on"),
        (85, {}, "stopped by request at step 120, everything saved; submit it again to go on"),
        (85, {"is_cancelled": True, "is_time_up": True}, "stopped by SIGTERM (scancel, or a preemption, after which Slurm requeues by itself), everything saved; submit it again to go on"),
        (137, {"is_cancelled": True}, "stopped by SIGTERM (scancel, or a preemption, after which Slurm requeues by itself), exit code 137"),
        (1, {"error": "rank 3: no memory"}, "failed with exit code 1: rank 3: no memory; the last checkpoint is kept"),
    ],
)  # fmt: skip
def test_what_does_not_come_back(code: int, how: dict[str, Any], message: str) -> None:
    assert verdict(code, **how) == Verdict(requeue=False, message=message)


def test_retries_after_failures() -> None:
    first = verdict(1, retries=2)
    assert first == Verdict(requeue=True, message="failed with exit code 1; retry 1 of 2; requeued (1 of at most 50)")
    failed = Event(job="7", event="requeued", code=1, step=120)
    saved = Event(job="7", event="requeued", code=85, step=120)
    assert verdict(1, retries=2, history=[started(0), failed, saved, saved]).requeue
    last = verdict(1, retries=2, history=[failed, failed])
    assert last == Verdict(
        requeue=False, message="failed with exit code 1 (and 2 times before); the last checkpoint is kept"
    )
    assert verdict(137, retries=2, step=121, history=[failed, failed]).message.startswith(
        "failed with exit code 137; retry 1 of 2"
    ), "beyond the step of the failures before"


@pytest.mark.parametrize("kind", ["NonFiniteGradients", "LossSpikes"])
def test_what_diverges_is_not_tried_again(kind: str) -> None:
    found = verdict(1, retries=2, error=f"{kind}: 3 steps in a row")
    assert found == Verdict(
        requeue=False,
        message=f"failed with exit code 1: {kind}: 3 steps in a row; not tried again, as the training itself diverges",
    )


def test_preflight() -> None:
    found = verdict(1, is_preflight=True, failing_nodes=["n2", "n2"])
    assert found == Verdict(
        requeue=True, message="preflight failed on n2; excluded; requeued (1 of at most 50)", exclude=("n2",)
    )
    assert verdict(1, is_preflight=True, failing_nodes=["n2"], excludes=False) == Verdict(
        requeue=False, message="preflight failed on n2; nothing was started"
    )
    assert verdict(1, is_preflight=True) == Verdict(requeue=False, message="preflight failed; nothing was started")
    assert verdict(1, is_preflight=True, failing_nodes=NODES) == Verdict(
        requeue=False, message="preflight failed on n1, n2, which are all nodes of the job; nothing was started"
    )
    at_the_limit = verdict(1, is_preflight=True, failing_nodes=["n2"], restart=50)
    assert (at_the_limit.requeue, at_the_limit.exclude) == (False, ())
    late = verdict(138, is_preflight=True, is_time_up=True)
    assert late.requeue
    assert late.message.startswith("the wall time came before training had begun; requeued (1")
    assert verdict(0, is_preflight=True) == Verdict(requeue=False, message="preflight only: nothing was trained")
    assert verdict(143, is_preflight=True).message == "stopped by a signal before training had begun"
    assert verdict(0, is_preflight=True, is_time_up=True) == late, "healthy nodes, and no time to train"
    assert verdict(0, is_preflight=True, is_cancelled=True).message.endswith("by itself), before training had begun")


@given(
    code=st.sampled_from([0, 1, 2, 85, 137, 143]), restart=st.integers(0, 9), most=st.integers(0, 9), retries=st.integers(0, 3),
    step=st.integers(0, 3), starts=st.lists(st.integers(0, 3), min_size=1, max_size=4), how=st.fixed_dictionaries(
        {"is_time_up": st.booleans(), "is_cancelled": st.booleans(), "is_preflight": st.booleans()}
    ),
)  # fmt: skip
def test_it_is_bounded(
    code: int, restart: int, most: int, retries: int, step: int, starts: list[int], how: dict[str, bool]
) -> None:
    found = verdict(
        code, restart=restart, most=most, retries=retries, step=step, history=[*map(started, starts)], **how
    )
    assert found.message
    if found.requeue:
        assert restart < most
        assert code != 2
        assert code != 0 or how["is_preflight"]
        assert not how["is_cancelled"]
