"""Target tokens per second of finetuning on pairs of prompt and response: rows packed with whole examples, and padded batches.

Both sides train the same small LLaMA (256 wide, 4 layers, 4,096 pieces) in fp32 on the same pairs, one process, one thread, AdamW, an
epoch. Only responses are targets, and only targets count as useful. The contenders:

  ours      training's engine; examples packed whole into rows of 2048 by the stream while it trains, one row per step
  padded    transformers' Trainer with DataCollatorForSeq2Seq and its default batch of 8 random examples, encoded beforehand
  grouped   the same with train_sampling_strategy="group_by_length": examples of like length in a batch

Two sets of pairs: GSM8K with code instructions (from shared/data beside the repository, where that is there), and made-up ones with lengths
of a log-normal law, as mixtures of instructions have. First the loss of single examples is compared, from packed rows and from padded batches.
Contenders take turns, each a process of its own; a ratio is taken within a round, the median over the rounds is the claim.

    python benchmarks/instruction_step.py [--quick | --bench] [--json PATH]
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import peers  # noqa: E402
from benchmarks.claims import claim, options, show, turns, write_json  # noqa: E402
from benchmarks.data_corpus import REAL_DATA, convert_tokenizer, numbered_texts  # noqa: E402

SEQ_LEN, VOCAB = 2048, 4096
GOAL, SAME_LOSS = ">=2.5", "<=1e-5"
PEER = f"transformers {importlib.metadata.version('transformers')}"
CONTENDERS: dict[str, tuple[str, ...]] = {
    "ours": ("ours_instructions.py",),
    "padded": ("trainer_instructions.py",),
    "grouped": ("trainer_instructions.py", "--sampling", "group_by_length"),
}

Pair = dict[str, str]
"""`prompt` and `response`."""


def real_pairs(data: Path) -> list[Pair]:
    """GSM8K's training pairs and code instructions; nothing where they are missing."""

    def records(name: str) -> list[dict[str, str]]:
        with gzip.open(data / name, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    if not (data / "gsm8k_train.jsonl.gz").exists() or not (data / "code_alpaca_2k.jsonl.gz").exists():
        return []
    math = [{"prompt": one["question"], "response": one["answer"]} for one in records("gsm8k_train.jsonl.gz")]
    code = [
        {"prompt": "\n".join(filter(None, (one["instruction"], one.get("input")))), "response": one["output"]}
        for one in records("code_alpaca_2k.jsonl.gz")
    ]
    return [pair for pair in math + code if pair["prompt"] and pair["response"]]


def invented_pairs(count: int) -> list[Pair]:
    """Invented words; their number is log-normal (sigma 0.8, 100 on average), of which 0.3 on average are the prompt."""
    draw = np.random.default_rng(0)
    words = " ".join(numbered_texts(2000)).split()
    pairs = []
    for _ in range(count):
        total = max(8, int(draw.lognormal(np.log(100) - 0.8**2 / 2, 0.8)))
        start = int(draw.integers(0, len(words) - total)) if total < len(words) else 0
        cut = start + max(2, int(total * draw.uniform(0.1, 0.5)))
        pairs.append({"prompt": " ".join(words[start:cut]), "response": " ".join(words[cut : start + total])})
    return pairs


def prepare(folder: Path, pairs: list[Pair], count: int) -> dict[str, float]:
    """Write what contenders read: `count` of the pairs, a tokenizer of all, the encoded examples, a model.

    Returns:
        Facts about the examples: how many, their mean and greatest length in tokens, the share of targets.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from data_pipeline.config import DataConfig, SourceConfig
    from data_pipeline.demo.tokenizer import train_tokenizer
    from data_pipeline.encoding.examples import Encoder
    from data_pipeline.encoding.loading import load_tokenizer

    folder.mkdir()
    tokenizer = folder / "tokenizer.model"
    tokenizer.write_bytes(train_tokenizer([[f"{pair['prompt']} {pair['response']}" for pair in pairs]], VOCAB))
    convert_tokenizer(tokenizer, folder / "tokenizer.json")
    source = SourceConfig(path="unused", kind="prompt", prompt_field="prompt", response_field="response")
    data = DataConfig(sources={"pairs": source}, tokenizer=tokenizer, seq_len=SEQ_LEN)
    encoder = Encoder(source, data, load_tokenizer(tokenizer))
    kept: list[Pair] = []
    encoded = []
    for index in np.random.default_rng(0).permutation(len(pairs)).tolist():
        example = encoder.encode(pairs[index])
        if len(kept) < count and len(example.ids) <= SEQ_LEN:
            kept.append(pairs[index])
            encoded.append(example)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in kept), encoding="utf-8")
    lengths = np.array([len(example.ids) for example in encoded])
    is_target = np.concatenate([example.is_target for example in encoded if example.is_target is not None])
    np.savez(
        folder / "examples.npz",
        ids=np.concatenate([example.ids for example in encoded]), is_target=is_target, lengths=lengths,
    )  # fmt: skip
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=SEQ_LEN, use_cache=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    return {
        "examples": len(kept), "mean_tokens": float(lengths.mean()), "most_tokens": int(lengths.max()),
        "target_share": float(is_target.mean()),
    }  # fmt: skip


def measure(folder: Path, rounds: int, scratch: Path) -> dict[str, list[dict[str, Any]]]:
    """What every contender printed in every round; each comes equally often first, second and last."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for order in turns(CONTENDERS, rounds):
        for name in order:
            script, *more = CONTENDERS[name]
            arguments = ("--folder", folder, "--seq-len", SEQ_LEN, *more)
            result = peers.run(sys.executable, script, *arguments, scratch=scratch, timeout=900)
            results[name].append(result)
            print(
                f"  {name:8} {result['targets_per_second']:7.0f} targets/s, {result['targets_per_cpu_second']:7.0f} per second of the "
                f"processor; {result['targets']} targets in {result['positions']} positions, {result['steps']} steps",
                flush=True,
            )
    return results


def claims_of(case: str, results: dict[str, list[dict[str, Any]]], losses: dict[str, Any]) -> list[dict[str, Any]]:
    """Useful tokens per second against both peers, and losses of examples."""

    def figures(name: str, figure: str) -> list[float]:
        return [result[figure] for result in results[name]]

    labels = {"padded": f"{PEER} DataCollatorForSeq2Seq", "grouped": f"{PEER} DataCollatorForSeq2Seq, group_by_length"}
    claims = []
    for name, goal in (("padded", GOAL), ("grouped", ">=1")):
        line = claim(
            f"useful_tokens_over_{name}_{case}", figures("ours", "targets_per_second"), figures(name, "targets_per_second"),
            goal, labels[name],
        )  # fmt: skip
        processor = claim(
            "", figures("ours", "targets_per_cpu_second"), figures(name, "targets_per_cpu_second"), goal, ""
        )
        claims.append(line | {"processor_time": processor["ratio"]})
    difference = [losses["largest_relative_difference"]]
    return [*claims, claim(f"instruction_losses_{case}", difference, [1.0], SAME_LOSS, PEER)]


def main() -> None:
    """Measure, print a line per claim, and write the numbers where `--json` says."""
    parser = options(__doc__, quick="64 examples of each set, once", bench="72 examples of each set")
    asked = parser.parse_args()
    # Otherwise DeepSpeed, which transformers imports, says that it finds no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    count, rounds = {"quick": (64, 1), "bench": (72, 3), "full": (400, 3)}[asked.size]
    sets = {"gsm8k_and_code": real_pairs(REAL_DATA), "lognormal": invented_pairs(5000)}
    claims: list[dict[str, Any]] = []
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="palimpsest-") as temporary:
        scratch = Path(temporary)
        for case, pairs in sets.items():
            if not pairs:
                print(f"{REAL_DATA} has no pairs: only made-up ones are trained on")
                continue
            folder = scratch / case
            facts = prepare(folder, pairs, count)
            print(f"{case}:", *(f"{name} {value:.4g}" for name, value in facts.items()), flush=True)
            arguments = ("--folder", folder, "--seq-len", SEQ_LEN)
            losses = peers.run(sys.executable, "instruction_losses.py", *arguments, scratch=scratch, timeout=900)
            print(
                f"  losses of {losses['examples']} examples: at most {losses['largest_relative_difference']:.1e} apart",
                flush=True,
            )
            results = measure(folder, rounds, scratch)
            measured[case] = {"pairs": facts, "losses": losses, "rounds": results}
            claims += claims_of(case, results, losses)
    show(claims)
    if asked.json:
        settings = {"seq_len": SEQ_LEN, "vocabulary": VOCAB, "hidden": 256, "layers": 4, "threads": 1}
        write_json(asked.json, asked.size, {"settings": settings, "measured": measured, "claims": claims})


if __name__ == "__main__":
    peers.reported(main)
