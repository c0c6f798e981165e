"""A training step on two CPU ranks: this system, and transformers' Trainer with DeepSpeed ZeRO-3, and with PEFT's LoRA.

Both sides train the same LLaMA on the same packed rows, in the same precision, with the same micro-batch, accumulation and
AdamW, and the peer with the buckets of ds_configs/zero3_cpu.json, sdpa attention and position_ids that restart at every
document. Rows are measured with half of the tokens masked, as instructions are, and with none, as continued pretraining
has it. Ours runs with the placement that training would choose, and with the other one for comparison:

  peer              Trainer, DeepSpeed ZeRO-3; PEFT for LoRA
  ours_zero3        train.placement = "zero3"
  ours_replicated   train.placement = "replicated"

Contenders take turns, each as two fresh processes with one thread. Steps are timed from barrier to barrier after a warm-up;
a ratio is that of the medians of a round, the median over the rounds is the claim. The processor time of the step is
printed beside it, for machines that have other things to do. Peak memory is what a rank's process holds at most in the measured steps, beyond
what it held with its libraries loaded. In fp32 the first loss of all must be the same.

Then: bytes that a LoRA step puts on the wire, counted by training/watch/traffic.py in all contenders, at the width of a larger model; and the
time that a run of training/main.py from text waits for its rows.

    python benchmarks/train_step.py [--quick | --bench] [--json PATH]
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import peers  # noqa: E402
from benchmarks.claims import claim, options, show, turns, write_json  # noqa: E402
from benchmarks.data_corpus import library_texts, tokenizer_files, tokenizer_label, write_jsonl  # noqa: E402

RANKS = 2
DS_CONFIG = Path(__file__).resolve().parents[1] / "ds_configs" / "zero3_cpu.json"
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "peft")
TRAINER = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "deepspeed"))
PEER = {"full": TRAINER, "lora": f"{TRAINER}, peft {importlib.metadata.version('peft')}"}
GOAL = {"full": ">=1.2", "lora": ">=1.3"}
GOALS_FOR = {"full": ("ours_zero3", "ours_replicated"), "lora": ("ours_replicated",)}
"""The placements that the goal is about: of an adapter the one that spares the base the way, where it fits."""
CONTENDERS = ("peer", "ours_zero3", "ours_replicated")
SAME_LOSS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Size:
    """A LLaMA and the batches of one rank."""

    hidden: int
    layers: int
    seq_len: int
    document: int
    micro: int
    accumulation: int
    vocab: int = 32_000

    def save(self, folder: Path) -> Path:
        """Write the model with random weights, in fp32."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        heads = self.hidden // 64
        config = LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.hidden * 8 // 3 // 64 * 64,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=max(1024, self.seq_len),
            use_cache=False,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        return folder

    def arguments(self) -> tuple[object, ...]:
        """For a contender."""
        return (
            "--seq-len", self.seq_len, "--document", self.document, "--micro", self.micro,
            "--accumulation", self.accumulation,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, and by whom."""

    method: str
    """full or lora"""
    precision: str
    masked: float
    """Part of the tokens that is no target."""
    contenders: tuple[str, ...] = CONTENDERS

    @property
    def suffix(self) -> str:
        """Of its claims' names."""
        return f"{self.precision}_masked{100 * self.masked:.0f}"


def cases(size: str) -> list[Case]:
    """What is measured at a size of the run."""
    if size == "quick":
        return [Case(method=method, precision="fp32", masked=0.5) for method in ("full", "lora")]
    if size == "bench":
        # Full finetuning where ours gains least, ZeRO-3 against ZeRO-3; one case in fp32, in which first losses are to be equal.
        zero3, replicated = ("peer", "ours_zero3"), ("peer", "ours_replicated")
        return [
            Case(method="full", precision="bf16", masked=0.5, contenders=zero3),
            Case(method="full", precision="bf16", masked=0.0, contenders=zero3),
            Case(method="lora", precision="fp32", masked=0.5, contenders=replicated),
        ]
    return [
        Case(method=method, precision=precision, masked=masked)
        for method in ("full", "lora")
        for precision in ("bf16", "fp32")
        for masked in (0.5, 0.0)
    ]


def step(contender: str, base: Path, size: Size, scratch: Path, *arguments: object) -> dict[str, Any]:
    """What a contender printed."""
    script = "trainer_steps.py" if contender == "peer" else "ours_steps.py"
    placement = () if contender == "peer" else ("--placement", contender.removeprefix("ours_"))
    common = ("--base", base, "--ds-config", DS_CONFIG, *size.arguments())
    return peers.run(
        sys.executable, script, *common, *placement, *arguments, scratch=scratch, timeout=1200, ranks=RANKS
    )


def measure(
    case: Case, base: Path, size: Size, rounds: int, steps: int, scratch: Path
) -> dict[str, list[dict[str, Any]]]:
    """What every contender of a case printed in every round."""
    method, precision, masked = case.method, case.precision, case.masked
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in case.contenders}
    for order in turns(case.contenders, rounds):
        for name in order:
            result = step(
                name, base, size, scratch,
                "--method", method, "--precision", precision, "--masked", masked, "--steps", steps, "--warm-up", 1,
            )  # fmt: skip
            results[name].append(result)
            print(
                f"  {method:4} {precision} masked {masked:.1f}  {name:15} {result['median_seconds']:7.2f} s  processor "
                f"{result['cpu_seconds']:7.2f} s  peak {result['peak_bytes'] / 2**20:6.0f} MiB  first loss "
                f"{result['first_loss']:.7f}",
                flush=True,
            )
    return results


