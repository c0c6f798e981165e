from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evals.config import EvalConfig, TaskConfig
from evals.errors import EvalError
from tests.unit.training.minimal import minimal_config
from training.config import Config
from training.evaluation import Evaluation, check_inputs
from training.recipe import ConfigError


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
    Evaluation(engine, unused, config, unused, unused).drop_after(8)
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
    evaluation = Evaluation(unused, unused, config, unused, unused)
    assert [step for step in range(21) if evaluation.is_due(step)] == due
