from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.sweep.names import LONGEST, cell_names, labels, number, path_safe, text_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "1e-5"), (2.5e-5, "2.5e-5"), (1e-4, "1e-4"), (0.001, "1e-3"), (0.01, "0.01"), (0.05, "0.05"), (0.125, "0.125"),
        (1.0, "1"), (0.0, "0"), (3.5, "3.5"), (100.0, "100"), (1e5, "1e5"), (2e10, "2e10"), (-1e-5, "-1e-5"), (-2.0, "-2"),
        (0, "0"), (2000, "2000"), (20_000_000_000, "20000000000"), (True, "true"), (1e-300, "1e-300"), (123456.0, "123456"),
    ],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_number_loses_anything(value: float) -> None:
    assert float(number(value)) == value


@given(st.integers())
def test_whole_numbers_stay_whole(value: int) -> None:
    assert int(number(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "none"), (False, "false"), ("10 %", "10 %"), (("a", "b"), "a,b"), (Path("/x/y"), "/x/y"),
     ({"*.mlp.*": 64, 'a"b': 0.5}, '{"*.mlp.*" = 64, "a\\"b" = 0.5}')],
)  # fmt: skip
def test_values_as_the_command_line_reads_them(value: Any, text: str) -> None:
    assert text_of(value) == text


def test_axes_are_called_by_their_last_part_or_as_much_as_tells_them_apart() -> None:
    axes = ["optim.lr", "run.seed", "data.seed", "data.sources.a.weight", "data.sources.b.weight"]
    assert list(labels(axes).values()) == ["lr", "run_seed", "data_seed", "a_weight", "b_weight"]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"method": "lora", "optim.lr": 1e-4, "run.seed": 2}, "lora-lr1e-4-seed2"),
        ({"optim.lr": 1e-4}, "lr1e-4"),
        ({"method": "full"}, "full"),
        ({"optim.beta1": 0.9}, "beta1_0.9"),
        ({"optim.final_lr_fraction": -1.0}, "final_lr_fraction_-1"),
        ({"optim.schedule": "cosine"}, "schedule_cosine"),
        ({"hidden_key.enabled": True}, "enabled_true"),
        ({"model.base": "/models/Llama-2-7b-hf"}, "base_Llama-2-7b-hf"),
        ({"model.base": "meta-llama/Llama-2-7b"}, "base_Llama-2-7b"),
        ({"adapter.init_from": Path("/a/b c")}, "init_from_b_c"),
        ({"optim.warmup": "10 %"}, "warmup_10_"),
        ({"train.epochs": None}, "epochs_none"),
    ],
)
def test_names(values: dict[str, Any], name: str) -> None:
    assert cell_names([values]) == [name]


def test_values_that_look_the_same_are_told_apart() -> None:
    one, other, third = cell_names([{"model.base": "/a/llama"}, {"model.base": "/b/llama"}, {"model.base": "/b/other"}])
    assert one != other
    assert all(re.fullmatch(r"base_llama-[0-9a-f]{6}", name) for name in (one, other))
    assert third == "base_other"


def test_a_long_name_is_cut_and_stays_unique() -> None:
    names = cell_names([{"method": "m" * 300, "run.seed": seed} for seed in (1, 2)])
    assert len(set(names)) == 2
    assert all(len(name) <= LONGEST + 7 for name in names)


VALUES = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8), st.booleans())


@given(st.lists(VALUES, min_size=1, unique_by=repr), st.lists(VALUES, min_size=1, unique_by=repr))
def test_names_are_unique_and_safe_as_folders(first: list[Any], second: list[Any]) -> None:
    names = cell_names([{"method": "m", "a.x": one, "a.y": other} for one in first for other in second])
    assert len(set(names)) == len(names) == len(first) * len(second)
    assert all(path_safe(name) == name and name.startswith("m-") and len(name) < 200 for name in names)
