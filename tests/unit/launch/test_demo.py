from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch import local
from launch.demo import corpus_settings, run_demo
from tests.unit.training.minimal import write_base
from training.config import to_dict
from training.recipe import load_config

STAGES = ["corpus", "base", "none", "lora", "monteclora", "rank", "collect", "report"]
RANKED = [("training.checkpoint", "rank")] * 3


class Machine:
    """Stands in for the processes: makes the files that each would make, at once, and remembers the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.settings: dict[str, dict[str, str]] = {}
        self.before: Callable[[str], int] = lambda name: 0

    def run_module(self, module: str, *arguments: str) -> int:
        self.calls.append((module, arguments[0]))
        if code := self.before(arguments[0]):
            return code
        if module == "data_pipeline":
            corpus = Path(arguments[arguments.index("--out") + 1])
            for domain in ("prose", "code"):
                (corpus / domain).mkdir(parents=True, exist_ok=True)
                for name in ("train.jsonl", "heldout.jsonl"):
                    (corpus / domain / name).write_text('{"id": "0", "text": "a"}\n')
            (corpus / "tokenizer.model").write_bytes(b"")
        if arguments[0] == "rank":
            weights = Path(arguments[1]) / "weights"
            weights.mkdir()
            (weights / f"rank-{arguments[arguments.index('--step') + 1]}.json").write_text("{}")
        return 0

    def train(self, recipe: Path, ds_config: Path, ranks: int, settings: list[str]) -> int:
        assert ds_config.is_file()
        config = load_config(recipe, settings, world_size=ranks)
        self.calls.append(("train", config.run.dir.name))
        self.settings[config.run.dir.name] = dict(zip(settings[::2], settings[1::2], strict=True))
        if code := self.before(config.run.dir.name):
            return code
        config.run.dir.mkdir(parents=True, exist_ok=True)
        write_base(config.run.dir / "export", max_position_embeddings=1024)
        record = {"schema": 1, "status": "done", "config": to_dict(config), "step": 100, "seconds": 12.3}
        (config.run.dir / "run.json").write_text(json.dumps(record))
        return 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(local, "run_module", found.run_module)
    monkeypatch.setattr(local, "train", found.train)
    return found


def run(out: Path, until: str | None = None, *overrides: str, ranks: int = 2) -> int:
    return run_demo(out, ranks=ranks, until=until, overrides=list(overrides))


def test_the_stages_run_in_order(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 0
    assert machine.calls == [
        ("data_pipeline", "demo"), ("train", "base"), ("train", "none"), ("train", "lora"), ("train", "monteclora"),
        *RANKED, ("evals", "collect"), ("evals", "report"),
    ]  # fmt: skip
    titles = re.findall(r"^(\d)/(\d)  ", capsys.readouterr().out, re.M)
    assert titles == [(str(number), "8") for number in range(1, 9)]


def test_the_methods_differ_in_the_adapter_alone(machine: Machine, tmp_path: Path) -> None:
    run(tmp_path, None, "--train.steps", "30")
    for kind in ("none", "lora", "monteclora"):
        settings = machine.settings[kind]
        assert settings["--adapter.kind"] == kind
        assert settings["--run.dir"] == str(tmp_path / kind)
        assert settings["--model.base"] == str(tmp_path / "base" / "export")
        assert settings["--train.steps"] == "30"
    own = {"--adapter.kind", "--run.dir"}
    shared = [
        {k: v for k, v in machine.settings[kind].items() if k not in own} for kind in ("none", "lora", "monteclora")
    ]
    assert shared[0] == shared[1] == shared[2]


@pytest.mark.parametrize("recipe", ["demo_base.toml", "demo.toml"])
def test_everything_a_demo_recipe_reads_is_in_the_given_corpus(recipe: str, tmp_path: Path, machine: Machine) -> None:
    machine.run_module("data_pipeline", "demo", "--out", str(tmp_path / "corpus"))
    base = write_base(tmp_path / "base", max_position_embeddings=1024)
    model = ["--model.base", str(base)] if recipe == "demo.toml" else []
    config = load_config(local.ROOT / "recipes" / recipe, [*corpus_settings(tmp_path / "corpus", recipe), *model])
    named: list[Any] = [config.data.tokenizer, *(source.path for source in config.data.sources.values())]
    named += [task.path for task in config.eval.tasks.values()]
    assert all(Path(path).is_relative_to(tmp_path / "corpus") for path in named)


@pytest.mark.parametrize("until", STAGES)
def test_it_stops_after_a_stage(machine: Machine, tmp_path: Path, until: str) -> None:
    assert run(tmp_path, until) == 0
    # The stage of ranks is three commands.
    expected = STAGES.index(until) + 1 + 2 * (STAGES.index(until) >= STAGES.index("rank"))
    assert len(machine.calls) == expected


def test_an_unknown_stage(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "full") == 2
    assert (
        capsys.readouterr().err
        == "--until full: must be one of corpus, base, none, lora, monteclora, rank, collect, report\n"
    )
    assert machine.calls == []


def test_what_is_done_is_not_done_again(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "lora")
    machine.calls.clear()
    capsys.readouterr()
    assert run(tmp_path) == 0
    pages = [("evals", "collect"), ("evals", "report")]
    assert machine.calls == [("data_pipeline", "demo"), ("train", "monteclora"), *RANKED, *pages]
    printed = capsys.readouterr().out
    for name in ("base", "none", "lora"):
        assert f"{name}: done already, 100 steps in 12 s" in printed
    machine.calls.clear()
    assert run(tmp_path) == 0
    assert machine.calls == [("data_pipeline", "demo"), *pages]


def test_a_rank_that_fails_ends_it(machine: Machine, tmp_path: Path) -> None:
    machine.before = lambda name: 2 if name == "rank" else 0
    assert run(tmp_path) == 2
    assert machine.calls[-1] == ("training.checkpoint", "rank")


def test_a_run_of_another_recipe_is_refused(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "base") == 0
    machine.calls.clear()
    assert run(tmp_path, "base", "--optim.lr", "1") == 2
    printed = capsys.readouterr().err
    assert f'run.dir = "{tmp_path}/base": belongs to a different recipe' in printed
    assert re.search(r"optim\.lr: \S+ there, 1\.0 here", printed)
    assert "`make demo-clean` starts the demo over." in printed
    assert machine.calls == [("data_pipeline", "demo")]


def test_a_wrong_override_starts_nothing(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, None, "--optim.lrr", "1") == 2
    assert "unknown setting; did you mean optim.lr?" in capsys.readouterr().err
    assert machine.calls == [("data_pipeline", "demo")]


@pytest.mark.parametrize("code", [1, 2, 85, 143])
def test_the_first_failure_ends_it(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    machine.before = lambda name: code if name == "none" else 0
    assert run(tmp_path) == code
    assert machine.calls[-1] == ("train", "none")
    assert f"The stage 'none' ended with exit code {code}; its messages are above." in capsys.readouterr().out


def test_ctrl_c_ends_it_with_the_way_to_continue(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(name: str) -> int:
        if name == "none":
            raise KeyboardInterrupt
        return 0

    machine.before = interrupt
    assert run(tmp_path) == 130
    assert machine.calls[-1] == ("train", "none")
    printed = capsys.readouterr().out
    assert "Stopped; what was done is kept. Run the same command again to continue." in printed
