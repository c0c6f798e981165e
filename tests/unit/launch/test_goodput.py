from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.plan.goodput import Failures


def simulated(failures: Failures, interval: float, *, starts: int) -> float:
    """The part of the time that counts, event by event, over so many failures."""
    draw = random.Random(0)
    counted = elapsed = 0.0
    for _ in range(starts):
        fails_at = draw.expovariate(1 / failures.between)
        now, taken, writing, complete_at = 0.0, 0.0, 0.0, math.inf
        committed = 0.0
        while True:
            # Steps, then the wait for the last checkpoint, then the copy of the next one.
            now, taken = now + interval, taken + interval
            if complete_at < math.inf:
                now = max(now, complete_at)
                if complete_at <= fails_at:
                    committed = writing
            now += failures.stall
            if now > fails_at:
                break
            writing, complete_at = taken, now + failures.write
        if complete_at <= fails_at:
            committed = writing
        counted += committed
        elapsed += fails_at + failures.restart
    return counted / elapsed


@pytest.mark.parametrize(
    ("stall", "write", "interval"),
    [
        (32.0, 0.0, 500.0), (0.1, 60.0, 60.0), (0.1, 60.0, 300.0), (5.0, 900.0, 1000.0), (500.0, 100.0, 2000.0),
        # The writer sets the pace.
        (5.0, 900.0, 300.0), (0.1, 100.0, 1.0),
    ],
)  # fmt: skip
def test_a_simulation_leaves_as_much(stall: float, write: float, interval: float) -> None:
    failures = Failures(between=3600.0, stall=stall, write=write, restart=300.0)
    assert failures.goodput(interval) == pytest.approx(simulated(failures, interval, starts=20_000), rel=0.03)


times = st.floats(0.01, 1e4)


@given(stall=times, write=st.floats(0, 1e4), restart=st.floats(0, 1e4), between=st.floats(10, 1e7))
def test_no_interval_is_better_than_the_best(stall: float, write: float, restart: float, between: float) -> None:
    failures = Failures(between=between, stall=stall, write=write, restart=restart)
    best = failures.best_interval()
    # All there are between a hundredth and a hundred times it.
    most = max(failures.goodput(best * 1.01**k) for k in range(-463, 464))
    assert failures.goodput(best) >= most * (1 - 1e-9)


@given(stall=st.floats(0.1, 100), write=st.floats(0, 100), interval=st.floats(100, 1000))
def test_what_fails_seldom_costs_half_an_interval_the_write_and_the_restart(
    stall: float, write: float, interval: float
) -> None:
    failures = Failures(between=1e7, stall=stall, write=write, restart=300)
    lost = (interval + stall) / 2 + write + 300
    assert failures.goodput(interval) == pytest.approx(interval / (interval + stall) / (1 + lost / 1e7), rel=1e-7)


def test_when_nothing_fails_only_waiting_is_lost() -> None:
    failures = Failures(between=1e15, stall=10.0, write=100.0, restart=300.0)
    assert failures.goodput(190) == pytest.approx(190 / 200)
    assert failures.goodput(90) == pytest.approx(90 / 110)


def test_short_stalls_are_youngs() -> None:
    failures = Failures(between=1e6, stall=2.0, write=10.0, restart=0.0)
    assert failures.best_interval() == pytest.approx(2000, rel=1e-3)


def test_a_checkpoint_is_never_due_before_the_last_one_is_complete() -> None:
    failures = Failures(between=1e6, stall=0.01, write=900.0, restart=300.0)
    assert failures.best_interval() == 900
    assert Failures(between=1e6, stall=0.0, write=9.0, restart=0.0).best_interval() == 9
