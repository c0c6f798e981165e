"""What is recorded of a run's jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.jobs import Event, events, note


def test_events_are_kept_in_order_and_the_last_is_in_run_json(tmp_path: Path) -> None:
    run = tmp_path / "run"
    note(run, Event(job="7", event="submitted", at="2026-01-01T00:00:00+00:00"))
    assert json.loads((run / "run.json").read_text()) == {
        "schema": 1, "status": "not started",
        "job": {"job": "7", "event": "submitted", "message": "", "code": None, "restart": 0, "is_preflight": False, "nodes": [], "step": 0,
                "at": "2026-01-01T00:00:00+00:00"},
    }  # fmt: skip
    (run / "run.json").write_text(
        json.dumps({"schema": 1, "status": "preempted", "step": 5, "job": {"event": "running"}})
    )
    note(run, Event(job="7", event="requeued", message="time", code=85, restart=1, nodes=("n1", "n2"), step=5))
    first, second = events(run)
    assert (first.event, first.at) == ("submitted", "2026-01-01T00:00:00+00:00")
    assert (second.event, second.code, second.nodes, second.step) == ("requeued", 85, ("n1", "n2"), 5)
    assert second.at.startswith("20"), "now, where it is not said"
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["step"], record["job"]["message"]) == ("preempted", 5, "time")


def test_a_damaged_run_json_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{half")
    note(tmp_path, Event(job="7", event="started"))
    assert (tmp_path / "run.json").read_text() == "{half"
    assert [event.event for event in events(tmp_path)] == ["started"]


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OSError, match="run"):
        note(tmp_path / "run", Event(job="7", event="started"))


@given(
    st.lists(
        st.one_of(
            st.text(max_size=20), st.sampled_from(['{"job": 1}', "[]", "3", '{"job": "7", "event": "ended", "x": 1}'])
        )
    )
)
def test_damaged_lines_are_left_out(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    run = tmp_path_factory.mktemp("run")
    assert events(run) == []
    (run / "slurm").mkdir()
    (run / "slurm" / "jobs.jsonl").write_text("\n".join(lines), encoding="utf-8", errors="replace")
    assert all(event.event == "ended" for event in events(run))


@pytest.mark.parametrize(
    "changes",
    [
        {"job": ["7"]},
        {"event": 3},
        {"message": None},
        {"at": 3},
        {"code": "1"},
        {"restart": None},
        {"step": "x"},
        {"nodes": [3]},
        {"nodes": 3},
    ],
)
def test_events_of_another_kind_are_left_out(tmp_path: Path, changes: dict[str, object]) -> None:
    (tmp_path / "slurm").mkdir()
    good = {"job": "7", "event": "ended"}
    lines = [json.dumps(good), json.dumps(good | changes), "[" * 100_000]
    (tmp_path / "slurm" / "jobs.jsonl").write_text("\n".join(lines))
    assert events(tmp_path) == [Event(job="7", event="ended")]
