"""Models of transformers small enough to try everything on, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

VOCABULARY = 50


def llama(attention: str = "sdpa", num_layers: int = 4, spread: float = 0.3, **settings: Any) -> LlamaForCausalLM:
    """Four query heads on two key heads; weights large enough for attention to be far from uniform.

    Without a cache, because transformers overlooks the documents of packed rows with one.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=num_layers, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=VOCABULARY, max_position_embeddings=128, initializer_range=spread,
        attn_implementation=attention, use_cache=False, **settings,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def roberta(
    attention: str = "sdpa", num_layers: int = 3, spread: float = 0.3, **settings: Any
) -> RobertaForSequenceClassification:
    torch.manual_seed(0)
    config = RobertaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=num_layers, num_attention_heads=4,
        vocab_size=VOCABULARY, max_position_embeddings=130, initializer_range=spread, num_labels=3,
        attn_implementation=attention, **settings,
    )  # fmt: skip
    return RobertaForSequenceClassification(config)


def gpt2(attention: str = "sdpa") -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=VOCABULARY, n_positions=128, bos_token_id=0,
                        eos_token_id=0, attn_implementation=attention)  # fmt: skip
    return GPT2LMHeadModel(config)


def distilbert(attention: str = "sdpa") -> DistilBertForSequenceClassification:
    torch.manual_seed(0)
    config = DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=VOCABULARY,
                              max_position_embeddings=128, attn_implementation=attention)  # fmt: skip
    return DistilBertForSequenceClassification(config)


MODELS = {"llama": llama, "roberta": roberta, "gpt2": gpt2, "distilbert": distilbert}


def rows(batch: int = 2, length: int = 12) -> dict[str, Tensor]:
    """Token ids [batch, length]."""
    generator = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randint(3, VOCABULARY, (batch, length), generator=generator)}


def padded_rows(batch: int = 2, length: int = 12) -> dict[str, Tensor]:
    """Rows of which the second has padding on the right, and the third (if there is one) on the left."""
    inputs = rows(batch, length)
    mask = torch.ones_like(inputs["input_ids"])
    mask[1:2, length // 2 :] = 0
    mask[2:3, : length // 2] = 0
    return inputs | {"attention_mask": mask}


def packed_rows(sizes: tuple[int, ...] = (5, 1, 6), batch: int = 2) -> dict[str, Tensor]:
    """Rows of several documents each."""
    positions = torch.cat([torch.arange(size) for size in sizes])
    return rows(batch, sum(sizes)) | {"position_ids": positions.expand(batch, -1)}


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
