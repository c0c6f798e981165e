from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.local import ROOT
from launch.sweep.cells import Sweep, expand
from launch.sweep.checks import check
from launch.sweep.definition import read_definition
from tests.unit.launch.sweep.sweeps import GRID, HEAD, SETTINGS, sweep_of
from training.config import to_dict
from training.recipe import ConfigError, load_config


def problems(sweep: Sweep, **options: object) -> list[str]:
    try:
        check(sweep, **options)  # type: ignore[arg-type]
    except ConfigError as error:
        return error.problems
    return []


def begin(sweep: Sweep, index: int, status: str) -> None:
    """A cell's run directory as training leaves it."""
    cell = sweep.cells[index]
    cell.run_dir.mkdir(parents=True)
    config = to_dict(load_config(sweep.cells[0].recipe, cell.arguments))
    (cell.run_dir / "run.json").write_text(json.dumps({"schema": 1, "status": status, "config": config}))


def test_nothing_is_wrong(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    assert problems(sweep, world_size=2) == []
    begin(sweep, 0, "done")
    begin(sweep, 1, "failed")
    assert problems(sweep) == []


def test_a_problem_of_all_cells_is_said_once(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, SETTINGS + '"optim.beta1" = 2.0\n' + GRID)
    assert problems(sweep) == ["optim.beta1 = 2.0 (sweep.toml): must be in [0, 1)"]


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        ("'optim.lr' = [1e-5, -1.0]\n'run.seed' = [1]", "[lr-1-seed1]".replace("lr-1", "lr_-1")),
        ("'optim.lr' = [1e-5, -1.0]\n'run.seed' = [1, 2]", "[2 cells: lr_-1-seed1, lr_-1-seed2]"),
        ("'optim.lr' = [1e-5, -1.0]\n'run.seed' = [1, 2, 3, 4, 5, 6]",
         "[6 cells: lr_-1-seed1, lr_-1-seed2, lr_-1-seed3, lr_-1-seed4 and 2 more]"),
    ],
)  # fmt: skip
def test_a_problem_of_some_cells_names_them(tmp_path: Path, grid: str, names: str) -> None:
    sweep = sweep_of(tmp_path, SETTINGS + "[grid]\n" + grid)
    assert problems(sweep) == [f"optim.lr = -1.0 (sweep.toml): must be greater than 0 {names}"]


def test_what_the_world_size_says(tmp_path: Path) -> None:
    (found,) = problems(sweep_of(tmp_path), world_size=5)
    assert "must be divisible by the world size, which is 5" in found


def test_files_that_only_compute_nodes_have(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    (found,) = problems(sweep)
    assert found.startswith("data.sources.text.path")
    assert problems(sweep, needs_files=False) == []


def test_a_missing_deepspeed_json(tmp_path: Path) -> None:
    text = "[grid]\n'train.placement' = ['zero3', 'replicated']\n"
    assert problems(sweep_of(tmp_path, text)) == [
        'ds_config (sweep.toml): is missing, and needed with train.placement = "zero3": the DeepSpeed JSON, such as '
        "ds_configs/zero3.json [placement_zero3]"
    ]


def test_a_wrong_deepspeed_json_and_what_else_is_known(tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_text("{")
    sweep = sweep_of(tmp_path, GRID, HEAD + 'ds_config = "zero.json"\n')
    found = problems(sweep, more_problems=["--at-once 0: must be at least 1"])
    assert found[0] == "--at-once 0: must be at least 1"
    assert len(found) == 2
    assert "zero.json" in found[1]


@pytest.mark.parametrize(("status", "words"), [("done", "is done"), ("preempted", "was begun")])
def test_a_run_of_an_earlier_version_of_the_file(tmp_path: Path, status: str, words: str) -> None:
    begin(sweep_of(tmp_path), 2, status)
    changed = sweep_of(tmp_path, SETTINGS + '"train.steps" = 40\n' + GRID)
    run = tmp_path / "study" / "lr1e-5-seed3"
    assert problems(changed) == [
        f"lr1e-5-seed3 (sweep.toml): {words} in {run} with other settings; set them back, remove that folder, or choose another "
        "root:\n      train.steps: 20 there, 40 here [lr1e-5-seed3]"
    ]


def test_a_root_that_can_not_be_used(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "lr1e-5-seed1").write_text("")
    assert problems(sweep) == [f'run.dir = "{tmp_path}/study/lr1e-5-seed1": is a file, not a directory [lr1e-5-seed1]']


@pytest.mark.parametrize(("name", "cells", "ranks"), [("sweep_demo", 6, 2), ("sweep_lora_llama7b", 33, 8)])
def test_the_sweeps_of_this_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, cells: int, ranks: int
) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.setenv("DATA", str(tmp_path))
    sweep = expand(read_definition(ROOT / "recipes" / f"{name}.toml"))
    assert len(sweep.cells) == cells
    assert problems(sweep, world_size=ranks, needs_files=False) == []
