from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.probes import Saved
from monteclora import attach_adapter
from monteclora.config import LoRAConfig, MonteCLoRAConfig
from tests.unit.training.costs.test_shape import LLAMA_2_7B, LLAMA_3_8B
from training.costs import memory
from training.costs.memory import (
    HEAD_CHUNK_BYTES,
    MARGIN,
    RESERVED_BYTES,
    GiB,
    Setup,
    Trained,
    ZeroOptions,
    estimate,
    largest_micro_batch,
    layers_to_recompute,
    usable_bytes,
)  # fmt: skip
from training.costs.shape import from_hugging_face
from training.model.attention import ATTENTION
from training.model.build import count_parameters, recompute
from training.model.loss_head import CHUNK_BYTES, LossHead, LossRequest
from training.placements import replicated

NO_BUFFERS = ZeroOptions(reduce_bucket=0, prefetch_bucket=0, persistence_threshold=0, max_reuse_distance=0)
P7 = 6_738_415_616
FULL_7B = Trained(LLAMA_2_7B)
LORA_7B = Trained(LLAMA_2_7B, LoRAConfig(rank=16))
P_LORA = 39_976_960


def held(setup: Setup) -> dict[str, float]:
    found = estimate(setup)
    return {name: getattr(found, name) for name in ("weights", "adapter", "gradients", "masters", "optimizer", "host")}


class TestStates:
    """By hand: bytes per parameter, times what a rank has of it."""

    def test_zero3_shares_everything(self) -> None:
        found = held(Setup(model=FULL_7B, placement="zero3", ranks=8, zero=NO_BUFFERS))
        assert found == {"weights": 2 * P7 / 8, "adapter": 0, "gradients": 4 * P7 / 8, "masters": 4 * P7 / 8,
                         "optimizer": 8 * P7 / 8, "host": 0}  # fmt: skip

    def test_replicated_shares_masters_and_states_only(self) -> None:
        found = held(Setup(model=FULL_7B, placement="replicated", ranks=8))
        assert found == {"weights": 2 * P7, "adapter": 0, "gradients": 4 * P7, "masters": 4 * P7 / 8,
                         "optimizer": 8 * P7 / 8, "host": 0}  # fmt: skip

    def test_offload_moves_masters_states_and_their_gradients_to_the_host(self) -> None:
        found = held(Setup(model=FULL_7B, placement="zero3_offload", ranks=8, zero=NO_BUFFERS))
        assert found == {"weights": 2 * P7 / 8, "adapter": 0, "gradients": 4 * P7 / 8, "masters": 0, "optimizer": 0,
                         "host": 16 * P7 / 8}  # fmt: skip

    def test_hpz_adds_a_copy_per_node(self) -> None:
        setup = Setup(model=FULL_7B, placement="zero3_hpz", ranks=32, ranks_per_node=8, zero=NO_BUFFERS)
        assert held(setup)["weights"] == 2 * P7 / 32 + 2 * P7 / 8
        assert held(dataclasses.replace(setup, ranks=8))["weights"] == 2 * P7 / 8

    def test_an_adapter_has_states_for_itself_only(self) -> None:
        found = held(Setup(model=LORA_7B, placement="replicated", ranks=4))
        assert found == {"weights": 2 * P7, "adapter": 4 * P_LORA, "gradients": 4 * P_LORA, "masters": P_LORA,
                         "optimizer": 2 * P_LORA, "host": 0}  # fmt: skip

    def test_small_parameters_stay_whole_under_zero3(self) -> None:
        zero = dataclasses.replace(NO_BUFFERS, persistence_threshold=65536)
        found = held(Setup(model=LORA_7B, ranks=8, zero=zero))
        norms = 65 * 4096
        # Of A and B those with a side of 4096; r = 16 times 11008 is more.
        low_rank = 32 * 16 * 4096 * (4 * 2 + 2 + 1)
        assert found["weights"] == pytest.approx(2 * P7 / 8 + 2 * norms)
        assert found["adapter"] == pytest.approx(2 * P_LORA / 8 + 2 * low_rank)

    @pytest.mark.parametrize(("kind", "states"), [("adamw", 2 * P7), ("lionw", P7), ("muon", 2 * P7 - 6_476_005_376)])
    def test_optimizers(self, kind: str, states: int) -> None:
        assert held(Setup(model=FULL_7B, ranks=8, optimizer=kind))["optimizer"] == 4 * states / 8

    def test_fp32_weights(self) -> None:
        assert held(Setup(model=FULL_7B, ranks=8, precision="fp32", zero=NO_BUFFERS))["weights"] == 4 * P7 / 8

    @pytest.mark.parametrize("model", [FULL_7B, LORA_7B])
    def test_sizes_are_those_of_the_real_model(self, model: Trained) -> None:
        config = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                             num_key_value_heads=2, vocab_size=128)  # fmt: skip
        real = LlamaForCausalLM(config)
        if model.adapter is not None:
            attach_adapter(real, model.adapter)
        ours = Trained(from_hugging_face(config.to_dict()), model.adapter)
        assert {"total": ours.base_size + ours.adapter_size, "trainable": ours.size} == count_parameters(real)


