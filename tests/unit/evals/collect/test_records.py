"""run.json of any schema, whole or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.collect.records import read_record

RECORD = {
    "schema": 1,
    "status": "done",
    "config": {
        "adapter": {"kind": "monteclora", "rank": 16},
        "model": {"base": "base"},
        "run": {"seed": 3, "branch_from": "runs/a/checkpoints/5"},
        "optim": {"lr": 1e-4},
        "train": {"global_batch_rows": 192},
        "data": {"seq_len": 4096},
    },
    "parameters": {"trainable": 12},
    "epoch": {"rows": 1000},
    "started": "1970-01-01T00:01:00+00:00",
    "step": 5,
}


def read(tmp_path: Path, content: Any) -> dict[str, Any]:
    path = tmp_path / "run.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_record(path)


def test_fields(tmp_path: Path) -> None:
    found = read(tmp_path, RECORD)
    expected = {"method": "MonteCLoRA", "adapter": "monteclora", "rank": 16, "lr": 1e-4, "seed": 3, "batch_rows": 192,
                "seq_len": 4096, "status": "done", "base": "base", "rows_per_epoch": 1000, "trainable_parameters": 12,
                "started_at": 60.0, "branch_from": "runs/a/checkpoints/5", "step": 5, "steps": None, "problem": None,
                "notes": [], "is_foreign": False, "is_from_scratch": False}  # fmt: skip
    assert {key: found[key] for key in expected} == expected


def test_data_are_the_files_whatever_their_weights(tmp_path: Path) -> None:
    sources = {"b": {"path": "b.jsonl", "weight": 2.0}, "a": {"dataset": "a", "subset": "x", "split": "train"}}
    assert read(tmp_path, RECORD | {"config": {"data": {"sources": sources}}})["data"] == ["a x train", "b.jsonl"]
    assert read(tmp_path, RECORD)["data"] is None
    assert read(tmp_path, RECORD | {"config": {"data": {"sources": {"a": "b.jsonl"}}}})["data"] is None


def test_full_finetuning_has_no_rank_whatever_its_recipe_says(tmp_path: Path) -> None:
    assert read(tmp_path, RECORD | {"config": {"adapter": {"kind": "none", "rank": 16}}})["rank"] is None


def test_a_newer_schema_is_read_and_noted(tmp_path: Path) -> None:
    found = read(tmp_path, RECORD | {"schema": 3, "status": {"now": "done"}})
    assert found["notes"] == ["run.json has schema 3, newer than 1: shown as far as it is understood"]
    assert (found["lr"], found["problem"]) == (1e-4, None)


@pytest.mark.parametrize(
    ("content", "problem", "is_foreign"),
    [
        ('{"schema": 1, "sta', "not JSON", False),
        ("[" * 9999, "not JSON", False),
        ("[]", "no record of a run", False),
        ("{}", "no record of a run", False),
        ({"schema": "draft-7"}, "schema 'draft-7' is not known here", True),
        ({"schema": 0}, "schema 0 is not known here", True),
        ({"schema": True}, "schema True is not known here", True),
        ({"schema": 1, "config": [1]}, "no config", False),
        ({"schema": 2, "config": [1]}, "of schema 2, with another kind of config", False),
        (
            {"schema": 2, "config": {"adapter": {"kind": ["lora"]}, "model": {"base": "b"}}},
            "of schema 2, with other kinds of values",
            False,
        ),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path: Path, content: Any, problem: str, is_foreign: bool) -> None:
    found = read(tmp_path, content)
    assert problem in found["problem"]
    assert found["is_foreign"] is is_foreign
    assert found["lr"] is None


def test_values_of_wrong_types_are_unknown(tmp_path: Path) -> None:
    text = json.dumps(RECORD | {"step": "5", "started": 3, "parameters": [1]}).replace("0.0001", "NaN")
    found = read(tmp_path, text)
    assert [found[key] for key in ("step", "started_at", "trainable_parameters", "lr")] == [None] * 4


NOT_STARTED = {"schema": 1, "status": "not started"}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (RECORD | {"status": "failed", "error": "rank 1:\n  boom"}, "rank 1: boom"),
        (RECORD | {"status": "failed", "error": "x" * 900}, "x" * 400),
        (RECORD | {"status": "failed", "error": 3}, None),
        (RECORD | {"status": "preempted", "stopped_by": "wall time"}, "stopped by wall time"),
        (RECORD | {"status": "preempted"}, None),
        (RECORD | {"error": "of an earlier start"}, None),
        (NOT_STARTED | {"job": {"job": "12_3", "event": "ended", "message": "preflight failed"}}, "job 12_3: preflight failed"),
        (NOT_STARTED | {"job": {"job": "12_3", "event": "submitted", "message": "4 nodes"}}, None),
        (NOT_STARTED | {"job": ["ended"]}, None),
        (RECORD | {"status": "running", "job": {"job": "7", "event": "ended", "message": "failed: code 137"}}, "job 7: failed: code 137"),
    ],
)  # fmt: skip
def test_why_it_is_not_done(tmp_path: Path, content: dict[str, Any], why: str | None) -> None:
    assert read(tmp_path, content)["why"] == why


def test_a_run_that_has_not_started_is_of_no_method_yet(tmp_path: Path) -> None:
    found = read(tmp_path, NOT_STARTED)
    assert (found["method"], found["is_from_scratch"], found["status"], found["problem"]) == ("unknown", False, "not started", None)  # fmt: skip
    scratch = read(tmp_path, RECORD | {"config": {"model": {"base": None}, "adapter": {"kind": "none"}}})
    assert (scratch["method"], scratch["is_from_scratch"]) == ("from scratch", True)
