"""Weights in memory and on disk for the comparisons."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from evals.weights.spectrum import LowRank


@dataclasses.dataclass
class InMemory:
    """`Weights` of given tensors, that knows how many of those it has given are alive."""

    tensors: Mapping[str, Tensor]
    label: str = "memory"
    state: str = "1"
    base: str = ""
    updates: Mapping[str, LowRank] = dataclasses.field(default_factory=dict)
    epsilon: float = 2.0**-23
    num_tied: int = 0
    read_names: list[str] = dataclasses.field(default_factory=list)
    alive: set[int] = dataclasses.field(default_factory=set)
    most_alive: int = 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        given = self.tensors[name].clone()
        self.read_names.append(name)
        number = len(self.read_names)
        self.alive.add(number)
        self.most_alive = max(self.most_alive, len(self.alive))
        weakref.finalize(given, self.alive.discard, number)
        return given

    def update(self, name: str) -> LowRank | None:
        return self.updates.get(name)


@pytest.fixture
def in_memory() -> Callable[..., InMemory]:
    return InMemory


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    """Two layers, with fewer heads for keys and values."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=60,
    )  # fmt: skip
    return LlamaForCausalLM(shape)


@pytest.fixture
def base_folder(tmp_path: Path, tiny_llama: LlamaForCausalLM) -> Path:
    """That model on disk."""
    folder = tmp_path / "base"
    tiny_llama.save_pretrained(folder)
    return folder


@pytest.fixture
def trained_folder(tmp_path: Path, tiny_llama: LlamaForCausalLM, base_folder: Path) -> Path:
    """It after something like full finetuning: every matrix but one changed, in several files."""
    assert base_folder.is_dir()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in tiny_llama.named_parameters():
            if name != "model.layers.1.self_attn.k_proj.weight":
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path / "trained"
    tiny_llama.save_pretrained(folder, max_shard_size="20KB")
    return folder
