"""Files of a run: whole or absent when written, tolerated in any state when read."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.errors import EvalError
from evals.results import (
    find_runs,
    load_run,
    merge_results,
    read_metrics,
    read_result,
    result_file_step,
    result_files,
    write_result,
)


def test_a_result_is_read_as_written(tmp_path: Path) -> None:
    tasks = {"code": {"score": 1.25, "examples": [{"id": "é", "nll": 3.0}]}}
    path = write_result(tmp_path, step=40, tasks=tasks, seconds=2.5)
    assert path == tmp_path / "evals" / "40.json"
    assert read_result(path) == {"schema": 1, "step": 40, "seconds": 2.5, "tasks": tasks}
    assert [file.name for file in path.parent.iterdir()] == ["40.json"]


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    path = write_result(
        tmp_path, step=1, tasks={"t": {"score": math.nan, "examples": [{"nll": math.inf}]}}, seconds=0.0
    )
    assert read_result(path)["tasks"] == {"t": {"score": None, "examples": [{"nll": None}]}}
    assert "NaN" not in path.read_text()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_result(tmp_path, step=0, tasks={}, seconds=1.0)
    with pytest.raises(TypeError):
        write_result(tmp_path, step=0, tasks={"t": {"score": object()}}, seconds=1.0)
    assert read_result(path)["seconds"] == 1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ('{"tasks": {', "not JSON"),
        ("[]", "no tasks in this file"),
        ("{}", "no tasks in this file"),
        ('{"tasks": {"a": {}, "b": 3}}', "task 'b' is no result"),
    ],
)
def test_unusable_results_are_explained(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "1.json").write_text(content)
    with pytest.raises(EvalError, match=message):
        read_result(tmp_path / "1.json")


@pytest.mark.parametrize(
    ("file", "step_and_name"),
    [
        ("0.json", (0, None)),
        ("5000.json", (5000, None)),
        ("5000.forgetting.json", (5000, "forgetting")),
        ("some/where/5000.learning-code_2.json", (5000, "learning-code_2")),
        ("05.json", None),
        ("5000..json", None),
        ("5000.a.b.json", None),
        ("5000.json.tmp", None),
        (".5000.json.77.tmp", None),
        ("notes.json", None),
        ("-1.json", None),
        ("\N{ARABIC-INDIC DIGIT FIVE}.json", None),
        ("5.json\n", None),
    ],
)
def test_the_name_of_a_file_says_what_is_in_it(file: str, step_and_name: tuple[int, str | None] | None) -> None:
    assert result_file_step(file) == result_file_step(Path(file)) == step_and_name


def test_a_job_of_its_own_writes_beside_training(tmp_path: Path) -> None:
    path = write_result(tmp_path, step=40, tasks={}, seconds=1.0, name="forgetting")
    assert path == tmp_path / "evals" / "40.forgetting.json"
    assert result_file_step(path) == (40, "forgetting")
    for name in ("", "a/b", "a.b", "..", "a b"):
        with pytest.raises(EvalError, match="no name for a file of results; use letters, digits, - and _"):
            write_result(tmp_path, step=40, tasks={}, seconds=1.0, name=name)


def test_the_files_of_a_step_are_merged_and_the_plain_one_comes_first(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    write_result(tmp_path, step=20, tasks={"x": {"score": 1.0}, "late": {"score": 1.5}}, seconds=2.0, name="z")
    write_result(tmp_path, step=20, tasks={"late": {"score": 9.0}, "x": {"score": 9.0}}, seconds=0.25, name="zz")
    write_result(tmp_path, step=20, tasks={"own": {"score": 2.0}, "x": {"score": 3.0}}, seconds=4.0)
    write_result(tmp_path, step=0, tasks={"x": {"score": 4.0}}, seconds=1.0, name="only")
    run = load_run(tmp_path)
    assert run.eval_steps == (0, 20)
    assert [path.name for path in result_files(tmp_path)] == ["0.only.json", "20.json", "20.z.json", "20.zz.json"]
    assert run.result(20) == {
        "schema": 1,
        "step": 20,
        "seconds": 6.25,
        "tasks": {"own": {"score": 2.0}, "x": {"score": 3.0}, "late": {"score": 1.5}},
        "damaged": [],
    }
    assert run.result(0)["tasks"] == {"x": {"score": 4.0}}
    with pytest.raises(EvalError, match=r"7\.json: cannot be read"):
        run.result(7)


def test_a_damaged_file_is_named_and_the_others_are_used(tmp_path: Path) -> None:
    write_result(tmp_path, step=20, tasks={"x": {"score": 1.0}}, seconds=2.0, name="good")
    (tmp_path / "evals" / "20.json").write_text('{"tas')
    (tmp_path / "evals" / "20.bad.json").write_text("[]")
    found = load_run(tmp_path).result(20)
    assert (found["tasks"], found["seconds"]) == ({"x": {"score": 1.0}}, 2.0)
    assert [message.partition(": ")[0] for message in found["damaged"]] == [
        str(tmp_path / "evals" / "20.json"),
        str(tmp_path / "evals" / "20.bad.json"),
    ]
    with pytest.raises(EvalError, match=r"20\.json: not JSON .*20\.bad\.json: no tasks in this file"):
        merge_results([tmp_path / "evals" / "20.json", tmp_path / "evals" / "20.bad.json"])


def test_reading_results_needs_neither_numpy_nor_torch() -> None:
    code = "import sys, evals.results; print([m for m in ('numpy', 'torch', 'lm_eval') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_is_described_from_its_record(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = load_run(make_run(tmp_path, "a", "lora"))
    assert (run.status, run.adapter, run.base, run.label, run.eval_steps) == (
        "done",
        "lora",
        "base/export",
        "LoRA",
        (0, 100),
    )
    assert run.get("world", "size") == 2
    assert run.get("world", "no", "such", default=5) == 5
    assert run.get("status", "deeper") is None
    assert load_run(make_run(tmp_path, "b", base=None)).label == "from scratch"


@pytest.mark.parametrize(
    ("kind", "label"),
    [("none", "full finetuning + HiddenKey"), ("lora", "LoRA + HiddenKey"), ("monteclora", "MonteCLoRA + HiddenKey")],
)
def test_hidden_key_is_part_of_the_label(tmp_path: Path, make_run: Callable[..., Path], kind: str, label: str) -> None:
    def named(name: str, base: str | None, **section: Any) -> str:
        config = {"adapter": {"kind": kind}, "model": {"base": base}, **section}
        return load_run(make_run(tmp_path, name, kind, config=config)).label

    assert named("on", "base", hidden_key={"enabled": True}) == label
    assert named("off", "base", hidden_key={"enabled": False}) == label.removesuffix(" + HiddenKey")
    assert named("earlier", "base") == label.removesuffix(" + HiddenKey")
    assert named("pretraining", None, hidden_key={"enabled": True}) == "from scratch"


def test_a_crashed_run_is_tolerated(tmp_path: Path) -> None:
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / ".0.json.77.tmp").write_text("")
    (tmp_path / "evals" / "notes.json").write_text("")
    (tmp_path / "run.json").write_text('{"status": "run')
    run = load_run(tmp_path)
    assert (run.record, run.status, run.label, run.eval_steps, run.metrics()) == ({}, "unreadable", "unknown", (), [])
    (tmp_path / "run.json").write_text("[1]")
    assert load_run(tmp_path).record == {}
    (tmp_path / "run.json").write_text('{"config": null, "world": 3}')
    assert load_run(tmp_path).status == "unknown"
    assert load_run(tmp_path).get("world", "size") is None


def test_metrics_skip_half_lines_and_keep_the_last_of_a_repeated_step(tmp_path: Path) -> None:
    lines = [
        '{"step": 1, "loss": 3}',
        '{"step": 2, "loss": 2}',
        "[]",
        '{"loss": 1}',
        '{"step": 2, "loss": 1}',
        '{"step": 3, "l',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 3}, {"step": 2, "loss": 1}]
    assert read_metrics(tmp_path / "missing.jsonl") == []


def test_runs_are_found_at_any_depth_and_not_inside_runs(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    outer = make_run(tmp_path, "b")
    make_run(tmp_path, "deep/er/a", "lora")
    (tmp_path / "crashed").mkdir()
    (tmp_path / "crashed" / "metrics.jsonl").write_text("")
    (outer / "checkpoints").mkdir()
    (outer / "checkpoints" / "run.json").write_text(json.dumps({}))
    found = [run.path.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)]
    assert found == ["b", "crashed", "deep/er/a"]
    assert [run.path for run in find_runs(outer)] == [outer]
    with pytest.raises(EvalError, match="no such folder"):
        find_runs(tmp_path / "missing")


def test_what_is_nested_too_deep_is_no_json(tmp_path: Path) -> None:
    deep = "[" * 100_000
    (tmp_path / "evals").mkdir()
    for name in ("evals/0.json", "run.json"):
        (tmp_path / name).write_text(deep)
    (tmp_path / "metrics.jsonl").write_text(f'{deep}\n{{"step": 3}}\n')
    with pytest.raises(EvalError, match=r"0.json: not JSON .*; delete it and evaluate again"):
        read_result(tmp_path / "evals/0.json")
    run = load_run(tmp_path)
    assert (run.status, run.metrics()) == ("unreadable", [{"step": 3}])