ADAPTERS: dict[str, LoRAConfig | None] = {
    "full": None,
    "lora": LoRAConfig(rank=8),
    "dropout": LoRAConfig(rank=8, dropout=0.1),
    "some targets": LoRAConfig(rank=8, targets=("q_proj", "down_proj")),
    "last layer": LoRAConfig(rank=8, targets=("model.layers.3.*",)),
    "norms in full": LoRAConfig(rank=8, targets=("v_proj",), modules_to_save=("*norm",)),
    "monteclora": MonteCLoRAConfig(rank=8),
}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize(("dtype", "recomputed"), [("bf16", 0), ("fp32", 0), ("bf16", 2), ("bf16", 4)])
def test_what_autograd_keeps_of_a_real_step(name: str, dtype: Any, recomputed: int) -> None:
    if recomputed and name == "last layer":
        pytest.skip("transformers then lets gradients flow further back than they need to")
    adapter, rows, seq_len = ADAPTERS[name], 2, 128
    config = LlamaConfig(hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=256, use_cache=False)  # fmt: skip
    model: Any = LlamaForCausalLM._from_config(config, attn_implementation=ATTENTION)
    for parameter in model.parameters():
        parameter.data = parameter.data.to({"bf16": torch.bfloat16, "fp32": torch.float32}[dtype])
    if adapter is not None:
        attach_adapter(model, adapter)
    recompute(model, recomputed)
    model.train()
    head, tokens = LossHead(model), rows * seq_len
    boundaries = torch.arange(0, tokens + 1, seq_len, dtype=torch.int32)
    ids = torch.zeros(rows, seq_len, dtype=torch.long)
    saved = Saved(list(model.parameters()))
    with saved, head.asked(LossRequest(index=torch.arange(tokens), targets=ids.flatten())):
        model(input_ids=ids, position_ids=torch.arange(seq_len).repeat(rows, 1), use_cache=False,
              cu_seq_lens_q=boundaries, cu_seq_lens_k=boundaries)  # fmt: skip
    setup = Setup(
        model=Trained(from_hugging_face(config.to_dict()), adapter), placement="replicated", micro_batch_rows=rows,
        seq_len=seq_len, recomputed_layers=recomputed, precision=dtype, device="cpu",
    )  # fmt: skip
    kept, _ = memory._activations(setup)
    head_kept, _ = memory._head(setup)
    if recomputed == 4:
        # The rotations lie in the closure of what is computed again, not among what autograd keeps.
        kept -= tokens * 2 * setup.weight_bytes * 32
    # Ids and their places are kept, too.
    assert saved.bytes == pytest.approx(kept + head_kept, rel=0.02)


