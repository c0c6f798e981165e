"""Comparisons of whole models: what is compared, what is found, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evals.errors import EvalError
from evals.weights.folder import Folder
from evals.weights.rank import NotFiniteError, Settings, rank_of_change
from evals.weights.spectrum import LowRank

Weights = Callable[..., Any]


def model(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sides = {"self_attn.q_proj": (12, 10), "self_attn.k_proj": (4, 10), "mlp.down_proj": (10, 20)}
    tensors = {
        f"layers.{layer}.{module}.weight": torch.randn(shape, generator=generator)
        for layer in (0, 10, 2)
        for module, shape in sides.items()
    }
    tensors["embed_tokens.weight"] = torch.randn(30, 10, generator=generator)
    return tensors | {"norm.weight": torch.randn(10, generator=generator), "experts": torch.ones(2, 3, 4)}


def k_of(matrix: Tensor, share: float) -> int:
    """By numpy, in fp64."""
    squares = np.square(np.linalg.svd(matrix.double().numpy(), compute_uv=False))
    return int(np.searchsorted(np.cumsum(squares) / squares.sum(), share) + 1)


class TestFullFinetuning:
    def test_the_document(self, in_memory: Weights) -> None:
        before, change = model(), model(1)
        after = {name: value + 0.01 * change[name] for name, value in before.items()}
        after["layers.2.self_attn.k_proj.weight"] = before["layers.2.self_attn.k_proj.weight"]
        found = rank_of_change(in_memory(before, "base"), in_memory(after, "run"), Settings(share=0.8), step=7)
        assert (found["schema"], found["share"], found["step"]) == (1, 0.8, 7)
        assert (found["before"], found["after"]) == ("base", "run")
        assert (found["modules"], found["layers"]) == (["q_proj", "k_proj", "down_proj"], [0, 2, 10])
        for i, layer in enumerate(found["layers"]):
            for j, module in enumerate(("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")):
                name = f"layers.{layer}.{module}.weight"
                difference = after[name] - before[name]
                wanted = k_of(difference, 0.8) if difference.any() else 0
                assert found["rank"][i][j] == wanted
                assert found["full_rank"][i][j] == min(difference.shape)
                relative = float(difference.norm() / before[name].norm())
                assert found["relative_change"][i][j] == pytest.approx(relative, rel=1e-5)
        assert found["max_rank"] == 10
        assert found["left_out"] == {"no_matrix": 2, "tied": 0}
        assert found["notes"] == ["1 of 10 matrices did not change at all; their rank is 0."]
        assert [row["name"] for row in found["rows"]][-1] == "embed_tokens.weight"
        for row in found["rows"]:
            difference = after[row["name"]] - before[row["name"]]
            assert row["rank"]["before"] == k_of(before[row["name"]], 0.8)
            assert row["rank"]["after"] == k_of(after[row["name"]], 0.8)
            assert row["norm"]["after"] == pytest.approx(float(after[row["name"]].norm()), rel=1e-5)
            assert row["is_unchanged"] == (not difference.any())
            assert row["at_most"] is None

    def test_a_module_that_a_layer_does_not_have_is_null(self, in_memory: Weights) -> None:
        before = model()
        del before["layers.10.mlp.down_proj.weight"]
        found = rank_of_change(in_memory(before), in_memory(before))
        assert found["rank"] == [[0, 0, 0], [0, 0, 0], [0, 0, None]]
        assert found["relative_change"][2] == [0.0, 0.0, None]

    def test_at_most_two_matrices_are_alive(self, in_memory: Weights) -> None:
        before, after = in_memory(model()), in_memory(model(1))
        rank_of_change(before, after)
        assert before.most_alive == after.most_alive == 1
        assert not before.alive
        assert not after.alive

    def test_only_the_change(self, in_memory: Weights) -> None:
        before, after = in_memory(model()), in_memory(model(1))
        in_full, found = rank_of_change(before, after), rank_of_change(before, after, Settings(only_change=True))
        assert found["rank"] == in_full["rank"]
        assert found["relative_change"] == in_full["relative_change"]
        assert (
            {row["rank"]["before"] for row in found["rows"]}
            == {row["rank"]["after"] for row in found["rows"]}
            == {None}
        )

    def test_a_matrix_of_zeros_before(self, in_memory: Weights) -> None:
        found = rank_of_change(in_memory({"a.weight": torch.zeros(3, 3)}), in_memory({"a.weight": torch.eye(3)}))
        (row,) = found["rows"]
        assert (row["rank"], row["relative_change"]) == ({"before": 0, "after": 3, "change": 3}, None)
        assert (found["layers"], found["modules"], found["rank"]) == ([], [], [])


def test_factors_are_taken_where_the_base_is_the_same(in_memory: Weights) -> None:
    tensors, name = model(), "layers.0.self_attn.q_proj.weight"
    low = LowRank(B=torch.randn(12, 2), A=torch.randn(2, 10))
    nothing = {each: LowRank.zeros(*value.shape) for each, value in tensors.items() if value.dim() == 2}
    updates = nothing | {name: low}
    del updates["embed_tokens.weight"]  # trained in full
    after = tensors | {name: tensors[name] + low.dense(), "embed_tokens.weight": 2 * tensors["embed_tokens.weight"]}
    sides = in_memory(tensors, base="x", updates=nothing), in_memory(after, base="x", updates=updates)
    found = rank_of_change(*sides)
    rows = {row["name"]: row for row in found["rows"]}
    assert (rows[name]["at_most"], rows[name]["numerical_rank"]["change"]) == (2, 2)
    assert rows["embed_tokens.weight"]["at_most"] is None
    assert rows["embed_tokens.weight"]["relative_change"] == pytest.approx(1)
    assert sum(row["is_unchanged"] for row in found["rows"]) == 8
    # What nothing was added to is neither read nor decomposed twice.
    assert sorted(sides[1].read_names) == sorted([name, "embed_tokens.weight"])
    sides[1].base = "y"
    assert {row["at_most"] for row in rank_of_change(*sides)["rows"]} == {None}


def test_rows_that_are_known_are_not_computed_again(in_memory: Weights) -> None:
    before, after, seen = in_memory(model()), in_memory(model(1)), []
    in_full = rank_of_change(before, after, on_row=seen.append)
    assert [row["name"] for row in seen] == [row["name"] for row in in_full["rows"]]
    before.read_names.clear()
    told: list[tuple[int, int, str]] = []
    known = {row["name"]: row for row in seen[:-2]}
    again = rank_of_change(before, after, done=known, report=lambda *state: told.append(state))
    assert before.read_names == [row["name"] for row in seen[-2:]]
    assert [name for _, _, name in told] == before.read_names
    assert told[-1][0] == told[-1][1] == 10 * 20 * 10 + 30 * 10 * 10
    for row in (*again["rows"], *in_full["rows"]):
        row.pop("seconds")
    assert again == in_full


def test_the_spectrum_of_w_before_is_taken_over(in_memory: Weights) -> None:
    before, after = in_memory(model()), in_memory(model(1))
    earlier = {row["name"]: row for row in rank_of_change(before, in_memory(model(2)))["rows"]}
    for row in earlier.values():
        row["rank"]["before"] = 77
    found = rank_of_change(before, after, earlier=earlier)
    assert {row["rank"]["before"] for row in found["rows"]} == {77}
    assert found["rank"] == rank_of_change(before, after)["rank"]


def test_rounding_is_told_from_a_change(in_memory: Weights) -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(64, 64, generator=generator).bfloat16().float()
    change = torch.randn(64, 2, generator=generator) @ torch.randn(2, 64, generator=generator)
    ranks, is_rounding = [], []
    for size in (1e-4, 1e-3, 1e-2, 1e-1):
        after = (before + size * change).bfloat16().float()
        found = rank_of_change(
            in_memory({"a.weight": before}), in_memory({"a.weight": after}, epsilon=2.0**-7), Settings(only_change=True)
        )
        (row,) = found["rows"]
        ranks.append(row["rank"]["change"])
        is_rounding.append(row["is_rounding"])
        assert any("mostly that of rounding" in note for note in found["notes"]) == row["is_rounding"]
    assert ranks[-1] <= 2 < 10 < ranks[0]
    assert is_rounding == [True, True, False, False]
    assert all(wrong or k <= 2 for wrong, k in zip(is_rounding, ranks, strict=True))


def test_folders(base_folder: Path, trained_folder: Path) -> None:
    found = rank_of_change(Folder(base_folder), Folder(trained_folder))
    assert found["modules"] == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert found["rank"][1][1] == 0
    # Noise has all directions.
    assert min(k for row in found["rank"] for k in row if k) >= 8
    assert found["left_out"] == {"no_matrix": 5, "tied": 0}
    assert [row["module"] for row in found["rows"]][-2:] == ["embed_tokens", "lm_head"]


class TestRefusals:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_no_numbers(self, in_memory: Weights, value: float) -> None:
        after = model()
        after["layers.2.self_attn.q_proj.weight"][3, 3] = value
        wrong = (
            r"run: layers.2.self_attn.q_proj.weight has values that are infinite or no numbers: the training diverged"
        )
        with pytest.raises(NotFiniteError, match=wrong):
            rank_of_change(in_memory(model()), in_memory(after, "run"))
        low = LowRank(B=torch.full((4, 1), value), A=torch.ones(1, 10))
        names = {"layers.0.self_attn.k_proj.weight": torch.ones(4, 10)}
        zero = {name: LowRank.zeros(4, 10) for name in names}
        sides = in_memory(names, updates=zero), in_memory(names, "run", updates=dict.fromkeys(names, low))
        with pytest.raises(NotFiniteError, match=r"run: layers.0.self_attn.k_proj.weight has values"):
            rank_of_change(*sides, Settings(only_change=True))

    @pytest.mark.parametrize("share", [0.0, 1.0, 90.0, float("nan")])
    def test_shares(self, share: float) -> None:
        with pytest.raises(EvalError, match=r"share .*: must be between 0 and 1, such as 0.9"):
            Settings(share=share)
