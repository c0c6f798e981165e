"""Wherever weights, gradients and optimizer state live, a run is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.scenarios import plain_curve
from tests.ranks import run_ranks

pytestmark = pytest.mark.dist

STEPS = 8
REPLICATED = ("--train.placement", "replicated")
OFFLOAD = ("--train.placement", "zero3_offload")
HPZ = ("--train.placement", "zero3_hpz")
LION = ("--optim.kind", "lionw", "--optim.lr", "1e-3", "--optim.weight_decay", "1e-3")
MUON = ("--optim.kind", "muon")


def kind(name: str, *more: str) -> list[str]:
    return ["--adapter.kind", name, *more]


PLAIN = {"none": kind("none"), "lora": kind("lora"), "monteclora": kind("monteclora")}
"""What is compared with ordinary PyTorch, too."""
CASES = {
    **{f"{name} replicated": [*overrides, *REPLICATED] for name, overrides in PLAIN.items()},
    "none offload": kind("none", *OFFLOAD),
    "lora offload": kind("lora", *OFFLOAD),
    "recomputed replicated": kind("monteclora", *REPLICATED, "--model.activation_checkpointing", "full"),
    "bf16 zero3": kind("none", "--train.precision", "bf16"),
    "bf16 replicated": kind("none", "--train.precision", "bf16", *REPLICATED),
    "lion zero3": kind("none", *LION),
    "lion replicated": kind("none", *LION, *REPLICATED),
    "muon zero3": kind("none", *MUON),
    "muon replicated": kind("none", *MUON, *REPLICATED),
    "muon offload": kind("none", *MUON, *OFFLOAD),
}


def column(curve: list[list[Any]], index: int) -> list[Any]:
    return [line[index] for line in curve]


@pytest.fixture(scope="module")
def curves(tiny_recipe: Path) -> dict[str, list[list[Any]]]:
    first, second = run_ranks(
        "tests.distributed.scenarios:curves", 2, recipe=str(tiny_recipe), cases=CASES, steps=STEPS, timeout=480
    )
    for name in CASES:
        assert first[name]["curve"] == second[name]["curve"], "ranks disagree on the step's result"
        assert first[name]["frozen_changed"] == []
    return {name: found["curve"] for name, found in first.items()}


@pytest.fixture(scope="module")
def plain(tiny_recipe: Path) -> dict[str, list[list[Any]]]:
    return {name: plain_curve(str(tiny_recipe), overrides, STEPS) for name, overrides in PLAIN.items()}


@pytest.mark.parametrize(
    ("case", "reference"),
    [*((f"{name} replicated", name) for name in PLAIN), ("none offload", "none"), ("lora offload", "lora"),
     ("recomputed replicated", "monteclora")],
)  # fmt: skip
def test_equal_plain_pytorch(case: str, reference: str, curves: dict[str, Any], plain: dict[str, Any]) -> None:
    ours, theirs = curves[case], plain[reference]
    assert column(ours, 3) == column(theirs, 3), "the batches differ"
    assert column(ours, 0) == pytest.approx(column(theirs, 0), abs=1e-5)
    assert column(ours, 1) == pytest.approx(column(theirs, 1), rel=2e-4)
    if reference == "monteclora":
        assert column(ours, 2) == pytest.approx(column(theirs, 2), rel=1e-5)


@pytest.mark.parametrize(
    ("one", "other", "tolerance"),
    [("bf16 zero3", "bf16 replicated", 5e-3), ("lion zero3", "lion replicated", 1e-5),
     ("muon zero3", "muon replicated", 1e-3), ("muon zero3", "muon offload", 1e-3)],
)  # fmt: skip
def test_placements_agree(one: str, other: str, tolerance: float, curves: dict[str, Any]) -> None:
    assert column(curves[one], 3) == column(curves[other], 3), "the batches differ"
    assert column(curves[one], 0) == pytest.approx(column(curves[other], 0), abs=tolerance)
    assert curves[one][-1][0] < curves[one][0][0] - 0.05, "it learns"


def test_optimizers_differ(curves: dict[str, Any]) -> None:
    last = {name: curves[f"{name} replicated"][-1][0] for name in ("none", "lion", "muon")}
    assert len({round(value, 3) for value in last.values()}) == 3


def test_copies_on_two_nodes(tiny_recipe: Path, plain: dict[str, Any]) -> None:
    cases = {name: [*overrides, *HPZ] for name, overrides in PLAIN.items()}
    ranks = run_ranks(
        "tests.distributed.placement_scenarios:node_copies", 4, local_size=2, timeout=480,
        recipe=str(tiny_recipe), cases=cases, first=3, last=5,
    )  # fmt: skip
    for name in cases:
        found = ranks[0][name]
        assert all(other[name] == found for other in ranks)
        assert column(found["curve"], 0) == pytest.approx(column(plain[name][:5], 0), abs=1e-5)
        # The copies of the loaded weights, not those of the weights before.
        assert found["again"] == found["end"]


def test_a_step_that_one_rank_spoils_changes_nothing(tiny_recipe: Path) -> None:
    cases = {
        f"{placement} {value}": kind("lora" if value == "nan" else "none", "--train.placement", placement)
        for placement in ("zero3", "zero3_offload", "replicated")
        for value in ("nan", "inf")
    }
    first, second = run_ranks(
        "tests.distributed.placement_scenarios:skipped", 2, recipe=str(tiny_recipe), cases=cases, timeout=480
    )
    for name in cases:
        for found in (first[name], second[name]):
            assert not found["is_applied"], name
            assert not found["norm_is_finite"], name
            assert not found["loss_is_finite"], name
            assert found["changed"] == [], name
            assert found["steps"][0] == found["steps"][1], name
            assert found["next"], name


@pytest.mark.parametrize(
    ("saved", "by", "what", "tolerance"),
    [
        ("replicated", ("zero3", "replicated"), kind("monteclora"), 1e-5),
        ("zero3", ("replicated", "zero3_offload"), kind("lora", *LION), 1e-5),
        ("zero3", ("replicated", "zero3"), kind("none", *MUON), 1e-3),
    ],
)
def test_a_run_goes_on_in_another_placement(
    saved: str, by: tuple[str, ...], what: list[str], tolerance: float, tiny_recipe: Path, tmp_path: Path
) -> None:
    common = [*what, "--run.dir", str(tmp_path / "run")]
    first, _ = run_ranks(
        "tests.distributed.placement_scenarios:saved_in", 2, recipe=str(tiny_recipe),
        overrides=[*common, "--train.placement", saved], first=3, last=6,
    )  # fmt: skip
    cases = {placement: [*common, "--train.placement", placement] for placement in by}
    (found,) = run_ranks(
        "tests.distributed.placement_scenarios:resumed_in", 1, recipe=str(tiny_recipe), cases=cases, last=6
    )
    for placement in by:
        assert column(found[placement], 3) == column(first, 3), "the batches differ"
        assert column(found[placement], 0) == pytest.approx(column(first, 0), abs=tolerance)
