"""The engine on real ranks against ordinary PyTorch in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.scenarios import plain_curve
from tests.ranks import run_ranks

pytestmark = pytest.mark.dist

STEPS = 20
LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
KINDS = ("none", "lora", "monteclora")


def kind(name: str, *more: str) -> list[str]:
    return ["--adapter.kind", name, *more]


CASES = {
    "none": kind("none"),
    "lora": kind("lora"),
    "monteclora": kind("monteclora"),
    # Every parameter partitioned, none persistent; activations recomputed.
    "monteclora_partitioned": kind("monteclora", "--model.activation_checkpointing", "full"),
    "lora_dropout": kind("lora", "--adapter.dropout", "0.1", "--train.micro_batch_rows", "4"),
    "none_bf16": kind("none", "--train.precision", "bf16"),
}
THRESHOLDS = {"monteclora_partitioned": 0}


@pytest.fixture(scope="module")
def two_ranks(tiny_recipe: Path) -> dict[str, Any]:
    first, second = run_ranks(
        "tests.distributed.scenarios:curves",
        2,
        recipe=str(tiny_recipe),
        cases=CASES,
        steps=STEPS,
        thresholds=THRESHOLDS,
    )
    for name in CASES:
        assert first[name]["curve"] == second[name]["curve"], "ranks disagree on the step's result"
    return first


@pytest.fixture(scope="module")
def one_rank(tiny_recipe: Path) -> dict[str, Any]:
    (only,) = run_ranks("tests.distributed.scenarios:curves", 1, recipe=str(tiny_recipe), cases=CASES, steps=STEPS)
    return only


def column(curve: list[list[Any]], index: int) -> list[Any]:
    return [line[index] for line in curve]


@pytest.mark.parametrize("name", ["none", "lora", "monteclora", "monteclora_partitioned", "lora_dropout"])
def test_two_ranks_equal_plain_pytorch(name: str, two_ranks: dict[str, Any], tiny_recipe: Path) -> None:
    ours, plain = two_ranks[name]["curve"], plain_curve(str(tiny_recipe), CASES[name], STEPS)
    assert column(ours, 3) == column(plain, 3), "the batches differ"
    assert column(ours, 0) == pytest.approx(column(plain, 0), abs=1e-5)
    assert column(ours, 1) == pytest.approx(column(plain, 1), rel=2e-4)
    if "monteclora" in name:
        assert column(ours, 2) == pytest.approx(column(plain, 2), rel=1e-5)
        assert column(ours, 2)[-1] < column(ours, 2)[0], "the penalty trains"
    assert ours[-1][0] < ours[0][0] - (0.2 if name == "none" else 0.05), "it learns"


@pytest.mark.parametrize("name", list(CASES))
def test_one_rank_equals_two(name: str, one_rank: dict[str, Any], two_ranks: dict[str, Any]) -> None:
    ours, theirs = one_rank[name]["curve"], two_ranks[name]["curve"]
    assert column(ours, 3) == column(theirs, 3), "the batches differ"
    assert column(ours, 0) == pytest.approx(column(theirs, 0), abs=1e-2 if "bf16" in name else 1e-5)


def test_methods_see_the_same_batches(two_ranks: dict[str, Any]) -> None:
    hashes = [column(two_ranks[name]["curve"], 3) for name in KINDS]
    assert hashes[0] == hashes[1] == hashes[2]
    assert len(set(hashes[0])) == STEPS


def test_what_trains(two_ranks: dict[str, Any]) -> None:
    layers = [f"model.layers.{k}.{name}" for k in range(2) for name in LINEARS]
    trainable = {name: two_ranks[name]["trainable"] for name in KINDS}
    assert set(trainable["lora"]) == {f"{layer}.{part}" for layer in layers for part in ("lora_A", "lora_B")}
    assert set(trainable["monteclora"]) == set(trainable["lora"]) | {
        f"model.layers.{k}.monteclora.{part}" for k in range(2) for part in ("log_std", "log_concentration")
    }
    norms = [f"model.layers.{k}.{n}_layernorm.weight" for k in range(2) for n in ("input", "post_attention")]
    expected = {
        *(f"{layer}.weight" for layer in layers),
        *norms,
        "model.norm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    }
    assert set(trainable["none"]) == expected

    def count(shapes: dict[str, list[int]]) -> int:
        return sum(shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in shapes.values())

    # hidden 32, intermediate 64, 2 of 4 heads for keys and values, 512 tokens, 2 layers, rank 4, 4 mixture samples.
    per_layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    assert count(trainable["none"]) == 2 * (per_layer + 2 * 32) + 32 + 2 * 512 * 32
    lora = 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert count(trainable["lora"]) == lora
    assert count(trainable["monteclora"]) == lora + 2 * 7 * (4 + 4)


def test_frozen_stays_frozen(two_ranks: dict[str, Any]) -> None:
    assert two_ranks["lora"]["frozen_changed"] == []
    assert two_ranks["monteclora"]["frozen_changed"] == []
