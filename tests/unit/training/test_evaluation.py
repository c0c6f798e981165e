from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evals.config import EvalConfig, TaskConfig
from evals.errors import EvalError
from tests.unit.training.minimal import minimal_config
from training import evaluation
from training.config import Config
from training.evaluation import Evaluation, check_inputs
from training.progress import Progress
from training.recipe import ConfigError
from training.record.unwritten import Unwritten


def tokenizer(vocab_size: int, bos_id: int | None) -> Any:
    return SimpleNamespace(vocab_size=vocab_size, bos_id=bos_id)


def random_model(tmp_path: Path) -> Config:
    config = minimal_config(tmp_path)
    model = dataclasses.replace(config.model, base=None)
    return dataclasses.replace(config, model=model, eval=EvalConfig())


def test_a_tokenizer_that_fits(tmp_path: Path) -> None:
    config = random_model(tmp_path)
    size = config.vocab_size()
    assert size is not None
    check_inputs(tokenizer(size, 1), config)
    check_inputs(tokenizer(size - 1, 1), config)


def test_every_contradiction_is_named(tmp_path: Path) -> None:
    config = random_model(tmp_path)
    task = TaskConfig(kind="bits_per_byte", domain="new", path=tmp_path / "heldout.jsonl")
    config = dataclasses.replace(config, eval=EvalConfig(tasks={"new": task}))
    size = config.vocab_size()
    assert size is not None
    with pytest.raises(ConfigError) as caught:
        check_inputs(tokenizer(size + 1, None), config)
    named = f'data.tokenizer = "{config.data.tokenizer}"'
    assert caught.value.problems == [
        f"{named}: has {size + 1} ids, the model knows only {size}",
        f"{named}: has no BOS token, which the tasks of [eval] start with",
    ]


@pytest.mark.parametrize(("rank", "left"), [(0, ["0", "8"]), (1, ["0", "12", "8", "9"])])
def test_scores_of_steps_that_will_come_again_are_dropped(tmp_path: Path, rank: int, left: list[str]) -> None:
    config = minimal_config(tmp_path)
    folder = config.run.dir / "evals"
    folder.mkdir(parents=True)
    for step in (0, 8, 9, 12):
        (folder / f"{step}.json").touch()
    engine: Any = SimpleNamespace(world=SimpleNamespace(rank=rank))
    unused: Any = None
    Evaluation(engine, unused, config, unused, unused, unused, Unwritten(print)).drop_after(8)
    assert sorted(path.stem for path in folder.iterdir()) == left


def test_held_out_files_are_read_before_the_start(tmp_path: Path) -> None:
    config = random_model(tmp_path)
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "a", "text": "x"}\n{"id"\n')
    task = TaskConfig(kind="bits_per_byte", domain="new", path=path)
    config = dataclasses.replace(config, eval=EvalConfig(tasks={"new": task}, at_start=False))
    encoder: Any = SimpleNamespace(vocab_size=8, bos_id=1, encode=lambda text: [2] * len(text))
    with pytest.raises(EvalError, match=r"bad\.jsonl:2"):
        check_inputs(encoder, config)


@pytest.mark.parametrize(
    ("at_start", "every", "due"),
    [(True, 0, [0, 20]), (False, 0, [20]), (True, 8, [0, 8, 16, 20]), (False, 5, [5, 10, 15, 20])],
)
def test_when_the_model_is_scored(tmp_path: Path, at_start: bool, every: int, due: list[int]) -> None:
    config = random_model(tmp_path)
    assert config.train.steps == 20
    config = dataclasses.replace(config, eval=EvalConfig(at_start=at_start, every_steps=every))
    unused: Any = None
    evaluation = Evaluation(unused, unused, config, unused, unused, unused, Unwritten(print))
    assert [step for step in range(21) if evaluation.is_due(step)] == due


class FakeAdapter:
    """Remembers which draws it was asked for."""

    def __init__(self) -> None:
        self.drawn: list[tuple[int, int]] = []

    def sampled(self, index: int, seed: int) -> Any:
        self.drawn.append((index, seed))
        return nullcontext()


@pytest.mark.parametrize(
    ("kind", "samples", "passed"), [("monteclora", 3, 3), ("monteclora", 0, 0), ("lora", 3, 0), ("none", 3, 0)]
)
def test_only_monteclora_is_sampled_and_with_the_runs_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, samples: int, passed: int
) -> None:
    config = minimal_config(tmp_path)
    config = dataclasses.replace(
        config,
        adapter=dataclasses.replace(config.adapter, kind=kind),
        eval=dataclasses.replace(config.eval, posterior_samples=samples),
    )
    given: dict[str, Any] = {}
    config.run.dir.mkdir()
    monkeypatch.setattr(evaluation, "evaluate", lambda model, **settings: given.update(settings) or {})
    adapter = None if kind == "none" else FakeAdapter()
    engine: Any = SimpleNamespace(
        world=SimpleNamespace(rank=0, size=1), adapter=adapter, placement=SimpleNamespace(model=None), device="cpu"
    )
    monkeypatch.setattr(evaluation.distributed, "any_rank", bool)
    shown: list[tuple[int, Any]] = []
    monitors: Any = SimpleNamespace(write_scores=lambda step, results: shown.append((step, results)))
    unused: Any = SimpleNamespace(evaluating=None, cross=lambda what: False)
    encoder: Any = SimpleNamespace(bos_id=1, encode=list)
    assert Evaluation(engine, encoder, config, unused, unused, monitors, Unwritten(print)).run(Progress())
    assert shown == [(0, {})]
    assert given["posterior_samples"] == passed
    if passed:
        assert adapter is not None
        with given["sampled"](2):
            assert adapter.drawn == [(2, config.run.seed)]
    else:
        assert given["sampled"] is None
