from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import DataConfig
from evals.config import EvalConfig
from tests.unit.training.minimal import minimal_config, problems_of, write_recipe
from training.config import AdapterConfig, CheckpointConfig, Config, OptimConfig, TrainConfig, to_dict
from training.length import GRAMMAR, is_length_known, needs_epoch, parse_length, resolve, steps_in


def config_of(train: dict[str, Any] | None = None, optim: dict[str, Any] | None = None, seq_len: int = 100) -> Config:
    return Config(
        data=DataConfig(sources={}, tokenizer=Path("x"), seq_len=seq_len),
        train=TrainConfig(**{"global_batch_rows": 10, **(train or {})}),
        optim=OptimConfig(**(optim or {})),
    )


def lengths(config: Config) -> tuple[int, int, int]:
    return config.train.steps, config.optim.warmup_steps, config.optim.cooldown_steps


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("10 %", 10, "%"), ("10%", 10, "%"), ("0.5 epochs", Fraction(1, 2), "epoch"), ("1 epoch", 1, "epoch"),
        ("2e9 tokens", 2 * 10**9, "token"), ("20_000_000 tokens", 2 * 10**7, "token"), ("1 token", 1, "token"),
        ("100 steps", 100, "step"), (" 1 step ", 1, "step"), ("1.5E+3 steps", 1500, "step"), ("0 %", 0, "%"),
        ("0.1 %", Fraction(1, 10), "%"),
    ],
)  # fmt: skip
def test_what_a_length_is(text: str, number: Fraction, unit: str) -> None:
    assert parse_length(text) == (number, unit)


@pytest.mark.parametrize(
    "text", ["", "100", "%", "ten %", "-1 %", "10 percent", "1 hour", "1e9999 tokens", "1__0 steps", "nan %", "1 %%", ".5 %"]
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no length; write a number and its unit") as error:
        parse_length(text)
    assert GRAMMAR in str(error.value)


@pytest.mark.parametrize(
    ("train", "optim", "expected"),
    [
        # A step is 10 rows of 100 tokens.
        ({"steps": 7}, {"warmup_steps": 2}, (7, 2, 0)),
        ({"tokens": 7000}, {}, (7, 0, 0)), ({"tokens": 7001}, {}, (8, 0, 0)), ({"tokens": 1}, {}, (1, 0, 0)),
        # An epoch is 45 rows: 4.5 steps.
        ({"epochs": 2.0}, {}, (9, 0, 0)), ({"epochs": 1.0}, {}, (5, 0, 0)), ({"epochs": 0.01}, {}, (1, 0, 0)),
        ({"steps": 200}, {"warmup": "10 %", "cooldown": "25 %"}, (200, 20, 50)),
        ({"steps": 200}, {"warmup": "2e4 tokens", "cooldown": "2 epochs"}, (200, 20, 9)),
        ({"steps": 200}, {"warmup": "3 steps", "cooldown": "0.1 %"}, (200, 3, 1)),
        ({"steps": 200}, {"warmup": "0 %"}, (200, 0, 0)), ({"steps": 200}, {"warmup": "1 token"}, (200, 1, 0)),
        ({"tokens": 200_000}, {"warmup": "1 %", "cooldown": "5000 tokens"}, (200, 2, 5)),
        ({"epochs": 20.0}, {"warmup": "10 %", "cooldown": "1.0 epochs"}, (90, 9, 4)),
    ],
)  # fmt: skip
def test_lengths_in_steps(train: dict[str, Any], optim: dict[str, Any], expected: tuple[int, int, int]) -> None:
    resolved = resolve(config_of(train, optim), 45)
    assert lengths(resolved) == expected


def test_the_run_of_the_study() -> None:
    train = {"tokens": 20_000_000_000, "global_batch_rows": 192}
    optim = {"schedule": "trapezoid", "warmup_steps": 1000, "cooldown": "20 %"}
    assert lengths(resolve(config_of(train, optim, seq_len=4096), None)) == (25_432, 1000, 5086)


@pytest.mark.parametrize(
    ("train", "every", "steps"),
    [
        ({"steps": 200}, "5 %", 10),
        ({"steps": 200}, "1 epoch", 2),
        ({"tokens": 200_000}, "25e3 tokens", 25),
        # 0.5 steps: one is the least
        ({"steps": 200}, "500 tokens", 1),
        ({"steps": 200}, None, 7),
    ],
)
def test_evaluations_on_the_way(train: dict[str, Any], every: str | None, steps: int) -> None:
    config = config_of(train, {})
    settings = EvalConfig(every_steps=7) if every is None else EvalConfig(every=every)
    config = dataclasses.replace(config, eval=settings)
    assert needs_epoch(config) == ("epoch" in (every or ""))
    assert resolve(config, 18).eval.every_steps == steps


def test_points_at_which_the_model_is_scored() -> None:
    at = dataclasses.replace(config_of({"tokens": 200_000}, {}), eval=EvalConfig(at=("500 tokens", "50 %", "2 epochs")))
    assert needs_epoch(at)
    assert resolve(at, None).eval.at_steps == (1, 100)
    assert resolve(at, 18).eval.at_steps == (1, 100, 4)
    assert resolve(resolve(at, 18), 18).eval.at_steps == (1, 100, 4)
    assert resolve(dataclasses.replace(at, eval=EvalConfig(at_steps=(3, 5))), 18).eval.at_steps == (3, 5)


def test_what_needs_the_data_stays_without_them() -> None:
    by_epochs = config_of({"epochs": 2.0}, {"warmup": "10 %", "cooldown": "5000 tokens"})
    assert lengths(resolve(by_epochs, None)) == (1000, 0, 5)
    by_steps = config_of({"steps": 50}, {"warmup": "10 %", "cooldown": "1 epoch"})
    assert lengths(resolve(by_steps, None)) == (50, 5, 0)
    assert [is_length_known(config) for config in (by_epochs, by_steps)] == [False, True]
    assert needs_epoch(by_epochs)
    assert needs_epoch(by_steps)
    assert not needs_epoch(config_of({"tokens": 5}, {"warmup": "10 %"}))


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ({"keep_at": ("5 steps", "1 epoch")}, True), ({"keep_every": "0.5 epochs"}, True),
        ({"keep_at": ("5 steps",), "keep_every": "5 %"}, False),
    ],
)  # fmt: skip
def test_points_in_epochs_need_those_of_the_data(checkpoint: dict[str, Any], expected: bool) -> None:
    config = dataclasses.replace(config_of(), checkpoint=CheckpointConfig(**checkpoint))
    assert needs_epoch(config) is expected


