"""What is read of a run's files: the end of its metrics, its checkpoints, its jobs; and what is damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.status.found import TAIL, Facts, find
from launch.status.state import states
from tests.unit.launch.status.run_folders import LENGTH, NOW, ROWS, add_event, line, make_run, make_sweep


def facts_of(run: Path) -> Facts:
    (found,) = find([run]).runs
    return found


def test_facts_of_a_run(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "study" / "a", lines=[line(s) for s in range(1, 41)], last_checkpoint=30, checkpoint_at=NOW - 90, step=38,
        steps=100, skipped_steps=2, rewinds=1, evals=(0, 20), eval_seconds=60.0,
        config={"eval": {"tasks": {"code": {}}, "every_steps": 20}},
    )  # fmt: skip
    (found,) = find([tmp_path]).runs
    assert (found.id, found.path, found.status, found.problem) == ("study/a", run, "running", None)
    assert (found.step, found.steps, found.checkpoint, found.checkpoint_at) == (40, 100, 30, NOW - 90)
    assert (found.skipped_steps, found.rewinds, found.is_finite, found.has_begun) == (2, 1, True, True)
    assert found.started_at == NOW - 1000
    assert found.evaluations.steps == (0, 20)
    assert (found.evaluations.every_steps, found.evaluations.has_tasks, found.evaluations.mean_seconds) == (
        20,
        True,
        30.0,
    )


def test_speed_is_that_of_the_last_lines_with_the_time_of_saving(tmp_path: Path) -> None:
    lines = [line(10 * i, step_seconds=20.0, steps=10) for i in range(1, 5)]
    lines[2]["stall_seconds"] = 8.0
    speed = facts_of(make_run(tmp_path / "a", lines=lines)).speed
    assert speed is not None
    assert speed.tokens_per_second == pytest.approx(ROWS * LENGTH / 2)
    assert speed.seconds_per_step == pytest.approx((80 + 8) / 40)
    assert speed.seconds_per_line == pytest.approx(88 / 4)


def test_lines_of_an_earlier_start_do_not_count(tmp_path: Path) -> None:
    slow, fast = [line(s, step_seconds=50.0) for s in range(1, 11)], [line(s, step_seconds=2.0) for s in range(11, 14)]
    # Written at -16, -14 and -12 s; the start is of 20 s ago.
    found = facts_of(make_run(tmp_path / "a", lines=slow + fast, started_at=NOW - 19, written_at=NOW - 12))
    assert found.speed is not None
    # The line that may have been written when it started counts still.
    assert found.speed.seconds_per_line < 20
    # The start's own checkpoint is older than the start: it began there, or later.
    found = facts_of(
        make_run(
            tmp_path / "b",
            lines=slow + fast,
            started_at=NOW - 500,
            written_at=NOW - 12,
            last_checkpoint=10,
            checkpoint_at=NOW - 600,
        )
    )
    assert found.speed is not None
    assert found.speed.seconds_per_line == 2.0
    # Nothing was logged since.
    found = facts_of(make_run(tmp_path / "c", lines=slow, started_at=NOW - 5, written_at=NOW - 12))
    assert (found.speed, found.has_begun, found.step) == (None, False, 10)


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", lines=[line(1)])
    with (run / "metrics.jsonl").open("wb") as file:
        file.truncate(20 << 30)  # 20 GB, sparse
        file.seek(0, 2)
        file.write(b"\n" + json.dumps(line(77)).encode() + b"\n" + b'{"step": 78, "lo')
    assert (run / "metrics.jsonl").stat().st_size > 1000 * TAIL
    assert facts_of(run).step == 77


def test_evaluations_that_are_written_in_tokens_have_the_distance_of_those_made(tmp_path: Path) -> None:
    config: dict[str, Any] = {"eval": {"suites": ["forgetting"], "every": "1e9 tokens", "every_steps": 0}}
    assert facts_of(make_run(tmp_path / "a", evals=(0, 40, 80), config=config)).evaluations.every_steps == 40
    assert facts_of(make_run(tmp_path / "b", evals=(0,), config=config)).evaluations.every_steps is None
    config["eval"]["at"] = ["50 steps", "1 epoch", "never", None]
    found = facts_of(make_run(tmp_path / "c", evals=(0, 40, 50, 80), config=config)).evaluations
    assert (found.every_steps, found.at_steps) == (40, (50,))
    config["eval"] |= {"at": [], "at_steps": [7, "x"]}
    assert facts_of(make_run(tmp_path / "d", evals=(0,), config=config)).evaluations.at_steps == (7,)


def test_signs_of_life_of_a_long_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", lines=[line(1)], written_at=NOW - 5000)
    kept = run / "evals" / "kept" / "20.answers.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_text("")
    os.utime(kept, (NOW - 30, NOW - 30))
    assert facts_of(run).written_at == NOW - 30


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "run.json is damaged: Expecting property name"),
        ("[]", "run.json is no record of a run"),
        ("{}", "run.json is no record of a run"),
        ('{"status": 3}', "run.json is no record of a run"),
        (
            '{"status": "done", "schema": "draft-7"}',
            "run.json is another program's: schema 'draft-7' is not known here",
        ),
        (None, "there is no run.json, only metrics.jsonl"),
    ],
)
def test_damaged_records(tmp_path: Path, content: str | None, problem: str) -> None:
    run = make_run(tmp_path / "a", lines=[line(3)])
    (run / "run.json").unlink() if content is None else (run / "run.json").write_text(content)
    found = facts_of(run)
    assert found.problem is not None
    assert found.problem.startswith(problem)
    assert found.step == 3


def test_cells_of_a_sweep_without_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "study"
    make_sweep(root, {"full": {"method": "full"}, "lora": {"method": "lora"}})
    make_run(root / "lora", "done")
    for roots, prefix in (([root], ""), ([tmp_path], "study/")):
        found = find(roots)
        assert [(run.id, run.status) for run in found.runs] == [
            (f"{prefix}full", "not started"),
            (f"{prefix}lora", "done"),
        ]
        assert [run.path for run in found.runs] == [root / "full", root / "lora"]
        assert [sweep.name for sweep in found.sweeps] == ["rank-study"]


def test_a_damaged_sweep_is_named(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{")
    (skipped,) = find([tmp_path]).skipped
    assert skipped.path == str(tmp_path / "sweep.json")
    assert skipped.reason.startswith("not JSON")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
keys = ("schema", "status", "step", "steps", "started", "starts", "last_checkpoint", "eval_seconds", "skipped_steps", "config",
        "error", "stopped_by", "job", "rewinds")  # fmt: skip
records = st.dictionaries(
    st.sampled_from(keys), json_values | st.sampled_from(["running", "failed", "preempted", "done", "x"])
)
entries = st.fixed_dictionaries(
    {"step": json_values},
    optional=dict.fromkeys(("step_seconds", "tokens_per_second", "loss", "stall_seconds"), json_values),
)
happened = st.dictionaries(
    st.sampled_from(("job", "event", "message", "code", "restart", "nodes", "at", "step")), json_values
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=records | json_values, metrics=st.lists(entries), jobs=st.lists(happened), cut=st.integers(0, 40))
def test_no_content_is_an_error(tmp_path: Path, record: Any, metrics: list[Any], jobs: list[Any], cut: int) -> None:
    run = tmp_path / "a"
    (run / "slurm").mkdir(parents=True, exist_ok=True)
    text = json.dumps(record)
    (run / "run.json").write_text(text[: len(text) - cut] if cut > 30 else text)
    lines = "".join(json.dumps(each) + "\n" for each in metrics)
    (run / "metrics.jsonl").write_text(lines[: len(lines) - cut % 7])
    (run / "slurm" / "jobs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in jobs))
    (tmp_path / "sweep.json").write_text(text)
    found = find([tmp_path])
    (state,) = states(found.runs, {}, NOW)
    assert state.id == "a"
    assert state.eta_seconds is None or state.eta_seconds >= 0


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=st.binary(max_size=60), metrics=st.binary(max_size=60), jobs=st.binary(max_size=60))
def test_no_bytes_are_an_error(tmp_path: Path, record: bytes, metrics: bytes, jobs: bytes) -> None:
    run = tmp_path / "a"
    (run / "slurm").mkdir(parents=True, exist_ok=True)
    for name, content in (("run.json", record), ("metrics.jsonl", metrics), ("slurm/jobs.jsonl", jobs)):
        (run / name).write_bytes(content)
    (state,) = states(find([tmp_path]).runs, None, NOW)
    assert state.state == "damaged"


def test_events_of_other_shapes_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    add_event(run, "started")
    with (run / "slurm" / "jobs.jsonl").open("a") as file:
        file.write('{"job": 3, "event": "ended"}\n{"job": "4", "event": "ended", "code": "x"}\n')
    assert [event.event for event in facts_of(run).events] == ["started"]
