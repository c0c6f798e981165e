"""Small real inputs for tests: text, a tokenizer trained on it, a LLaMA, a recipe."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path

MODULES = (
    "argparse",
    "configparser",
    "csv",
    "difflib",
    "inspect",
    "json.decoder",
    "shlex",
    "textwrap",
    "tarfile",
    "string",
)


def documents() -> list[str]:
    """Functions and classes of some standard library modules, a document each."""
    found = []
    for name in MODULES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).read_text(encoding="utf-8")
        nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        found += [str(ast.get_source_segment(source, node))[:6000] for node in nodes]
    return found


def write_jsonl(path: Path, texts: list[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"id": f"{path.stem}/{number}", "text": text}) + "\n")


def make_inputs(folder: Path) -> Path:
    """Write train.jsonl, heldout.jsonl, tokenizer.model, base/ and tiny.toml; return the recipe's path."""
    import sentencepiece
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    texts = documents()
    write_jsonl(folder / "train.jsonl", texts[12:])
    write_jsonl(folder / "heldout.jsonl", texts[:12])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts for line in text.splitlines() if line.strip()),
        model_prefix=str(folder / "tokenizer"), vocab_size=400, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    shape = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=512, max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(3)
    LlamaForCausalLM(shape).save_pretrained(folder / "base")
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE)
    return recipe


RECIPE = """
[run]
dir = "run-{adapter.kind}"
seed = 5

[model]
base = "base"

[adapter]
rank = 4
alpha = 8
noise_scale = 0.05
kl_weight = 1e-3

[data]
tokenizer = "tokenizer.model"
seq_len = 64

[data.sources.text]
path = "train.jsonl"

[train]
steps = 20
global_batch_rows = 8
micro_batch_rows = 2
precision = "fp32"
log_every_steps = 1

[optim]
lr = 5e-3
weight_decay = 0.1
warmup_steps = 2

[checkpoint]
every_steps = 8

[eval.tasks.new]
kind = "bits_per_byte"
domain = "new"
path = "heldout.jsonl"
max_examples = 4

[eval.tasks.old]
kind = "continuation_choice"
domain = "old"
path = "heldout.jsonl"
context_tokens = 16
continuation_tokens = 8
max_examples = 4
"""
