"""The table of all runs as CSV and Parquet."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from benchmarks.synthetic_runs import make_runs
from evals.collect.document import collect
from evals.collect.table import COLUMNS, columns, rows, write_csv, write_parquet


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("runs")
    make_runs(root, 34, examples=10, points=3)
    (root / "new").mkdir()
    (root / "new" / "run.json").write_text(
        json.dumps({"schema": 1, "status": "running", "config": {"model": {"base": "b"}}})
    )
    return collect([root], processes=1)


def test_a_row_per_run_and_checkpoint(document: dict[str, Any]) -> None:
    found = [(row["run"], row.get("step")) for row in rows(document)]
    expected = [(run["id"], point["step"]) for run in document["runs"] for point in run["points"]]
    assert found == sorted([*expected, ("new", None)], key=lambda place: (place[0], place[1] or 0))
    assert len(set(found)) == len(found)


def test_columns_have_a_fixed_order_and_tasks_come_last(document: dict[str, Any]) -> None:
    names = list(columns(document))
    assert names[: len(COLUMNS)] == list(COLUMNS)
    of_code = ["task/humaneval/score", "task/humaneval/change", "task/humaneval/nll", "task/humaneval/ece",
               "task/humaneval/pass@1", "task/humaneval/pass@10", "task/humaneval/pass@50"]  # fmt: skip
    assert [name for name in names if "humaneval" in name] == of_code
    tasks = [name.split("/")[1] for name in names[len(COLUMNS) :]]
    assert tasks == sorted(tasks)
    assert all(set(row) <= set(names) for row in rows(document))
    assert list(columns({"runs": []})) == list(COLUMNS)


def test_values_of_a_row(document: dict[str, Any]) -> None:
    (row,) = (row for row in rows(document) if (row["run"], row.get("step")) == ("seed1/lora-r16-lr1e-04-b192", 400))
    run = next(run for run in document["runs"] if run["id"] == row["run"])
    point = run["points"][-1]
    assert (row["method"], row["rank"], row["lr"], row["run_step"], row["unit"]) == ("LoRA", 16, 1e-4, 400, "accuracy")
    for name in ("learned", "forgotten"):
        assert [row[name], *(row[f"{name}_{end}"] for end in ("stderr", "low", "high"))] == [
            point[name][key] for key in ("value", "stderr", "low", "high")
        ]
    task = point["tasks"]["humaneval"]
    assert row["task/humaneval/score"] == task["score"]
    assert row["task/humaneval/change"] == task["change"]["value"]
    assert row["task/humaneval/pass@10"] == task["pass_at_k"]["10"]
    assert row["old_nll"] == point["calibration"]["old_nll"]


def test_files_hold_the_rows(document: dict[str, Any], tmp_path: Path) -> None:
    write_csv(tmp_path / "a" / "table.csv", document)
    write_parquet(tmp_path / "a" / "table.parquet", document)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["table.csv", "table.parquet"]
    expected = [{name: row.get(name) for name in columns(document)} for row in rows(document)]
    parquet = pyarrow.parquet.read_table(tmp_path / "a" / "table.parquet")
    assert parquet.to_pylist() == expected
    assert {field.name: str(field.type) for field in parquet.schema} == columns(document)
    with open(tmp_path / "a" / "table.csv", newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [list(row.values()) for row in read] == [
        ["" if value is None else str(value) for value in row.values()] for row in expected
    ]


def test_an_empty_table_keeps_its_types(tmp_path: Path) -> None:
    write_parquet(tmp_path / "table.parquet", {"runs": []})
    assert {f.name: str(f.type) for f in pyarrow.parquet.read_schema(tmp_path / "table.parquet")} == COLUMNS


def test_whole_numbers_in_columns_of_fractions(document: dict[str, Any], tmp_path: Path) -> None:
    whole = json.loads(json.dumps(document).replace('"lr": 0.0001', '"lr": 1'))
    write_parquet(tmp_path / "table.parquet", whole)
    assert 1.0 in pyarrow.parquet.read_table(tmp_path / "table.parquet")["lr"].to_pylist()
