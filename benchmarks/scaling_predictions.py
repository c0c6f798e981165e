"""What `launch plan` says of five published models on 8 to 1,024 GPUs, and of trainings whose speed others have published.

The plans are those that a user of the command gets, read from its JSON. The published trainings are put into the plan's own
arithmetic as they were done: their micro-batch, their recomputation, the placement that comes nearest to theirs. A step has the
study's 192 rows, or the next multiple of the GPUs.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.__main__ import main as launch
from launch.plan.cluster import GPUS, Cluster, memory_of
from launch.plan.costs import Costs, costs_of
from launch.plan.shapes import known_shape
from monteclora.config import LoRAConfig
from training.costs.flops import peak_flops
from training.costs.memory import Placement, Setup, Trained
from training.costs.shape import Shape

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "cpt_code_llama7b.toml"
MODELS = {"llama-2-7b": "7B", "llama-2-13b": "13B", "llama-2-70b": "70B", "llama-3-8b": "8B", "llama-3-70b": "70B (3)"}
NODES = (1, 2, 4, 8, 16, 32, 64, 128)
GPUS_PER_NODE = 8
ROWS = 192
"""Of the study's step, of 4,096 tokens each: 786,432 tokens."""
KINDS = {"none": "full", "lora": "LoRA", "monteclora": "MonteCLoRA"}


def predictions() -> list[dict[str, Any]]:
    """A plan for every model, method and number of nodes of 8 H100: the recommendation, and each placement at its best."""
    return [predict(model, kind, nodes) for model in MODELS for kind in KINDS for nodes in NODES]


