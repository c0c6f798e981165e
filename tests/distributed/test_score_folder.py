"""What one of several processes cannot do, all refuse: none waits for one that is gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.distributed.harness_scenarios import make_data
from tests.ranks import free_port, run_ranks

pytestmark = pytest.mark.dist


def make_model(folder: Path) -> None:
    """A tiny Llama with a tokenizer.json of one token per character."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=130, max_position_embeddings=64, bos_token_id=1, **size)
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {"<unk>": 0, "<s>": 1} | {chr(code): code - 30 for code in range(32, 127)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.save(str(folder / "tokenizer.json"))


def test_one_rank_that_cannot_go_on_ends_all(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    make_data(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({}))
    found = run_ranks(
        "tests.distributed.score_scenarios:score",
        2,
        model=str(tmp_path / "model"),
        data=str(tmp_path),
        run=str(run),
        ports=[free_port() for _ in range(5)],
    )
    assert found == 2 * [
        {
            "n": 5,
            "is_known": True,
            "tokenizer": "rank 1: no tokenizer on this node",
            "checks": "rank 1: no data on this node",
            "model": "rank 1: RuntimeError: out of memory",
        }
    ]
    assert not (run / "evals" / "4.winogrande.json").exists()
