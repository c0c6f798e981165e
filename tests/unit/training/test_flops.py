from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from training.flops import PEAK_BF16_FLOPS, flops_per_token, peak_flops
from training.model import count_parameters


def test_by_hand() -> None:
    # One layer of width 4, feed-forward 8, vocabulary 10, untied, 6 positions.
    linears = 4 * 4 * 4 + 3 * 4 * 8
    norms = 3 * 4
    shape = SimpleNamespace(vocab_size=10, hidden_size=4, num_hidden_layers=1, tie_word_embeddings=False)
    total = 2 * 10 * 4 + linears + norms
    in_matmuls = 10 * 4 + linears + norms
    # A query meets half of 6 keys on average: 3 products of width 4 for the logits, 3 for the values, 2 FLOPs each.
    attention_forward = 2 * 3 * 4 + 2 * 3 * 4
    expected = 3 * (2 * in_matmuls + attention_forward)
    assert flops_per_token({"total": total, "trainable": total}, shape, 6) == expected


def test_frozen_weights_have_no_gradient_of_their_own() -> None:
    shape = SimpleNamespace(vocab_size=10, hidden_size=4, num_hidden_layers=1, tie_word_embeddings=True)
    frozen = flops_per_token({"total": 1000, "trainable": 0}, shape, 0)
    adapter = flops_per_token({"total": 1000, "trainable": 50}, shape, 0)
    full = flops_per_token({"total": 1000, "trainable": 1000}, shape, 0)
    assert (frozen, adapter, full) == (4000, 4100, 6000)


def test_passes_add_up() -> None:
    parameters = {"total": 1000, "trainable": 50}
    shape = SimpleNamespace(vocab_size=10, hidden_size=4, num_hidden_layers=3, tie_word_embeddings=True)
    one = flops_per_token(parameters, shape, 6)
    # 2 per weight; a query meets half of 6 keys: 3 products of width 4 for the logits, 3 for the values, per layer.
    forward = 2000 + 3 * (2 * 3 * 4 + 2 * 3 * 4)
    assert flops_per_token(parameters, shape, 6, forwards=2) == one + forward
    assert flops_per_token(parameters, shape, 6, forwards=2, backwards=2) == 2 * one


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize(("layers", "seq_len"), [(1, 16), (3, 24)])
def test_it_is_what_torch_counts_of_a_real_model(is_tied: bool, layers: int, seq_len: int) -> None:
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=64, max_position_embeddings=64, tie_word_embeddings=is_tied, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    rows = 2
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(rows, seq_len, dtype=torch.long), use_cache=False).logits.sum().backward()
    ours = flops_per_token(count_parameters(model), config, seq_len) * rows * seq_len
    # Ours counts causal attention, half of what the plain implementation computes, and 6 per weight of a norm.
    other_half_of_attention = 6 * layers * config.hidden_size * seq_len * rows * seq_len
    norms = 6 * (2 * layers + 1) * config.hidden_size * rows * seq_len
    assert counter.get_total_flops() == ours + other_half_of_attention - norms


def test_a_cpu_has_no_known_peak() -> None:
    assert peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA B200", 2250e12), ("GeForce GTX 1080", None),
    ],
)  # fmt: skip
def test_peaks_by_the_devices_name(monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0)) == peak
    assert all(value > 1e14 for value in PEAK_BF16_FLOPS.values())
