"""Rows that join, leave and grow: a forward over the cache gives what a forward over all tokens gives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from evals.scoring.kv_cache import GROWTH, SlotCache, detached, prefixes, unsupported


def llama() -> Any:
    torch.manual_seed(0)
    shape = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50, max_position_embeddings=256, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(shape).eval()


def gpt2() -> Any:
    torch.manual_seed(0)
    shape = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=256, initializer_range=0.3)
    return GPT2LMHeadModel(shape).eval()


def read(model: Any, rows: list[list[int]]) -> Any:
    width = max(map(len, rows))
    cache = DynamicCache()
    padded = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    model(input_ids=padded, past_key_values=cache, use_cache=True)
    return prefixes(cache, [len(row) for row in rows])


def write(model: Any, cache: SlotCache, rows: list[list[int]]) -> Tensor:
    """The logits after the last token of every row; all before it are in the cache."""
    positions = torch.tensor([len(row) - 1 for row in rows])
    mask = cache.place(positions, int(positions.max()))
    logits: Tensor = model(
        input_ids=torch.tensor([[row[-1]] for row in rows]), attention_mask=mask, position_ids=positions[:, None],
        past_key_values=cache, use_cache=True,
    ).logits[:, -1]  # fmt: skip
    return logits


def whole(model: Any, row: list[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([row])).logits[0, -1]
    return logits


@pytest.mark.parametrize("make", [llama, gpt2])
@torch.no_grad()
def test_rows_join_leave_and_grow(make: Any) -> None:
    model, generator = make(), torch.Generator().manual_seed(1)
    rows = [torch.randint(50, (length,), generator=generator).tolist() for length in (30, 7, 1)]
    found, cache = read(model, rows), SlotCache()
    cache.join([(found[0], 1), (found[1], 2)])
    running = [[*rows[0]], [*rows[1]], [*rows[1]]]
    for step in range(GROWTH + 10):
        for number, row in enumerate(running):
            row.append((7 * step + number) % 50)
        logits = write(model, cache, running)
        if step % 9 == 0:
            expected = torch.stack([whole(model, row) for row in running])
            torch.testing.assert_close(logits, expected, rtol=0, atol=5e-5)
        if step == 20:
            cache.keep([2, 0])
            running = [running[2], running[0]]
        if step == 40:
            cache.join([(detached(found[2]), 1), (found[0], 1)])
            running += [[*rows[2]], [*rows[0]]]


@torch.no_grad()
def test_a_row_that_is_not_finite_leaves_nothing_behind() -> None:
    model = llama()
    good, bad = read(model, [[1, 2, 3], [4, 5, 6, 7]])
    for keys, values in bad:
        keys.fill_(float("nan"))
        values.fill_(float("nan"))
    cache = SlotCache()
    cache.join([(good, 1), (bad, 1)])
    logits = write(model, cache, [[1, 2, 3, 9], [4, 5, 6, 7, 9]])
    assert logits[1].isnan().all()
    torch.testing.assert_close(logits[0], whole(model, [1, 2, 3, 9]), rtol=0, atol=2e-5)
    cache.keep([0])
    cache.join([(good, 1)])
    logits = write(model, cache, [[1, 2, 3, 9, 8], [1, 2, 3, 8]])
    torch.testing.assert_close(logits[1], whole(model, [1, 2, 3, 8]), rtol=0, atol=2e-5)


def test_a_detached_prefix_has_memory_of_its_own() -> None:
    first = detached(read(llama(), [[1, 2], [3, 4]])[0])
    assert {part.untyped_storage().nbytes() for layer in first for part in layer} == {2 * 2 * 8 * 4}


CONFIGS = {
    "attention 'flash_attention_2' does not take the masks": {"_attn_implementation": "flash_attention_2"},
    "sees 16 tokens at a time, and sequences of 40 are to be written; lower the model's length to 16": {
        "sliding_window": 16
    },
    "sees 32 tokens at a time": {"attention_chunk_size": 32},
    "layers without keys and values": {"layer_types": ["full_attention", "linear_attention"]},
    "or without positions": {"alibi": True},
    "mamba has layers": {"model_type": "mamba"},
}


@pytest.mark.parametrize("message", CONFIGS)
def test_models_that_cannot_be_used(message: str) -> None:
    config = {"model_type": "some", "_attn_implementation": "sdpa"} | CONFIGS[message]
    (problem,) = unsupported(SimpleNamespace(**config), 40)
    assert message in problem


def test_models_that_can_be_used() -> None:
    assert unsupported(llama().config, 4096) == []
    usual = {"_attn_implementation": "palimpsest", "sliding_window": 16}
    assert unsupported(SimpleNamespace(**usual), 16) == []
    assert unsupported(SimpleNamespace(**usual, use_sliding_window=False), 40) == []