def step_claims(
    method: str, precision: str, suffix: str, results: dict[str, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Speed, memory and the same start, of ours that took part."""

    def figures(name: str, figure: str) -> list[float]:
        return [float(result[figure]) for result in results[name]]

    claims = []
    for name in (name for name in CONTENDERS if name in results and name != "peer"):
        goal = GOAL[method] if name in GOALS_FOR[method] else ">=1"
        speed = claim(
            f"{method}_tokens_per_second_{name}_{suffix}",
            figures("peer", "median_seconds"), figures(name, "median_seconds"), goal, PEER[method],
        )  # fmt: skip
        processor = claim("", figures("peer", "cpu_seconds"), figures(name, "cpu_seconds"), goal, PEER[method])
        claims.append(speed | {"processor_time": processor["ratio"]})
        print(f"  {speed['claim']}: {speed['ratio']:.2f}, by processor time {processor['ratio']:.2f}")
        memory = f"{method}_peak_memory_{name}_{suffix}"
        claims.append(claim(memory, figures(name, "peak_bytes"), figures("peer", "peak_bytes"), "<=1", PEER[method]))
        if precision == "fp32":
            ours, theirs = figures(name, "first_loss"), figures("peer", "first_loss")
            apart = [abs(a / b - 1) / SAME_LOSS for a, b in zip(ours, theirs, strict=True)]
            # In units of what they may differ by.
            claims.append(claim(f"{method}_first_loss_{name}_{suffix}", apart, [1.0] * len(apart), "<=1", PEER[method]))
    return claims


def traffic_claims(base: Path, size: Size, scratch: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Bytes per rank of a LoRA step with a replicated base, over those of ZeRO-3."""
    counted = {
        name: step(
            name,
            base,
            size,
            scratch,
            "--method",
            "lora",
            "--precision",
            "bf16",
            "--steps",
            1,
            "--warm-up",
            1,
            "--count",
        )["traffic"]
        for name in CONTENDERS
    }
    sums = {name: sum(kinds.values()) for name, kinds in counted.items()}
    for name, total in sums.items():
        print(f"  LoRA step  {name:15} {total / 1e6:9.2f} MB on the wire per rank")
    own = [sums["ours_replicated"]]
    claims = [
        claim("lora_bytes_replicated_over_trainer_zero3", own, [sums["peer"]], "<=0.02", PEER["lora"]),
        claim("lora_bytes_replicated_over_our_zero3", own, [sums["ours_zero3"]], "<=0.02", "ours"),
    ]
    return claims, counted


def data_wait(size: Size, steps: int, scratch: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The part of its steps that a run from text waits for rows."""
    documents = write_jsonl(islice(library_texts(30_000_000), 4000), scratch / "documents", 2)
    tokenizer, _ = tokenizer_files(scratch)
    recipe = scratch / "recipe.toml"
    recipe.write_text(
        f"""
[run]
dir = "run"
[model.architecture]
hidden_size = {size.hidden}
intermediate_size = {size.hidden * 8 // 3 // 64 * 64}
num_layers = {size.layers}
num_heads = {size.hidden // 64}
num_kv_heads = {size.hidden // 64}
vocab_size = {size.vocab}
[data]
tokenizer = "{tokenizer}"
seq_len = {size.seq_len}
workers = 1
[data.sources.text]
path = "documents"
[train]
steps = {steps}
global_batch_rows = {RANKS * size.micro * size.accumulation}
micro_batch_rows = {size.micro}
log_every_steps = 2
[checkpoint]
every_steps = 1000
export = false
""",
        encoding="utf-8",
    )
    result = peers.run(
        sys.executable, "ours_recipe.py", "--recipe", recipe, "--ds_config", DS_CONFIG, "--after", 2,
        scratch=scratch, timeout=1200, ranks=RANKS,
    )  # fmt: skip
    print(f"  a run from {documents['documents']} documents with the {tokenizer_label()} tokenizer: {result}")
    waited = claim(
        "data_wait_of_step_time", [sum(result["data_seconds"])], [sum(result["step_seconds"])], "<=0.01", "ours"
    )
    return waited, result


def main() -> None:
    """Measure, print a line per claim, and write the numbers where `--json` says."""
    parser = options(
        __doc__,
        quick="one small case per method, in some minutes",
        bench="full finetuning under ZeRO-3 with and without a mask, LoRA replicated, in two rounds",
    )
    parser.add_argument("--methods", default="full,lora", help="which of full and lora; both unless given")
    parser.add_argument(
        "--rounds", type=int,
        help="turns of every contender, 1 or the next multiple of their number; 3, 2 with --bench, and 1 with --quick",
    )  # fmt: skip
    asked = parser.parse_args()
    quick = asked.size == "quick"
    narrow = Size(hidden=1024, layers=2, seq_len=64, document=40, micro=1, accumulation=2)
    wire = narrow if asked.size != "full" else replace(narrow, hidden=2048)
    if quick:
        size = Size(hidden=256, layers=4, seq_len=256, document=100, micro=2, accumulation=1)
    else:
        size = Size(hidden=384, layers=6, seq_len=1024, document=300, micro=1, accumulation=2)
    rounds = asked.rounds or {"quick": 1, "bench": 2, "full": 3}[asked.size]
    steps = 4 if asked.size == "full" else 3
    # Otherwise DeepSpeed, which transformers imports, says that it finds no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    claims: list[dict[str, Any]] = []
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="palimpsest-") as temporary:
        scratch = Path(temporary)
        base = size.save(scratch / "base")
        for case in cases(asked.size):
            if case.method not in asked.methods.split(","):
                continue
            results = measure(case, base, size, rounds, steps, scratch)
            measured[f"{case.method}_{case.suffix}"] = results
            claims += step_claims(case.method, case.precision, case.suffix, results)
        counted, measured["traffic"] = traffic_claims(wire.save(scratch / "wide"), wire, scratch)
        waited, measured["run"] = data_wait(size, 30 if asked.size == "full" else 10, scratch)
        claims += [*counted, waited]
    show(claims)
    if asked.json:
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        settings = {"ranks": RANKS, "threads": 1, "size": size.__dict__, "wire": wire.__dict__, "versions": versions}
        write_json(asked.json, asked.size, {"settings": settings, "measured": measured, "claims": claims})


if __name__ == "__main__":
    peers.reported(main)
