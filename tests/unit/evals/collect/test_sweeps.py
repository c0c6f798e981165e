"""sweep.json, whole or not, and where it is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evals.collect.sweeps import read_sweep, read_sweeps
from evals.collect.walk import SweepFile, walk
from evals.errors import EvalError

CELL = {"index": 0, "name": "full-lr1e-5", "run": "full-lr1e-5", "values": {"method": "full", "optim.lr": 1e-5}}
SWEEP = {"schema": 1, "name": "study", "file": "study.toml", "axes": ["method", "optim.lr"], "cells": [CELL]}


def written(folder: Path, content: Any = SWEEP) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.json"
    path.write_text(json.dumps(content))
    return path


def test_cells_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    cells = [CELL | {"index": 1, "name": "b", "run": "runs/b", "values": {"optim.lr": 1}}, CELL]
    sweep = read_sweep(written(tmp_path, SWEEP | {"cells": cells}), "in/here")
    assert (sweep.name, sweep.folder, sweep.axes) == ("study", "in/here", ("method", "optim.lr"))
    assert [(cell.index, cell.name, cell.run, cell.method) for cell in sweep.cells] == [
        (0, "full-lr1e-5", "in/here/full-lr1e-5", "full"),
        (1, "b", "in/here/runs/b", None),
    ]
    assert sweep.cells[0].values == {"method": "full", "optim.lr": 1e-5}


def test_sweeps_are_found_beside_their_runs_with_the_ids_of_these(tmp_path: Path) -> None:
    written(tmp_path / "a" / "study")
    written(tmp_path / "b")
    # Within a run it is no sweep.
    written(tmp_path / "b" / "run")
    (tmp_path / "b" / "run" / "run.json").write_text("{}")
    assert [sweep.folder for sweep in walk([tmp_path]).sweeps] == ["a/study", "b"]
    assert [sweep.folder for sweep in walk([tmp_path / "b"]).sweeps] == [""]
    assert [sweep.folder for sweep in walk([tmp_path / "a", tmp_path / "b"]).sweeps] == ["a/study", "b"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "no sweep: it has no cells"),
        (SWEEP | {"schema": 2}, "schema 2 of a sweep is not known here"),
        (SWEEP | {"cells": {}}, "no sweep: it has no axes and cells"),
        (SWEEP | {"axes": [1]}, "no sweep: it has no axes and cells"),
        (SWEEP | {"cells": [{"index": 0}]}, "no sweep: a cell has no index, name, run or values"),
        (SWEEP | {"cells": [3]}, "no sweep: a cell has no index, name, run or values"),
        (SWEEP | {"cells": [CELL | {"run": "../elsewhere"}]}, "no sweep: cell 0 is none"),
        (SWEEP | {"cells": [CELL | {"run": "/elsewhere"}]}, "no sweep: cell 0 is none"),
        (SWEEP | {"cells": [CELL | {"index": "0"}]}, "no sweep: cell '0' is none"),
    ],
)
def test_what_is_none(tmp_path: Path, content: Any, problem: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(EvalError) as caught:
        read_sweep(path)
    assert str(caught.value) == problem
    assert read_sweeps([SweepFile("", path)]) == ([], [(str(path), problem)])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{")
    found = [SweepFile("", tmp_path / name) for name in ("sweep.json", "gone")]
    reasons = [reason for _, reason in read_sweeps(found)[1]]
    assert reasons[0].startswith("not JSON (")
    assert reasons[1] == "cannot be read (No such file or directory)"


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
values = st.recursive(
    leaves, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=4), each), max_leaves=8
)
cells = st.fixed_dictionaries({}, optional=dict.fromkeys(("index", "name", "run", "values"), values))
near = st.fixed_dictionaries(
    {"schema": st.just(1)}, optional={"axes": st.lists(leaves), "cells": st.lists(cells | values), "name": values}
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=near | values)
def test_anything_else_is_named_and_no_traceback(tmp_path: Path, content: Any) -> None:
    sweeps, skipped = read_sweeps([SweepFile("", written(tmp_path, content))])
    assert len(sweeps) + len(skipped) == 1
