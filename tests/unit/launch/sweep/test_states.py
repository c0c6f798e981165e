from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from launch.jobs import Event, note
from launch.slurm import Queued
from launch.sweep.cells import Cell, Sweep
from launch.sweep.states import CellState, state_of, states_of, table
from tests.unit.launch.sweep.conftest import FakeSlurm
from tests.unit.launch.sweep.sweeps import sweep_of


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path)


pytestmark = pytest.mark.usefixtures("no_slurm")


def record(cell: Cell, **content: Any) -> None:
    cell.run_dir.mkdir(parents=True, exist_ok=True)
    (cell.run_dir / "run.json").write_text(json.dumps({"schema": 1, "step": 3, "steps": 20, **content}))


def queued(job: str, state: str, reason: str = "") -> dict[str, Queued]:
    return {job: Queued(job=job, state=state, reason=reason, ends=None, nodes="")}


@pytest.mark.parametrize(
    ("content", "state", "why"),
    [
        ({"status": "done"}, "done", ""),
        ({"status": "running"}, "running", ""),
        ({"status": "preempted", "stopped_by": "SIGTERM"}, "stopped", "by SIGTERM"),
        ({"status": "preempted"}, "stopped", "by request"),
        ({"status": "failed", "error": "Error: no"}, "failed", "Error: no"),
        ({"status": "failed"}, "failed", ""),
        ({"status": "not started"}, "not started", ""),
    ],
)
def test_what_run_json_says(sweep: Sweep, content: dict[str, Any], state: str, why: str) -> None:
    record(sweep.cells[0], **content)
    assert state_of(sweep.cells[0], {}) == CellState(state=state, why=why, step=3, steps=20)  # type: ignore[arg-type]


def test_no_run_directory(sweep: Sweep) -> None:
    assert state_of(sweep.cells[0], {}) == CellState(state="not started")


def test_a_damaged_record(sweep: Sweep) -> None:
    record(sweep.cells[0])
    (sweep.cells[0].run_dir / "run.json").write_text("{")
    assert state_of(sweep.cells[0], {}) == CellState(state="lost", why="its run.json can't be read")


class TestJobs:
    def test_one_that_waits(self, sweep: Sweep) -> None:
        cell = sweep.cells[0]
        note(cell.run_dir, Event(job="7_0", event="submitted"))
        found = state_of(cell, queued("7_0", "PENDING", "Priority"))
        assert found == CellState(state="queued", why="job 7_0, Priority", job="7_0")
        assert found.is_taken

    def test_one_that_runs_whatever_run_json_says(self, sweep: Sweep) -> None:
        cell = sweep.cells[0]
        record(cell, status="preempted", stopped_by="wall time")
        note(cell.run_dir, Event(job="7_0", event="requeued"))
        found = state_of(cell, queued("7_0", "RUNNING"))
        assert (found.state, found.why) == ("running", "job 7_0")

    def test_a_done_run_is_done(self, sweep: Sweep) -> None:
        record(sweep.cells[0], status="done")
        note(sweep.cells[0].run_dir, Event(job="7_0", event="started"))
        assert state_of(sweep.cells[0], queued("7_0", "COMPLETING")).state == "done"

    def test_one_that_ended_before_training(self, sweep: Sweep) -> None:
        note(sweep.cells[0].run_dir, Event(job="7_0", event="ended", code=1, message="preflight failed on n1"))
        assert state_of(sweep.cells[0], {}) == CellState(state="failed", why="preflight failed on n1")

    def test_one_that_is_gone(self, sweep: Sweep, fake_slurm: FakeSlurm) -> None:
        record(sweep.cells[0], status="running")
        note(sweep.cells[0].run_dir, Event(job="7_0", event="started"))
        found = state_of(sweep.cells[0], queued("8", "RUNNING"))
        assert (found.state, found.why, found.is_taken) == ("lost", "job 7_0 is not in the queue", False)


class TestAnUnknownQueue:
    @pytest.mark.parametrize(
        ("content", "state", "why"),
        [
            ({"status": "done"}, "done", ""),
            ({"status": "running"}, "running", "{}"),
            ({"status": "preempted", "stopped_by": "wall time"}, "stopped", "by wall time; {}"),
            ({"status": "not started"}, "not started", "{}"),
        ],
    )
    def test_nothing_is_said_to_be_lost(self, sweep: Sweep, content: dict[str, Any], state: str, why: str) -> None:
        note(sweep.cells[0].run_dir, Event(job="7_0", event="requeued"))
        record(sweep.cells[0], **content)
        path = sweep.cells[0].run_dir / "run.json"
        os.utime(path, (0, 0))
        found = state_of(sweep.cells[0], None)
        assert (found.state, found.why) == (state, why.format("whether job 7_0 is in the queue is not known"))

    def test_a_job_that_has_ended(self, sweep: Sweep) -> None:
        note(sweep.cells[0].run_dir, Event(job="7_0", event="ended", code=1, message="preflight failed on n1"))
        assert state_of(sweep.cells[0], None) == CellState(state="failed", why="preflight failed on n1")


@pytest.mark.parametrize("error", ["NonFiniteGradients: 10 steps in a row", "rank 0: LossSpikes: 10 spikes"])
def test_a_run_that_diverged_is_not_to_be_started(sweep: Sweep, error: str) -> None:
    record(sweep.cells[0], status="failed", error=error)
    record(sweep.cells[1], status="failed", error="OSError: no NonFiniteGradientsHere")
    record(sweep.cells[2], status="preempted", error=error)
    found = [state_of(cell, {}) for cell in sweep.cells[:3]]
    assert [(each.has_diverged, each.is_taken) for each in found] == [(True, True), (False, False), (False, False)]


def test_a_run_without_a_sign_of_life(sweep: Sweep) -> None:
    record(sweep.cells[0], status="running")
    old = time.time() - 3600
    os.utime(sweep.cells[0].run_dir / "run.json", (old, old))
    found = state_of(sweep.cells[0], {})
    assert (found.state, found.why) == ("lost", "run.json says running, and is 60 minutes old")


def test_the_table(sweep: Sweep) -> None:
    record(sweep.cells[0], status="done", step=20)
    record(sweep.cells[2], status="failed", error="Error:\n" + "no " * 100)
    note(sweep.cells[4].run_dir, Event(job="7_4", event="submitted"))
    states = states_of(sweep, queued("7_4", "PENDING", "Resources"))
    assert table(sweep, states) == (
        "cell  name          state         step\n"
        "   0  lr1e-5-seed1  done         20/20\n"
        "   1  lr1e-5-seed2  not started      -\n"
        f"   2  lr1e-5-seed3  failed        3/20  Error: {('no ' * 100)[:102].rstrip()}…\n"
        "   3  lr2e-5-seed1  not started      -\n"
        "   4  lr2e-5-seed2  queued           -  job 7_4, Resources\n"
        "   5  lr2e-5-seed3  not started      -\n"
        "\n"
        "sweep: 6 cells: 1 done, 1 queued, 1 failed, 3 not started"
    )
