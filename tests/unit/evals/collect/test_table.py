"""The table of all runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from evals.collect import table as collect
from evals.errors import EvalError
from evals.report.summary import build_report


def by_run(root: Path) -> dict[str, dict[str, object]]:
    return {str(row["run"]): row for row in collect.collect(root)}


def test_rows_agree_with_the_report(study: Path) -> None:
    rows, report = by_run(study), build_report(study)
    assert set(rows) == {"base", "lora", "monteclora", "none"}
    for name, entry in report["methods"].items():
        row = rows[name]
        assert tuple(row) == collect.COLUMNS
        assert (row["learned"], row["learned_stderr"]) == (entry["learned"]["value"], entry["learned"]["stderr"])
        assert (row["forgotten"], row["forgotten_stderr"]) == (
            entry["forgotten"]["value"],
            entry["forgotten"]["stderr"],
        )
        assert (row["method"], row["status"], row["step"], row["steps"]) == (entry["label"], "done", 100, 100)
    assert rows["base"]["learned"] is None
    assert rows["base"]["note"] == "from scratch: nothing to forget"


def test_calibration_after_training(study: Path) -> None:
    rows, report = by_run(study), build_report(study)
    for name, entry in report["methods"].items():
        for domain, task in (("new", "code_choice"), ("old", "prose_choice")):
            final, drawn = entry["final"][task], entry["final"][task].get("posterior", {})
            assert rows[name][f"{domain}_nll"] == pytest.approx(final["nll"])
            assert rows[name][f"{domain}_ece"] == pytest.approx(final["ece"])
            assert rows[name][f"{domain}_posterior_nll"] == drawn.get("nll")
            assert rows[name][f"{domain}_posterior_ece"] == drawn.get("ece")
    assert rows["monteclora"]["new_posterior_nll"] is not None
    assert rows["base"]["new_nll"] is None


def test_calibration_is_the_mean_over_tasks_that_all_have_it() -> None:
    tasks = {
        name: {"domain": "new", "metric": "accuracy", "nll": nll, "ece": 0.1, "posterior": {"nll": nll, "ece": None}}
        for name, nll in (("a", 1.0), ("b", 2.0))
    }
    tasks["c"] = {"domain": "old", "metric": "accuracy"}
    assert collect._calibration(tasks, "new") == {
        "new_nll": 1.5,
        "new_ece": pytest.approx(0.1),
        "new_posterior_nll": 1.5,
        "new_posterior_ece": None,
    }
    assert set(collect._calibration(tasks, "old").values()) == {None}


def test_running_and_crashed_runs_are_rows(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    running = make_run(tmp_path, "running", "lora", status="running", step=40, tokens_seen=163_840)
    (running / "evals" / "100.json").unlink()
    crashed = make_run(tmp_path, "crashed", "lora")
    (crashed / "run.json").write_text('{"sta')
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "run.json").write_text("{}")
    rows = by_run(tmp_path)
    assert (rows["running"]["status"], rows["running"]["step"]) == ("running", 100)  # metrics are ahead of the record
    assert "not scored after training" in str(rows["running"]["note"])
    assert (rows["crashed"]["status"], rows["crashed"]["method"], rows["crashed"]["step"]) == (
        "unreadable",
        "unknown",
        100,
    )
    assert rows["crashed"]["learned"] is not None
    assert (rows["empty"]["status"], rows["empty"]["step"], rows["empty"]["learned"]) == ("unreadable", None, None)


def test_files_hold_the_rows(study: Path, tmp_path: Path) -> None:
    rows = collect.collect(study)
    collect.write_collected_json(tmp_path / "a" / "runs.json", rows)
    collect.write_collected_csv(tmp_path / "b" / "runs.csv", rows)
    assert json.loads((tmp_path / "a" / "runs.json").read_text()) == {"schema": 1, "runs": rows}
    with open(tmp_path / "b" / "runs.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [r["run"] for r in read] == [row["run"] for row in rows]
    assert [float(r["learned"]) for r in read[1:]] == [row["learned"] for row in rows[1:]]
    assert read[0]["learned"] == ""


def test_terminal_table(study: Path) -> None:
    console = Console(width=180)
    with console.capture() as capture:
        console.print(collect.table(collect.collect(study)))
    text = capture.get()
    assert all(part in text for part in ("MonteCLoRA", "100/100", "410 k", "bits per byte", "nothing to forget"))
    assert all(part in text for part in ("NLL", "ECE", "new 0.7", "old 0.070"))


def test_terminal_table_without_calibration(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    make_run(tmp_path, "base", base=None)
    console = Console(width=160)
    with console.capture() as capture:
        console.print(collect.table(collect.collect(tmp_path)))
    assert "NLL" not in capture.get()


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="no such folder"):
        collect.collect(tmp_path / "missing")