def test_a_length_in_steps_is_exact() -> None:
    config = config_of({"epochs": 0.5})
    in_steps = [steps_in(text, config, 101) for text in ("1500 tokens", "1 epoch", "7 steps", "10 %")]
    assert in_steps == [Fraction(3, 2), Fraction(101, 10), 7, Fraction(6, 10)]
    assert [steps_in(text, config, None) for text in ("1500 tokens", "1 epoch", "10 %")] == [Fraction(3, 2), None, None]


units = st.sampled_from(["%", "steps", "tokens", "epochs"])
parts = st.none() | st.builds(lambda number, unit: f"{number} {unit}", st.decimals(0, 10**4, places=2), units)


@given(
    steps=st.integers(1, 10**6), tokens=st.none() | st.integers(1, 10**12), epochs=st.none() | st.floats(0.01, 100),
    warmup=parts, cooldown=parts, rows=st.integers(1, 2000), seq_len=st.integers(8, 10**5),
    rows_per_epoch=st.integers(1, 10**9),
)  # fmt: skip
def test_only_steps_change_and_once_is_enough(
    steps: int, tokens: int | None, epochs: float | None, warmup: str | None, cooldown: str | None, rows: int, seq_len: int,
    rows_per_epoch: int,
) -> None:  # fmt: skip
    train = {"steps": steps, "tokens": tokens, "epochs": None if tokens else epochs, "global_batch_rows": rows}
    config = config_of(train, {"warmup": warmup, "cooldown": cooldown}, seq_len)
    once = resolve(config, rows_per_epoch)
    assert resolve(once, rows_per_epoch) == once
    before, after = to_dict(config), to_dict(once)
    run = after["train"].pop("steps")
    before["train"].pop("steps")
    for part in ("warmup", "cooldown"):
        found = after["optim"].pop(f"{part}_steps")
        before["optim"].pop(f"{part}_steps")
        written = config.optim.warmup if part == "warmup" else config.optim.cooldown
        number, unit = written.split(" ") if written else ("0", "steps")
        rate = {"%": run / 100, "steps": 1, "tokens": 1 / (rows * seq_len), "epochs": rows_per_epoch / rows}[unit]
        assert found == pytest.approx(float(number) * rate, rel=1e-9, abs=1.0 if 0 < float(number) * rate < 1 else 0.51)
        assert (found == 0) == (float(number) == 0)
    assert before == after
    if tokens:
        assert (run - 1) * rows * seq_len < tokens <= run * rows * seq_len
    elif epochs:
        assert run == pytest.approx(max(1, math.ceil(epochs * rows_per_epoch / rows)), abs=1, rel=1e-9)
    else:
        assert run == steps


