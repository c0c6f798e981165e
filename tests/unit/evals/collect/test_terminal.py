"""The terminal's tables, wide and narrow, and lines about what was skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.synthetic_runs import make_runs
from evals.collect.document import collect
from evals.collect.terminal import MANY_RUNS, MOST_CHAINS, MOST_SKIPPED, heading, skipped_lines, stage_lines, tables


def shown(document: dict[str, Any], width: int) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        for table in tables(document, width):
            console.print(table)
    return capture.get()


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("runs")
    make_runs(root, 46, examples=10, points=3)
    return collect([root], processes=1)


def test_a_line_per_run(document: dict[str, Any]) -> None:
    few = document | {"runs": document["runs"][:MANY_RUNS]}
    text = shown(few, 250)
    for run in few["runs"]:
        assert run["id"] in text
    assert all(part in text for part in ("MonteCLoRA", "400/400", "315 M", "points", "NLL", "old 0.", "dead?"))


@pytest.mark.parametrize("width", [60, 90, 120, 200])
def test_as_many_columns_as_fit(document: dict[str, Any], width: int) -> None:
    few = document | {"runs": document["runs"][:5]}
    lines = shown(few, width).splitlines()
    assert len(lines) >= 5 + 4
    assert max(map(len, lines)) <= width
    assert "learned" in lines[1] or width < 100
    # No cell is folded: every run has its name on one line.
    assert all(any(run["id"] in line for line in lines) for run in few["runs"])


def test_a_line_per_method_of_many_runs(document: dict[str, Any]) -> None:
    assert len(document["runs"]) > MANY_RUNS
    text = shown(document, 200)
    assert "seed1/" not in text
    groups = {(run["method"], run["rank"]) for run in document["runs"]}
    assert len(text.splitlines()) == len(groups) + 4
    line = next(line for line in text.splitlines() if "full finetuning" in line)
    values = sorted(
        run["points"][-1]["learned"]["value"]
        for run in document["runs"]
        if run["method"] == "full finetuning" and run["status"] == "done"
    )
    assert f"{100 * values[0]:+.1f} / ".replace("-", "−") in line
    assert f" / {100 * values[-1]:+.1f} ".replace("-", "−") in line
    assert heading(document).startswith("45 runs (")


def test_names_are_not_markup(tmp_path: Path) -> None:
    (tmp_path / "[red]x[b]").mkdir()
    (tmp_path / "[red]x[b]" / "metrics.jsonl").touch()
    assert "[red]x[b]" in shown(collect([tmp_path]), 100)


def test_no_runs() -> None:
    assert tables({"runs": []}, 80) == []
    assert heading({"runs": [], "seconds": 0.1}) == "0 runs (none), 0 points, 0.1 s"
    one = {"status": "done", "points": [{}]}
    assert heading({"runs": [one], "seconds": 0.1}) == "1 run (1 done), 1 point, 0.1 s"


def test_few_skipped_files_are_listed_and_many_counted() -> None:
    assert skipped_lines([]) == []
    assert skipped_lines([{"path": "a", "reason": "not JSON (x)"}]) == ["skipped: a: not JSON (x)"]
    many = [{"path": f"p{i}", "reason": f"not JSON (line {i})"} for i in range(MOST_SKIPPED)]
    assert skipped_lines([*many, {"path": "q", "reason": "vanished"}]) == [
        f"skipped {MOST_SKIPPED}: not JSON (p0 …)",
        "skipped 1: vanished (q)",
    ]


def test_what_stages_kept() -> None:
    def task(name: str, taught: int | None, retention: float | None) -> dict[str, Any]:
        return {"task": name, "taught": taught, "retention": retention}

    chain = {
        "runs": ["a", "b"],
        "problem": None,
        "tasks": [task("code", 0, 0.6), task("maths", 1, 1.0), task("qa", None, 0.625)],
    }
    empty = {"runs": ["a", "c"], "problem": None, "tasks": [task("text", 0, None)]}
    broken = {"runs": ["a", "d"], "problem": "no stages", "tasks": []}
    assert stage_lines([chain, empty, broken]) == [
        "stages: a -> b: retention code 60 %, qa 62 %",
        "stages: a -> d: no stages",
    ]
    assert stage_lines([chain] * (MOST_CHAINS + 1)) == ["6 chains of stages: see the stages in collected.json"]
