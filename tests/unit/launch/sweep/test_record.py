from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.collect.sweeps import read_sweep
from launch.local import ROOT
from launch.sweep.record import freeze, read_frozen, write_record
from tests.unit.launch.sweep.sweeps import HEAD, sweep_of
from training.recipe import ConfigError

TEXT = """
[grid]
"optim.lr" = [1e-5]
[methods.full]
"adapter.init_from" = ["here"]
[methods.lora]
"eval.suites" = [["a", "b"]]
"""


def test_what_others_read(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, TEXT)
    write_record(sweep)
    assert json.loads((tmp_path / "study/sweep.json").read_text()) == {
        "schema": 1,
        "name": "sweep",
        "file": str(tmp_path / "sweep.toml"),
        "axes": ["method", "optim.lr", "adapter.init_from", "eval.suites"],
        "cells": [
            {"index": 0, "name": "full-lr1e-5-init_from_here", "run": "full-lr1e-5-init_from_here",
             "values": {"method": "full", "optim.lr": 1e-5, "adapter.init_from": str(tmp_path / "here")}},
            {"index": 1, "name": "lora-lr1e-5-suites_a_b", "run": "lora-lr1e-5-suites_a_b",
             "values": {"method": "lora", "optim.lr": 1e-5, "eval.suites": ["a", "b"]}},
        ],
    }  # fmt: skip
    assert (tmp_path / "study/logs").is_dir()
    # By the page of all runs, too.
    assert [cell.name for cell in read_sweep(tmp_path / "study/sweep.json").cells] == [
        cell.name for cell in sweep.cells
    ]


def test_frozen_cells_are_what_they_were(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, TEXT)
    path = tmp_path / "cells.json"
    freeze(sweep, path)
    expected = [str(tmp_path / "recipe.toml"), str(ROOT / "ds_configs/zero3.json"), *sweep.cells[1].arguments]
    (tmp_path / "sweep.toml").unlink()
    assert read_frozen(path, 1) == expected
    assert Path(expected[1]).is_file()


def test_the_deepspeed_json_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_text("{}")
    freeze(sweep_of(tmp_path, TEXT, HEAD + 'ds_config = "zero.json"\n'), tmp_path / "cells.json")
    assert read_frozen(tmp_path / "cells.json", 0)[1] == str(tmp_path / "zero.json")


def test_a_cell_that_is_not_there(tmp_path: Path) -> None:
    freeze(sweep_of(tmp_path, TEXT), tmp_path / "cells.json")
    with pytest.raises(ConfigError, match=r"--cell 2: .*cells.json has the cells 0 to 1"):
        read_frozen(tmp_path / "cells.json", 2)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"cells": []}', '{"cells": {"0": 1}}'])
def test_a_file_without_cells(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "cells.json").write_text(content)
    with pytest.raises(ConfigError, match="holds no cells of a sweep; submit the sweep again"):
        read_frozen(tmp_path / "cells.json", 0)
