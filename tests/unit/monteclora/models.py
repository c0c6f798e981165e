"""Small models of the kinds that adapters are for, with trained-looking adapters on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaForSequenceClassification

from monteclora import Adapter, LoRAConfig, attach_adapter

IDS = torch.tensor([[1, 5, 9, 2, 30, 7], [3, 3, 8, 1, 2, 2]])
Maker = Callable[[], nn.Module]


def llama(*, seed: int = 0, tied: bool = False) -> LlamaForCausalLM:
    """Two blocks with grouped-query attention."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tied,
        )
    ).eval()


def roberta(*, seed: int = 0) -> RobertaForSequenceClassification:
    """Two blocks, linears with biases, a classification head."""
    torch.manual_seed(seed)
    return RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            num_labels=5,
            initializer_range=0.3,
        )
    ).eval()


def trained(maker: Maker, config: LoRAConfig, **options: torch.dtype) -> tuple[nn.Module, Adapter]:
    """The model with an adapter whose every parameter has left its first value."""
    model = maker()
    adapter = attach_adapter(model, config, seed=4, **options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.named_parameters().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return model, adapter


def logits(model: nn.Module) -> Tensor:
    """Of IDS, in evaluation."""
    with torch.no_grad():
        result: Tensor = model(IDS).logits
    return result
