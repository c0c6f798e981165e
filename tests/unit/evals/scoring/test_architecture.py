"""Which architectures are known, and that what is known of them is true."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from evals.scoring.architecture import KNOWN, can_share, is_known
from evals.scoring.rows import Row
from evals.scoring.scorer import Scorer

Make = Callable[..., Any]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", KNOWN)
def test_every_known_architecture_shares_exactly(
    model_type: str, attention: str, make_model: Make, questions: list[Row], brute_force: Make, assert_same: Make
) -> None:
    changes = {"sliding_window": None} if model_type in ("mistral", "starcoder2", "phi3") else {}
    model = make_model(model_type, attention, **changes)
    assert can_share(model.config)
    scorer = Scorer(model=model, device="cpu", pad_id=0, max_length=128)
    assert_same(scorer.score(questions), brute_force(model, questions))


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("mistral", {"sliding_window": 4}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}),
        ("gemma2", {"sliding_window": 4, "head_dim": 8, "attention": "eager"}),
        ("bloom", {"n_head": 4, "n_layer": 2, "attention": "eager"}),
        ("falcon", {"alibi": True}),
    ],
)
def test_what_cannot_share_is_scored_all_the_same(
    model_type: str,
    changes: dict[str, Any],
    make_model: Make,
    questions: list[Row],
    brute_force: Make,
    assert_same: Make,
) -> None:
    model = make_model(model_type, **changes)
    assert not can_share(model.config)
    scorer = Scorer(model=model, device="cpu", pad_id=0, max_length=128)
    assert_same(scorer.score(questions), brute_force(model, questions), within=3e-4)


def with_attention(config: Any, attention: str = "sdpa") -> Any:
    config._attn_implementation = attention
    return config


@pytest.mark.parametrize(
    ("config", "is_shared"),
    [
        (with_attention(LlamaConfig()), True),
        (with_attention(LlamaConfig(), "palimpsest"), True),
        (with_attention(LlamaConfig(), "flash_attention_2"), False),
        (LlamaConfig(), False),
        (
            with_attention(LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})),
            False,
        ),
        (with_attention(LlamaConfig(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})), True),
        (with_attention(MistralConfig()), False),
        (with_attention(MistralConfig(sliding_window=None)), True),
        (with_attention(Qwen2Config()), True),
        (with_attention(Qwen2Config(use_sliding_window=True)), False),
        (SimpleNamespace(model_type="unheard-of", _attn_implementation="sdpa"), False),
        (None, False),
    ],
)
def test_what_is_shared(config: Any, is_shared: bool) -> None:
    assert can_share(config) == is_shared
    assert not is_shared or is_known(config)
