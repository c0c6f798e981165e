from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from data_pipeline.stream.token_stream import Row, RowDocument
from tests.unit.training.minimal import problems_of, write_base, write_recipe
from training.batches import MicroBatch, StepBatch, stack
from training.errors import ModelError
from training.model.loss import IGNORE
from training.model.sequence_parallel import SHARED_ATTENTION, around, shard, shard_step, use_shared_rows


def group(size: int = 2, rank: int = 0) -> Any:
    return SimpleNamespace(size=size, rank=rank, process_group=None)


def micro_batch(rows: int, seq_len: int, seed: int) -> MicroBatch:
    """Random rows of several documents, of which some positions have no target."""
    random = np.random.default_rng(seed)

    def row(lane: int) -> Row:
        starts = np.sort(random.choice(np.arange(1, seq_len), size=random.integers(0, min(4, seq_len)), replace=False))
        positions = np.concatenate([np.arange(len(part)) for part in np.split(np.arange(seq_len), starts)])
        labels = np.where(random.random(seq_len) < 0.7, random.integers(0, 100, seq_len), IGNORE)
        return Row(lane=lane, input_ids=random.integers(0, 100, seq_len), labels=labels, position_ids=positions)

    return stack([row(lane) for lane in range(rows)])


def labels_of(micro: MicroBatch) -> torch.Tensor:
    """The labels that a micro-batch came from, [rows, its positions]."""
    labels = torch.full((micro.input_ids.numel(),), IGNORE)
    labels[micro.target_index] = micro.targets
    return labels.view(micro.input_ids.shape)