class TestProblems:
    def found(self, tmp_path: Path, **sections: Any) -> list[tuple[str, str]]:
        return list(dataclasses.replace(minimal_config(tmp_path), **sections).problems())

    def test_parts_are_compared_with_the_run_they_are_parts_of(self, tmp_path: Path) -> None:
        # Steps of 12 rows of 64 tokens.
        train = TrainConfig(tokens=20 * 12 * 64, global_batch_rows=12)
        optim = OptimConfig(schedule="trapezoid", warmup="12 steps", cooldown="50 %")
        assert self.found(tmp_path, train=train, optim=optim) == [
            ("optim.warmup", "and the cooldown are longer than the run: 12 + 10 > 20 steps")
        ]
        assert self.found(tmp_path, train=train, optim=dataclasses.replace(optim, warmup="10 steps")) == []
        assert self.found(tmp_path, train=train, optim=OptimConfig(warmup="110 %")) == [
            ("optim.warmup", "and the cooldown are longer than the run: 22 + 0 > 20 steps")
        ]

    def test_a_run_in_epochs_is_compared_once_they_are_counted(self, tmp_path: Path) -> None:
        train, optim = TrainConfig(epochs=2.0, global_batch_rows=12), OptimConfig(warmup_steps=5000)
        adapter = AdapterConfig(kind="monteclora", start_step=7000)
        assert self.found(tmp_path, train=train, optim=optim, adapter=adapter) == []
        config = dataclasses.replace(minimal_config(tmp_path), train=train, optim=optim, adapter=adapter)
        assert list(resolve(config, 600).length_problems()) == [
            ("optim.warmup_steps", "and the cooldown are longer than the run: 5000 + 0 > 100 steps"),
            ("adapter.start_step", "is never reached: the run has 100 steps; give a smaller number"),
        ]

    def test_the_cooperative_phase_begins_in_the_run_as_its_tokens_make_it(self, tmp_path: Path) -> None:
        train = TrainConfig(tokens=5 * 12 * 64, global_batch_rows=12)
        adapter = AdapterConfig(kind="monteclora", start_step=5)
        assert self.found(tmp_path, train=train, adapter=adapter) == [
            ("adapter.start_step", "is never reached: the run has 5 steps; give a smaller number")
        ]

    @pytest.mark.parametrize(
        "setting",
        [
            "--train.tokens=0",
            "--train.global_batch_rows=0",
            "--data.seq_len=2",
            "--optim.cooldown=soon",
            "--train.steps=x",
        ],
    )
    def test_nothing_is_compared_with_a_length_out_of_range(self, tmp_path: Path, setting: str) -> None:
        found = problems_of(write_recipe(tmp_path), "--optim.warmup_steps", "99999", setting)
        assert not any("longer than the run" in problem for problem in found)
        # A problem elsewhere hides nothing.
        found = problems_of(write_recipe(tmp_path), "--optim.warmup_steps", "99999", "--optim.lr", "0")
        assert any("longer than the run: 99999 + 0 > 20 steps" in problem for problem in found)

    def test_as_they_are_told(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path)
        assert problems_of(recipe, "--optim.warmup", "a tenth") == [
            f'optim.warmup = "a tenth" (command line): is no length; {GRAMMAR}'
        ]
        assert problems_of(recipe, "--train.tokens", "9", "--train.epochs", "1") == [
            "train.epochs = 1.0 (command line): says how long the run is, and so does tokens; set one of them"
        ]
        epochs = ("--train.epochs", "1", "--train.steps", "5")
        assert problems_of(recipe, *epochs) == [
            "train.steps = 5 (command line): would be ignored: train.epochs is set; add --train.epochs none"
        ]
        text = recipe.read_text().replace("steps = 20", "steps = 20\ntokens = 9999")
        (tmp_path / "tokens.toml").write_text(text)
        assert problems_of(tmp_path / "tokens.toml", "--train.steps", "5") == [
            "train.steps = 5 (command line): would be ignored: train.tokens is set; add --train.tokens none"
        ]
        assert problems_of(tmp_path / "tokens.toml", "--train.steps", "5", "--train.tokens", "none") == []
        assert problems_of(tmp_path / "tokens.toml") == []
        assert problems_of(recipe, "--optim.warmup", "30 steps") == [
            'optim.warmup = "30 steps" (command line): and the cooldown are longer than the run: 30 + 0 > 20 steps'
        ]
