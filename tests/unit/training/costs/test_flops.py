from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM

from monteclora import attach_adapter
from monteclora.config import LoRAConfig, MonteCLoRAConfig
from tests.unit.training.costs.test_shape import LLAMA_2_7B, SHAPES
from training.costs.flops import PEAK_BF16_FLOPS, peak_flops, step_flops
from training.costs.shape import Shape, from_hugging_face

TINY = Shape(hidden=4, intermediate=8, layers=1, heads=2, kv_heads=1, head_dim=2, vocab=10, is_tied=False)
ADAPTERS: dict[str, LoRAConfig | None] = {
    "full": None,
    "lora": LoRAConfig(rank=1),
    "monteclora": MonteCLoRAConfig(rank=1),
    "some layers": LoRAConfig(rank=1, targets=("model.layers.1.mlp.*",)),
    "ranks": LoRAConfig(rank=1, rank_pattern={"gate_proj": 5}, targets=("q_proj", "k_proj", "v_proj", "gate_proj")),
    "attention output and a norm": LoRAConfig(rank=1, targets=("o_proj",), modules_to_save=("model.norm",)),
    "embedding in full": LoRAConfig(rank=1, targets=("v_proj",), modules_to_save=("embed_tokens",)),
    "head": LoRAConfig(rank=1, targets=("lm_head",)),
}


def test_by_hand() -> None:
    # q and o are 4 x 4, k and v 4 x 2, three of the feed-forward 4 x 8.
    linears = 2 * 16 + 2 * 8 + 3 * 32
    # Two heads of width 2: a product for the logit and one for the value.
    pair = 2 * 2 * 2 * 2
    forward = 7 * 2 * linears + 5 * 2 * 40 + 11 * pair
    assert step_flops(TINY, None, tokens=7, targets=5, pairs=11) == 3 * forward
    assert step_flops(TINY, None, tokens=7, targets=5, pairs=11, backwards=0) == forward
    assert step_flops(TINY, None, tokens=7, targets=5, pairs=11, forwards=2, backwards=2) == 6 * forward


def test_lora_on_llama_2_7b_is_what_the_formula_says() -> None:
    # Per token: 4 per frozen weight, 6 per adapter weight, attention 6 L s d causal (d the width, s = 4096).
    tokens, seq_len, rank = 4096, 4096, 32
    adapter_weights = 32 * rank * (4 * 2 * 4096 + 3 * (4096 + 11008))
    linears = LLAMA_2_7B.num_parameters() - 2 * 32000 * 4096 - 65 * 4096 + 32000 * 4096
    formula = 4 * linears + 6 * adapter_weights + 6 * 32 * seq_len * 4096
    adapter = LoRAConfig(rank=rank)
    ours = step_flops(LLAMA_2_7B, adapter, tokens=tokens, targets=tokens, pairs=tokens * seq_len / 2)
    # The embedding doesn't train, so the first q, k and v need no gradient of their input.
    first = 3 * 2 * 4096 * 4096 + 3 * 2 * rank * 4096
    assert ours == (formula - first) * tokens


def product(total: Any, a: Any, b: Any, **kwargs: Any) -> int:
    """FLOPs of a product [n, k] x [k, m]."""
    return int(2 * a[0] * a[1] * b[1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ADAPTERS)
def test_it_is_what_torch_counts_of_a_real_model(shape: str, name: str) -> None:
    sizes, adapter = SHAPES[shape], ADAPTERS[name]
    ours = from_hugging_face(sizes.to_dict())
    model = LlamaForCausalLM._from_config(sizes, attn_implementation="eager")
    if adapter is not None:
        attach_adapter(model, adapter)
    rows, seq_len = 2, 24
    # It knows addmm, but not the form in place.
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product}) as counter:
        model(input_ids=torch.zeros(rows, seq_len, dtype=torch.long), use_cache=False).logits.sum().backward()
    tokens = rows * seq_len
    # Eager attention computes every pair of a row, also those that the mask then removes.
    assert counter.get_total_flops() == step_flops(ours, adapter, tokens=tokens, targets=tokens, pairs=tokens * seq_len)


def test_a_frozen_start_costs_no_backward() -> None:
    last = LoRAConfig(rank=1, targets=("model.layers.31.mlp.down_proj",))
    forward = step_flops(LLAMA_2_7B, last, tokens=100, targets=0, pairs=5050, backwards=0)
    whole = step_flops(LLAMA_2_7B, last, tokens=100, targets=0, pairs=5050)
    # A and B, and the gradient between them; nothing of the frozen weights before.
    assert whole - forward == 100 * 2 * (11008 + 4096 + 4096)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12), ("NVIDIA GH200 480GB", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA B200", 2250e12), ("NVIDIA L40S", 362e12), ("AMD Instinct MI300X", 1307e12),
        ("GeForce GTX 1080", None), ("NVIDIA RTX A1000", None), ("cpu", None),
    ],
)  # fmt: skip
def test_peaks_by_the_devices_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
    assert all(value > 1e14 for value in PEAK_BF16_FLOPS.values())
