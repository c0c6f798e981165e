from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from launch import local, stages, study
from tests.unit.training.minimal import write_recipe

SWEEP = """
root = "runs/cells"

[methods.full]
recipe = "small.toml"
"adapter.kind" = "none"
"optim.lr" = [1e-3, 2e-3]
"checkpoint.keep_at" = ["5 steps"]

[methods.decay]
recipe = "small.toml"
"adapter.kind" = "none"
"optim.weight_decay" = 0.1

[methods.dropout]
recipe = "small.toml"
"adapter.kind" = "none"
"model.attention_dropout" = 0.1

[methods.lora]
recipe = "small.toml"
"adapter.kind" = "lora"
"""


class Machine:
    """Stands in for the processes: every cell becomes what `ends` says, "done" unless it says otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[str, ...]] = []
        self.ends: dict[str, dict[str, str]] = {}
        self.code = 0

    def run_module(self, module: str, *arguments: str) -> int:
        self.calls.append((module, *arguments))
        if arguments[0] == "sweep":
            for name in ("full-lr1e-3", "full-lr2e-3", "decay", "dropout", "lora"):
                run = self.folder / "runs" / "cells" / name
                for step in (5, 20):
                    (run / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
                end = self.ends.get(name, {"status": "done"})
                (run / "run.json").write_text(json.dumps({"step": 20, "steps": 20, **end}))
            return self.code
        if arguments[0] == "rank":
            weights = Path(arguments[1]) / "weights"
            weights.mkdir(exist_ok=True)
            (weights / f"rank-{arguments[3]}.json").write_text("{}")
        return 0

    def names(self) -> list[str]:
        return [call[1] if call[0] != "train" else call[0] for call in self.calls]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    write_recipe(tmp_path).rename(tmp_path / "small.toml")
    (tmp_path / "tiny_base.toml").write_text((tmp_path / "small.toml").read_text())
    (tmp_path / "tiny.toml").write_text(SWEEP)
    found = Machine(tmp_path)
    monkeypatch.setattr(local, "run_module", found.run_module)

    def train(recipe: Path, ds_config: Path, ranks: int, settings: list[str]) -> int:
        found.calls.append(("train", recipe.name, str(ranks), *settings))
        return 0

    monkeypatch.setattr(local, "train", train)
    monkeypatch.setattr(stages.local, "terminate_like_interrupt", lambda: None)
    return found


def run(
    machine: Machine,
    at_once: int | None = 3,
    until: str | None = None,
    file: str = "tiny.toml",
    out: Path | None = None,
) -> int:
    options = argparse.Namespace(sweep=machine.folder / file, at_once=at_once, out=out, until=until)
    return study.run(options, [])


def test_the_stages_run_in_order(machine: Machine, tmp_path: Path) -> None:
    assert run(machine) == 0
    runs = tmp_path / "runs"
    assert machine.calls[:3] == [
        ("data_pipeline", "demo", "--out", str(runs / "corpus")),
        ("train", "tiny_base.toml", "1", "--run.dir", str(runs / "base")),
        ("launch", "sweep", str(tmp_path / "tiny.toml"), "--local", "--ranks", "1", "--at-once", "3"),
    ]
    # Of all weights and nothing else, at every checkpoint.
    assert [(Path(call[2]).name, call[4]) for call in machine.calls[3:7]] == [
        ("full-lr1e-3", "5"), ("full-lr1e-3", "20"), ("full-lr2e-3", "5"), ("full-lr2e-3", "20"),
    ]  # fmt: skip
    assert machine.calls[7:] == [
        ("evals", "collect", str(runs), "--out", str(runs / "collected")),
        ("evals", "claims", str(runs), "--out", str(runs / "study.md")),
    ]


def test_ranks_that_are_there_are_not_made_again(machine: Machine) -> None:
    run(machine, until="ranks")
    machine.calls.clear()
    assert run(machine, until="ranks") == 0
    assert machine.names() == ["demo", "train", "sweep"]


def test_cells_whose_checkpoints_were_removed_have_no_rank(machine: Machine, tmp_path: Path) -> None:
    run(machine, until="cells")
    shutil.rmtree(tmp_path / "runs" / "cells" / "full-lr1e-3" / "checkpoints")
    sweep = study.expand(study.read_definition(tmp_path / "tiny.toml"))
    machine.calls.clear()
    assert study.rank_changes(sweep) == 0
    assert [Path(call[2]).name for call in machine.calls] == ["full-lr2e-3"] * 2


def test_cells_that_diverged_are_a_result(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    diverged = {"status": "failed", "error": "NonFiniteGradients: 10 steps in a row"}
    machine.code, machine.ends = 1, {"full-lr2e-3": diverged}
    assert run(machine) == 0
    assert [Path(call[2]).name for call in machine.calls if call[1] == "rank"] == ["full-lr1e-3"] * 2
    machine.ends["lora"] = {"status": "failed", "error": "OSError: no space left on device"}
    assert run(machine) == 1
    assert "The stage 'cells' ended with exit code 1" in capsys.readouterr().out


def test_a_stop_among_the_cells(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.code = 130
    assert run(machine) == 130
    assert "what was done is kept. Run the same command again" in capsys.readouterr().out
    assert machine.names()[-1] == "sweep"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"at_once": 0}, "--at-once 0: must be at least 1"),
        (
            {"out": Path("docs/study.txt")},
            "--out docs/study.txt: the verdicts are a Markdown file; name one that ends in .md",
        ),
        ({"file": "none.toml"}, "none.toml: no such file"),
        ({"until": "x"}, "--until x: must be one of corpus, base, cells, ranks, collect, claims"),
    ],
)
def test_what_is_wrong(
    machine: Machine, capsys: pytest.CaptureFixture[str], settings: dict[str, object], message: str
) -> None:
    assert run(machine, **settings) == 2  # type: ignore[arg-type]
    assert message in capsys.readouterr().err
    assert machine.calls == []


def test_the_study_itself_can_be_read() -> None:
    names = [stage.title for stage in study.plan_stages(study.SWEEP, 2, None)]
    assert "162 runs, 2 at once" in names