def test_recomputation_leaves_the_layers_input() -> None:
    setup = Setup(model=FULL_7B, placement="replicated", ranks=8)
    all_kept = estimate(setup).activations
    some = estimate(dataclasses.replace(setup, recomputed_layers=10)).activations
    # Per token and layer: 2 norms of 4 + 2 and their outputs 2, q, k, v and the output 2, log-sum-exp; four products.
    layer = 16 * 4096 + 8 * 4096 + 4 * 32 + 8 * 11008
    assert all_kept - some == 4096 * 10 * (layer - 2 * 4096)


def test_liger_keeps_less() -> None:
    torch_kernels = Setup(model=FULL_7B, placement="replicated", ranks=8)
    liger = dataclasses.replace(torch_kernels, kernels="liger")
    per_layer = 4096 * (2 * (6 - 2) * 4096 + 2 * 11008)
    assert estimate(torch_kernels).activations - estimate(liger).activations == 32 * per_layer


def test_a_published_measurement() -> None:
    # Llama-3.1-8B in full on 8 H200 (stas00/ml-engineering): ZeRO-2, which has whole weights and bf16 gradients, one row of
    # 8,192 tokens, nothing recomputed: a peak of 99 GiB.
    setup = Setup(model=Trained(LLAMA_3_8B), placement="replicated", ranks=8, seq_len=8192)
    found = estimate(setup)
    ours = found.total - found.gradients + 2 * setup.model.size
    # All logits at once in bf16, fp32 and their gradient are more than our head's chunk.
    logits = 8192 * 128256 * (2 + 4 + 4)
    assert (ours - found.head + logits) / GiB == pytest.approx(99, rel=0.1)


def test_the_loss_heads_chunk_is_the_loss_heads() -> None:
    assert HEAD_CHUNK_BYTES == CHUNK_BYTES
    assert memory.BUCKET_ELEMENTS == replicated.BUCKET_ELEMENTS


class TestChoices:
    budget = usable_bytes(80 * GiB)

    def test_as_few_layers_as_fit(self) -> None:
        setup = Setup(model=FULL_7B, placement="zero3", ranks=8, micro_batch_rows=4, zero=NO_BUFFERS)
        layers = layers_to_recompute(setup, self.budget)
        assert layers is not None
        assert 0 < layers < 32
        assert estimate(dataclasses.replace(setup, recomputed_layers=layers)).total <= self.budget
        assert estimate(dataclasses.replace(setup, recomputed_layers=layers - 1)).total > self.budget

    def test_none_or_all(self) -> None:
        setup = Setup(model=LORA_7B, placement="replicated", ranks=8)
        assert layers_to_recompute(setup, self.budget) == 0
        assert layers_to_recompute(setup, 10 * GiB) is None

    def test_the_largest_micro_batch(self) -> None:
        setup = Setup(model=LORA_7B, placement="replicated", ranks=8)
        rows = largest_micro_batch(setup, self.budget, most=64)
        assert estimate(dataclasses.replace(setup, micro_batch_rows=rows)).total <= self.budget
        assert estimate(dataclasses.replace(setup, micro_batch_rows=rows + 1)).total > self.budget
        assert largest_micro_batch(setup, self.budget, most=1) == 1
        assert largest_micro_batch(setup, 10 * GiB, most=8) == 0

    def test_what_is_left_free(self) -> None:
        assert usable_bytes(100.0) == 100 * (1 - MARGIN) - RESERVED_BYTES


def test_ranks_that_share_a_row_have_their_part_of_its_activations() -> None:
    setup = Setup(model=LORA_7B, placement="replicated", ranks=8)
    shared = dataclasses.replace(setup, sequence_parallel=4)
    assert estimate(setup).activations == 4 * estimate(shared).activations


class TestZeroOptions:
    def test_deepspeeds_names_and_defaults(self) -> None:
        content = {"zero_optimization": {"reduce_bucket_size": 5e7, "stage3_param_persistence_threshold": 1}}
        assert ZeroOptions.from_ds_config(content) == ZeroOptions(reduce_bucket=50_000_000, persistence_threshold=1)
        assert ZeroOptions.from_ds_config({}) == ZeroOptions()