def predict(model: str, kind: str, nodes: int, *more: str) -> dict[str, Any]:
    """What the plan says of one model, method and number of nodes, with more options; bytes and seconds."""
    gpus = GPUS_PER_NODE * nodes
    rows = gpus * -(-ROWS // gpus)
    plan = plan_json(
        "--shape", model, "--nodes", str(nodes), "--adapter.kind", kind, "--train.global_batch_rows", str(rows),
        *more,
    )  # fmt: skip
    fitting = [option for option in plan["options"] if option["fits"]]
    placements = dict.fromkeys(option["placement"] for option in plan["options"])
    best = {
        name: max((o for o in fitting if o["placement"] == name), key=lambda o: o["tokens_per_second"], default=None)
        for name in placements
    }
    chosen = plan["recommended"]
    found: dict[str, Any] = {
        "model": model, "kind": kind, "gpus": gpus, "rows": rows,
        "tokens_per_second_per_gpu": {name: o and o["tokens_per_second_per_gpu"] for name, o in best.items()},
        "recommended": chosen and {name: chosen[name] for name in (
            "placement", "micro_batch_rows", "recomputed_layers", "host_bytes_per_node", "wire_bytes", "compute_seconds",
            "network_seconds", "step_seconds", "tokens_per_second_per_gpu", "hours", "goodput", "checkpoint_bytes",
            "checkpoint_write_seconds", "checkpoint_every_steps",
        )} | {"memory_bytes": chosen["memory_bytes"]["total"]},
        "fits_computing_once": any(not o["recomputed_layers"] and not o["memory_bytes"]["host"] for o in fitting),
    }  # fmt: skip
    return found | {"limits": limits(found)}


def limits(found: dict[str, Any]) -> list[str]:
    """What keeps this training from being faster on these GPUs, or from using more of them.

    memory: nothing fits, or nothing without computing layers again or leaving states to the host. network: it takes longer than
    computing. batch: every GPU has one row of the step, so more GPUs need a larger step. Else it is computing.
    """
    chosen = found["recommended"]
    if chosen is None:
        return ["memory"]
    named = {
        "memory": not found["fits_computing_once"],
        "network": chosen["network_seconds"] > chosen["compute_seconds"],
        "batch": found["rows"] == found["gpus"],
    }
    return [name for name, is_so in named.items() if is_so] or ["computing"]


def slower_networks() -> list[dict[str, Any]]:
    """64 GPUs with less and less between the nodes."""
    return [
        {"gigabits": gigabits} | predict(model, kind, 8, "--bandwidth", str(gigabits))
        for gigabits in (400, 100, 50, 12.5)
        for model, kind in (("llama-2-7b", "none"), ("llama-2-7b", "lora"), ("llama-2-70b", "none"), ("llama-2-70b", "lora"))
    ]  # fmt: skip


def plan_json(*options: str) -> dict[str, Any]:
    """What `python -m launch plan` prints of the study's recipe with these options and `--json`.

    Raises:
        RuntimeError: the command refused them; it has said why.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), _recipe_without_places():
        code = launch(["plan", str(RECIPE), "--json", *options])
    if code == 2:
        raise RuntimeError(f"launch plan refused {' '.join(options)}")
    plan: dict[str, Any] = json.loads(printed.getvalue())
    return plan


@contextlib.contextmanager
def _recipe_without_places() -> Iterator[None]:
    """The recipe's paths stay as they are written: what they name here would not matter, but would be looked at."""
    before = {name: os.environ.pop(name) for name in ("SCRATCH", "DATA") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A training and the speed that its publisher measured."""

    source: str
    model: str
    shape: Shape
    gpus: int
    gpu: str
    seq_len: int
    rows: int
    """Of a micro-batch."""
    tokens_per_second: float
    """Per GPU."""
    recomputed: float = 0.0
    """Part of the layers."""
    micro_batches: int = 1
    placement: Placement = "zero3"
    adapter: LoRAConfig | None = None
    gigabits: float = 400
    """Per second and GPU between nodes."""
    gpus_per_node: int = 8
    made_from: bool = False
    """Whether a constant of the plan was taken from it."""
    note: str = ""

    def predict(self) -> Costs:
        """What the plan's arithmetic says of it."""
        memory, inside = GPUS[self.gpu]
        nodes = max(1, self.gpus // self.gpus_per_node)
        per_node = min(self.gpus, self.gpus_per_node)
        cluster = Cluster(
            nodes=nodes, gpus_per_node=per_node, gpu=self.gpu, memory_bytes=memory_of(memory),
            peak_flops=peak_flops(self.gpu) or 0.0, between=self.gigabits * 1e9 / 8, inside=inside * 1e9,
        )  # fmt: skip
        setup = Setup(
            model=Trained(self.shape, self.adapter), placement=self.placement, ranks=self.gpus, ranks_per_node=per_node,
            micro_batch_rows=self.rows, seq_len=self.seq_len, recomputed_layers=round(self.recomputed * self.shape.layers),
        )  # fmt: skip
        rows = self.rows * self.micro_batches * self.gpus
        return costs_of(setup, cluster, rows_per_step=rows, forwards=1, backwards=1)

    @property
    def error(self) -> float:
        """Predicted over published speed, less 1: above 0 the plan promises too much."""
        return self.predict().tokens_per_second_per_gpu / self.tokens_per_second - 1


def _mpt(hidden: int, layers: int, heads: int) -> Shape:
    """MPT as a LLaMA of as many weights: its two matrices of 4 d x d per block as three of 8/3 d x d."""
    return Shape(
        hidden=hidden, intermediate=round(8 * hidden / 3), layers=layers, heads=heads, kv_heads=heads,
        head_dim=hidden // heads, vocab=50368, is_tied=True,
    )  # fmt: skip


def _qwen(hidden: int, intermediate: int, layers: int, heads: int, vocab: int) -> Shape:
    """Qwen's first models: LLaMA's blocks."""
    return Shape(
        hidden=hidden, intermediate=intermediate, layers=layers, heads=heads, kv_heads=heads, head_dim=128, vocab=vocab,
        is_tied=False,
    )  # fmt: skip


@functools.cache
def published() -> tuple[Published, ...]:
    """Trainings in bf16 without tensor or pipeline parallelism of which the conditions are known."""
    mpt = {"7B": _mpt(4096, 32, 32), "13B": _mpt(5120, 40, 40), "30B": _mpt(7168, 48, 64), "70B": _mpt(8192, 80, 64)}
    foundry, ml, llama8 = "llm-foundry", "ml-engineering", known_shape("llama-3.1-8b")

    def mosaic(
        size: str, seq_len: int, gpus: int, rows: int, accumulated: int, recomputed: int, speed: float, *,
        gpu: str = "H100", made_from: bool = False,
    ) -> Published:  # fmt: skip
        return Published(
            source=foundry, model=f"MPT-{size}", shape=mpt[size], gpus=gpus, gpu=gpu, seq_len=seq_len, rows=rows,
            micro_batches=accumulated, recomputed=recomputed, tokens_per_second=speed, made_from=made_from,
            gigabits=200 if gpu == "A100" else 400,
        )  # fmt: skip

    def teraflops(seq_len: int, rate: float, *, made_from: bool = False, **how: Any) -> Published:
        """Published as TFLOP/s and GPU with causal attention, which the plan's count of FLOPs turns into tokens."""
        pattern = Published(
            source=ml, model="Llama-3.1-8B", shape=llama8, gpus=8, gpu="H200", seq_len=seq_len, rows=1,
            tokens_per_second=1.0, made_from=made_from, **how,
        )  # fmt: skip
        costs = pattern.predict()
        speed = rate * 1e12 / (costs.flops / costs.tokens)
        return Published(**(vars(pattern) | {"tokens_per_second": speed, "note": f"{rate:g} TFLOP/s"}))

    def qwen(size: str, gpus: int, seq_len: int, seconds: float, **how: Any) -> Published:
        """Published as seconds per step of 8 micro-batches of a row."""
        shape = {"7B": _qwen(4096, 11008, 32, 32, 151936), "72B": _qwen(8192, 24576, 80, 64, 152064)}[size]
        return Published(
            source="Qwen", model=f"Qwen-{size}", shape=shape, gpus=gpus, gpu="A100", seq_len=seq_len, rows=1, micro_batches=8,
            tokens_per_second=8 * seq_len / seconds, recomputed=1.0, adapter=LoRAConfig(rank=64, alpha=16.0), gigabits=200,
            **how,
        )  # fmt: skip

    return (
        mosaic("7B", 2048, 8, 6, 1, 0, 10643, made_from=True),
        mosaic("7B", 4096, 8, 16, 2, 1, 8611, made_from=True),
        mosaic("7B", 8192, 8, 8, 2, 1, 6935),
        mosaic("7B", 2048, 128, 6, 1, 0, 10475),
        mosaic("7B", 2048, 256, 6, 1, 0, 10119),
        mosaic("7B", 2048, 512, 6, 1, 0, 9670, made_from=True),
        mosaic("13B", 2048, 8, 2, 1, 0, 4792),
        mosaic("13B", 2048, 64, 2, 1, 0, 4800),
        mosaic("13B", 4096, 8, 10, 3, 1, 4717),
        mosaic("13B", 2048, 512, 16, 1, 1, 4952),
        mosaic("30B", 2048, 8, 3, 21, 1, 2002),
        mosaic("30B", 2048, 32, 14, 3, 1, 2308),
        mosaic("30B", 2048, 512, 8, 1, 1, 2115),
        mosaic("70B", 2048, 32, 2, 16, 1, 882),
        mosaic("70B", 2048, 64, 8, 4, 1, 1039),
        mosaic("70B", 2048, 128, 8, 1, 1, 1058),
        mosaic("70B", 2048, 512, 8, 1, 1, 1007),
        mosaic("7B", 2048, 8, 6, 2, 0, 4641, gpu="A100"),
        mosaic("13B", 2048, 8, 2, 3, 0, 2262, gpu="A100"),
        mosaic("70B", 2048, 64, 8, 4, 1, 410, gpu="A100"),
        teraflops(8192, 461, placement="replicated"),
        teraflops(8192, 141, placement="zero3_offload", recomputed=1.0, made_from=True),
        teraflops(32768, 324, placement="zero3_offload", recomputed=1.0),
        teraflops(131072, 420, placement="zero3_offload", recomputed=1.0),
        Published(
            source="torchtitan", model="Llama-3.1-8B", shape=llama8, gpus=8, gpu="H100", seq_len=8192, rows=2,
            tokens_per_second=5762, recomputed=0.5, note="eager; GPUs limited to 500 W; every other product recomputed",
        ),
        Published(
            source="fms-fsdp", model="LLaMA-2-7B", shape=known_shape("llama-2-7b"), gpus=128, gpu="A100", seq_len=4096, rows=2,
            tokens_per_second=3760, placement="zero3_hpz", gigabits=200, note="network and micro-batch assumed",
        ),
        qwen("7B", 1, 2048, 5.2, placement="replicated"),
        qwen("7B", 1, 8192, 21.3, placement="replicated"),
        qwen("72B", 4, 2048, 45.7),
        qwen("7B", 4, 2048, 9.25, placement="replicated", gpus_per_node=2, note="2 nodes of 2; network not published"),
    )  # fmt: skip


def checked(memory_model: Path) -> dict[str, dict[str, float]]:
    """The errors that a result of memory_model.py has: their number and the largest, by claim."""
    claims = json.loads(memory_model.read_text())["claims"]
    return {each["claim"]: {"n": each["n"], "max": each["max"]} for each in claims}


def comparison() -> list[dict[str, Any]]:
    """Every published training beside its prediction."""
    return [
        {
            "source": each.source, "model": each.model, "method": "full" if each.adapter is None else "LoRA", "gpus": each.gpus,
            "gpu": each.gpu, "seq_len": each.seq_len, "micro_batch_rows": each.rows, "placement": each.placement,
            "recomputed": each.recomputed, "published": each.tokens_per_second,
            "predicted": each.predict().tokens_per_second_per_gpu, "error": each.error, "made_from": each.made_from,
            "note": each.note,
        }
        for each in published()
    ]  # fmt: skip


def weak_scaling() -> list[dict[str, Any]]:
    """Speed per GPU on many nodes over that on few, of the same model with the same micro-batch and recomputation."""
    by_run = {
        (each.model, each.gpus, each.seq_len, each.recomputed): each for each in published() if each.gpu == "H100"
    }
    pairs = [("MPT-7B", 8, 512, 0), ("MPT-13B", 8, 64, 0), ("MPT-30B", 32, 512, 1), ("MPT-70B", 64, 512, 1)]
    found = []
    for model, few, many, recomputed in pairs:
        one, other = by_run[model, few, 2048, recomputed], by_run[model, many, 2048, recomputed]
        predicted = [each.predict().tokens_per_second_per_gpu for each in (one, other)]
        found.append(
            {"model": model, "from": few, "to": many, "published": other.tokens_per_second / one.tokens_per_second,
             "predicted": predicted[1] / predicted[0], "made_from": one.made_from and other.made_from}
        )  # fmt: skip
    return found


def error_groups(compared: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of what no constant was taken from: number, median and worst error by group."""
    independent = [each for each in compared if not each["made_from"]]
    groups = {
        "H100 and H200": [each for each in independent if each["gpu"] != "A100"],
        "A100, full finetuning": [each for each in independent if each["gpu"] == "A100" and each["method"] == "full"],
        "A100, LoRA (Qwen)": [each for each in independent if each["gpu"] == "A100" and each["method"] == "LoRA"],
    }
    return {
        name: {
            "n": len(members),
            "median": statistics.median(each["error"] for each in members),
            "lowest": min(each["error"] for each in members),
            "highest": max(each["error"] for each in members),
            "within": sum(abs(each["error"]) <= 0.25 for each in members),
        }
        for name, members in groups.items()
    }