@given(rows=st.integers(1, 3), width=st.integers(1, 5), parts=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_parts_side_by_side_are_the_rows(rows: int, width: int, parts: int, seed: int) -> None:
    whole = micro_batch(rows, max(2, width) * parts, seed)
    found = [shard(whole, part, parts) for part in range(parts)]
    for name in ("input_ids", "position_ids"):
        assert torch.equal(torch.cat([getattr(part, name) for part in found], dim=1), getattr(whole, name))
        assert {getattr(part, name).shape for part in found} == {(rows, max(2, width))}
    assert torch.equal(torch.cat([labels_of(part) for part in found], dim=1), labels_of(whole))
    assert sum(part.pairs for part in found) == whole.pairs
    assert max(part.pairs for part in found) - min(part.pairs for part in found) <= 1
    for part in found:
        assert part.target_index.dtype == part.targets.dtype == torch.int64
        assert torch.equal(part.cu_seqlens, whole.cu_seqlens)
        assert (part.max_seqlen, part.first_lane) == (whole.max_seqlen, whole.first_lane)


def test_what_is_counted_of_a_step_is_counted_once() -> None:
    documents: Any = [RowDocument(0, 1, 7, 0, 0)]
    step = StepBatch(micro_batches=[micro_batch(2, 8, seed) for seed in (1, 2)], row_hash=77, documents=documents)
    found = [shard_step(step, part, 4) for part in range(4)]
    assert sum(part.row_hash for part in found) == 77
    assert [document for part in found for document in part.documents] == documents
    assert sum(part.num_targets for part in found) == step.num_targets
    assert sum(part.pairs for part in found) == step.pairs
    assert [len(part.micro_batches) for part in found] == [2] * 4


class TestAttention:
    def test_without_boundaries_it_is_the_inner_one(self) -> None:
        asked: list[Any] = []

        def inner(*arguments: Any, **more: Any) -> Any:
            asked.append((arguments, more))
            return torch.ones(1), None

        # A group without process group: an exchange would fail.
        output, weights = around(inner, group())(*"mqkv", None, scaling=2.0, cu_seq_lens_q=None)
        assert (output.tolist(), weights) == ([1.0], None)
        assert asked == [((*"mqkv", None), {"scaling": 2.0, "cu_seq_lens_q": None})]

    def test_heads_that_cannot_be_shared_out_are_refused(self) -> None:
        x, boundaries = torch.zeros(1, 3, 4, 2), torch.tensor([0, 4], dtype=torch.int32)
        module: Any = None
        with pytest.raises(ModelError) as caught:
            around(lambda *_, **__: (x, None), group())(module, x, x, x, None, cu_seq_lens_q=boundaries)
        assert str(caught.value) == "train.sequence_parallel = 2: must divide the base's 3 key/value heads"

    def test_it_is_known_to_transformers_and_gets_no_mask(self) -> None:
        assert use_shared_rows(group()) == SHARED_ATTENTION
        assert SHARED_ATTENTION in AttentionInterface().valid_keys()
        assert SHARED_ATTENTION not in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()


class TestSettings:
    """The recipe's rows have 64 tokens, its batch 12 rows."""

    def problems(self, folder: Path, size: int, *overrides: str, world_size: int | None = 4, **shape: int) -> list[str]:
        recipe = write_recipe(folder)
        heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 64, "intermediate_size": 64,
                 "num_hidden_layers": 1, "vocab_size": 32}  # fmt: skip
        write_base(folder / "base", **{"model_type": "llama", **heads, **shape})
        return problems_of(recipe, "--train.sequence_parallel", str(size), *overrides, world_size=world_size)

    def test_ranks_that_can_share_rows_are_no_problem(self, tmp_path: Path) -> None:
        for size in (1, 2, 4):
            assert self.problems(tmp_path, size, "--adapter.kind", "lora") == []
            # Where the number of ranks is not known yet.
            assert self.problems(tmp_path, size, world_size=None) == []
        # HiddenKey and dropout go with rows of a rank alone.
        assert self.problems(tmp_path, 1, "--hidden_key.enabled", "true", "--adapter.kind", "monteclora") == []

    @pytest.mark.parametrize(
        ("size", "world_size", "rule"),
        [
            (4, 2, "must divide the world size, which is 2"),
            (3, 3, "must divide data.seq_len, which is 64"),
            (8, 8, "must divide the model's 4 key/value heads: each rank computes some of them for the whole row"),
        ],
    )
    def test_the_size_must_divide_everything(self, size: int, world_size: int, rule: str, tmp_path: Path) -> None:
        found = self.problems(tmp_path, size, world_size=world_size)
        assert any(line.startswith(f"train.sequence_parallel = {size}") and line.endswith(rule) for line in found), (
            found
        )

    def test_the_heads_of_random_weights_count_too(self, tmp_path: Path) -> None:
        text = write_recipe(tmp_path).read_text().replace('base = "base"', "architecture = {num_kv_heads = 1}")
        (tmp_path / "random.toml").write_text(text)
        found = problems_of(tmp_path / "random.toml", "--train.sequence_parallel", "2", world_size=2)
        assert [line for line in found if "1 key/value heads" in line]

    def test_what_needs_whole_rows_is_refused(self, tmp_path: Path) -> None:
        found = self.problems(tmp_path, 2, "--hidden_key.enabled", "true")
        assert len(found) == 1
        assert found[0].endswith(
            "compares positions of whole rows, which train.sequence_parallel cuts into parts; set one of them off"
        )
        found = self.problems(tmp_path, 2, "--adapter.kind", "lora", "--adapter.dropout", "0.1")
        assert found == [
            "adapter.dropout = 0.1 (command line): would drop the same features in every part of a row that train.sequence_parallel cuts it "
            "into; set it to 0"
        ]
        found = self.problems(tmp_path, 2, "--model.attention_dropout", "0.1")
        assert found == [
            "model.attention_dropout = 0.1 (command line): would drop the same weights in several of the heads that train.sequence_parallel "
            "shares out; leave it out"
        ]

    def test_groups_share_the_batch_not_ranks(self, tmp_path: Path) -> None:
        assert self.problems(tmp_path, 4, world_size=48) == []
        found = self.problems(tmp_path, 2, world_size=10)
        assert found == [
            f"train.global_batch_rows = 12 ({tmp_path / 'recipe.toml'}): must be divisible by the world size / train.sequence_parallel, which is 5; "
            "use a world size such as 4, 6, 8, 12, or change the batch"
        ]
        found = self.problems(tmp_path, 2, "--train.micro_batch_rows", "4", world_size=4)
        assert found == [
            "train.micro_batch_rows = 4 (command line): must divide the 6 rows that each group of 2 ranks has per step at world size 4"
        ]
