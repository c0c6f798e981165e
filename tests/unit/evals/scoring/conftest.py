"""Small models with clear preferences, and what they say of a row without any shortcut."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evals.scoring.rows import Row
from evals.scoring.scorer import Answer

SHAPE = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "n_positions": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """A tiny causal language model of a type; keyword arguments change its configuration."""

    def make(model_type: str = "llama", attention: str = "sdpa", **changes: Any) -> Any:
        config = AutoConfig.for_model(model_type, **(SHAPE | changes))
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture(scope="session")
def questions() -> list[Row]:
    """Questions of many kinds: endings of one context, a common stem that branches, repeats, beginnings of others."""
    generator = torch.Generator().manual_seed(1)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 101, (count,), generator=generator).tolist())

    rows = []
    for length in (3, 9, 20):
        context = (1, *tokens(length))
        rows += [Row(context + tokens(k), first=len(context)) for k in (1, 1, 4, 6)]
        stem, target = (1, *tokens(length)), tokens(5)
        rows += [Row(stem + option + target, first=len(stem + option)) for option in (tokens(1), tokens(3))]
    rows += [rows[2], Row(rows[2].ids[:-2], rows[2].first), Row(tokens(40), first=1), Row((50, 51), first=1)]
    return rows


@pytest.fixture(scope="session")
def brute_force() -> Callable[..., list[Answer]]:
    """Every row alone, without padding, mask or replaced head, in fp64 from the logits on."""

    def answers(model: Any, rows: list[Row]) -> list[Answer]:
        found = []
        for row in rows:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row.ids[:-1]]), use_cache=False).logits[0].double()
            targets = torch.tensor(row.ids[row.first :])
            scored = logits[row.first - 1 :]
            log_p = scored.log_softmax(-1).gather(1, targets[:, None])
            is_greedy = bool((scored.argmax(-1) == targets).all())
            found.append(Answer(math.fsum(log_p.flatten().tolist()), is_greedy))
        return found

    return answers


@pytest.fixture(scope="session")
def assert_same() -> Callable[..., None]:
    """Answers within floating-point noise of fp32."""

    def check(found: list[Answer], expected: list[Answer], *, within: float = 1e-4) -> None:
        assert [a.loglikelihood for a in found] == pytest.approx([a.loglikelihood for a in expected], abs=within)
        assert [a.is_greedy for a in found] == [a.is_greedy for a in expected]

    return check
