"""A study of a sweep: methods by the sweep's names, cells that failed and cells that have not begun, in every form."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evals.collect.command import run_collect
from evals.collect.document import collect
from evals.collect.page import render
from evals.collect.page_data import page_data
from launch.jobs import Event, note

CELLS = {
    "full-a": {"method": "full", "optim.lr": 1e-5, "run.seed": 1},
    "full-b": {"method": "full", "optim.lr": 2e-5, "run.seed": 1},
    "decay-a": {"method": "full with weight decay", "optim.lr": 1e-5, "run.seed": 1},
    "decay-b": {"method": "full with weight decay", "optim.lr": 2e-5, "run.seed": 1},
    "lora-a": {"method": "lora", "optim.lr": 1e-4, "run.seed": 1, "adapter.kind": "lora", "adapter.rank": 4},
    "lora-b": {"method": "lora", "optim.lr": "auto", "run.seed": 1, "adapter.targets": ["q_proj"]},
    "lora-c": {"method": "lora", "optim.lr": 4e-4, "run.seed": 1},
}


@pytest.fixture
def root(tmp_path: Path, make_run: Callable[..., Path]) -> Path:
    root = tmp_path / "study"
    for name in ("full-a", "full-b", "decay-a"):
        make_run(root, name)
    make_run(root, "decay-b", status="failed", error="loss was not finite", step=40)
    note(root / "lora-c", Event(job="12_6", event="ended", code=1, message="preflight failed on n2"))
    make_run(root, "beside", "lora")
    cells = [
        {"index": i, "name": f"cell-{name}", "run": name, "values": values}
        for i, (name, values) in enumerate(CELLS.items())
    ]
    (root / "sweep.json").write_text(
        json.dumps({"schema": 1, "name": "rank-study", "axes": ["method", "optim.lr", "run.seed"], "cells": cells})
    )
    return root


def by_id(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {run["id"]: run for run in document["runs"]}


def test_methods_are_those_of_the_sweep(root: Path) -> None:
    document = collect([root])
    runs = by_id(document)
    assert {name: run["method"] for name, run in runs.items()} == {
        "full-a": "full", "full-b": "full", "decay-a": "full with weight decay", "decay-b": "full with weight decay",
        "lora-a": "lora", "lora-b": "lora", "lora-c": "lora", "beside": "LoRA",
    }  # fmt: skip
    assert runs["full-a"]["cell"] == {"sweep": "rank-study", "name": "cell-full-a", "values": CELLS["full-a"]}
    assert runs["beside"]["cell"] is None
    assert {entry["method"] for entry in document["spreads"]} == {"full", "full with weight decay", "LoRA"}
    assert document["sweeps"] == [
        {"name": "rank-study", "folder": "", "axes": ["method", "optim.lr", "run.seed"], "runs": list(CELLS)}
    ]
    assert document["skipped"] == []
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_cells_that_have_not_begun_and_those_that_failed(root: Path) -> None:
    runs = by_id(collect([root]))
    absent = runs["lora-a"]
    assert (absent["status"], absent["lr"], absent["seed"], absent["rank"], absent["adapter"]) == ("not started", 1e-4, 1, 4, "lora")  # fmt: skip
    assert (absent["step"], absent["points"], absent["notes"], absent["updated_at"]) == (None, [], [], None)
    # A value of another kind than the column's is in the cell alone.
    assert runs["lora-b"]["lr"] is None
    assert (runs["lora-c"]["status"], runs["lora-c"]["notes"]) == ("not started", ["job 12_6: preflight failed on n2"])
    assert runs["lora-c"]["lr"] == 4e-4
    assert runs["decay-b"]["notes"] == ["failed: loss was not finite"]
    assert runs.keys() == runs.keys() | CELLS.keys()
    # All entries have the same keys.
    assert {frozenset(run) for run in runs.values()} == {frozenset(absent)}


def test_every_form_has_it(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    console = Console(width=250, record=True, quiet=False, file=(tmp_path / "log").open("w"))
    with console.file:
        run_collect([root], console, out=out)
    text = console.export_text()
    assert "sweep rank-study: 7 cells: 3 done, 3 not started, 1 failed" in text
    assert "8 runs (4 done, 3 not started, 1 failed)" in text
    with (out / "table.csv").open() as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert (rows["full-a"]["sweep"], rows["full-a"]["cell"], rows["full-a"]["cell/optim.lr"]) == ("rank-study", "cell-full-a", "1e-05")  # fmt: skip
    assert (rows["lora-b"]["status"], rows["lora-b"]["cell/optim.lr"], rows["beside"]["cell/method"]) == ("not started", '"auto"', "")  # fmt: skip
    assert (out / "table.parquet").stat().st_size > 0


def test_the_page_names_what_is_left(root: Path) -> None:
    document = collect([root])
    page = render(document)
    section = page[page.index('<section id="sweeps">') :].partition("</section>")[0]
    assert "rank-study: 7 cells: 3 done, 3 not started, 1 failed" in section
    # What needs somebody first; nothing of what is done.
    cells = [row.partition("<td>")[2].partition("</td>")[0] for row in section.split("<tr>")[2:]]
    assert cells == ["cell-decay-b", "cell-lora-a", "cell-lora-b", "cell-lora-c"]
    assert "preflight failed on n2" in section
    shown = {run["id"]: run for run in page_data(document)["runs"]}
    assert shown["decay-a"]["cell"]["values"] == CELLS["decay-a"]
    assert 'id="sweeps"' not in render(document | {"sweeps": []})


def test_names_of_a_sweep_are_no_markup(root: Path) -> None:
    sweep = json.loads((root / "sweep.json").read_text())
    sweep["name"] = sweep["cells"][4]["name"] = "<img src=x onerror=alert(1)>"
    (root / "sweep.json").write_text(json.dumps(sweep))
    assert "<img" not in render(collect([root]))


def test_a_damaged_sweep_leaves_the_runs_as_they_are(root: Path) -> None:
    (root / "sweep.json").write_text("{")
    document = collect([root])
    assert set(by_id(document)) == {"full-a", "full-b", "decay-a", "decay-b", "lora-c", "beside"}
    assert [each["path"] for each in document["skipped"]] == [str(root / "sweep.json")]
    assert by_id(document)["decay-a"]["method"] == "full finetuning"
