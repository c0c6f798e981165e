"""A training step of LLaMA-2-7B on one GPU: ours with LoRA, MonteCLoRA and full finetuning, and transformers with PEFT.

Random weights, rows of 4096 tokens that are one document each, bf16. Needs torch, transformers and accelerate; what needs PEFT or Liger
is left out where they are not installed, DeepSpeed is not used. Parts, of which `--parts` chooses:

  adapters   ours LoRA and MonteCLoRA, PEFT's LoRA, and the floor: forward, and the gradient of the input, of the frozen
             model with our attention and loss head. All in one process, one row per step, taking turns.
  profile    where the time of a LoRA step and of the floor goes: matrix products, attention, the rest, gaps
  full       full finetuning: ours (bf16 weights, fp32 gradients, masters and moments: 18 bytes per parameter, with as few layers
             recomputed as training/costs/memory.py says are needed), and transformers as its Trainer with bf16 = true has it (fp32
             weights under autocast: 16 bytes per parameter, and recomputed activations). One after the other, twice.
  rows       ours LoRA with 2 and 4 rows per step
  noise      PEFT's MonteCLoRA
  compile    ours LoRA with model.compile; last, as what it changes stays changed

Both sides train with fused AdamW and clip gradients. Liger, where it is installed, replaces classes of transformers, so that the
peers have its kernels too; the JSON says whether it is. The JSON is written after every part. Without a GPU shapes are small, and the numbers show only that the
script runs: its claims have no goal.

    python benchmarks/gpu_step.py --json PATH [--quick] [--parts adapters,profile,full]
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import re
import statistics
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.claims import claim, options, show, turns, write_json  # noqa: E402
from data_pipeline.config import DataConfig  # noqa: E402
from monteclora import attach_adapter  # noqa: E402
from monteclora.config import LoRAConfig  # noqa: E402
from training.batches import IGNORE, StepBatch, stack  # noqa: E402
from training.config import AdapterConfig, Config, ModelConfig, OptimConfig, RunConfig, TrainConfig  # noqa: E402
from training.costs.flops import peak_flops, step_flops  # noqa: E402
from training.costs.memory import Setup, Trained, estimate, layers_to_recompute, usable_bytes  # noqa: E402
from training.costs.shape import from_hugging_face  # noqa: E402
from training.engine import Engine  # noqa: E402
from training.model.assembly import Assembly  # noqa: E402
from training.model.attention import ATTENTION  # noqa: E402
from training.model.build import recompute  # noqa: E402
from training.model.kernels import use_kernels  # noqa: E402
from training.model.loss_head import LossHead, LossRequest  # noqa: E402
from training.ranks.distributed import init_distributed, leave_distributed  # noqa: E402
from training.watch.phases import Phases  # noqa: E402
from training.world import World, detect_world  # noqa: E402

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK, ALPHA = 16, 32
PARTS = ("adapters", "profile", "full", "rows", "noise", "compile")
DTYPE = torch.bfloat16
GEMM = re.compile(r"gemm|nvjet|cutlass|cublas|matmul|aten::(add)?mm_?$|aten::bmm", re.IGNORECASE)
ATTENTION_KERNEL = re.compile(r"flash|fmha|attention", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """Where, and how large."""

    device: torch.device
    world: World
    llama: LlamaConfig
    seq_len: int
    repetitions: int

    def wait(self) -> None:
        """Let the device finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def allocated(self) -> int:
        """Bytes of tensors on the device; 0 on a CPU, where `probes.py` would have to be used."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def peak(self) -> int:
        """Most of them since the last reset."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0

    def model(self, *, attention: str, dtype: torch.dtype = DTYPE) -> Any:
        """A LLaMA whose weights are the same at every call."""
        torch.manual_seed(0)
        with self.device:
            model = AutoModelForCausalLM.from_config(self.llama, dtype=dtype, attn_implementation=attention)
        model.config.use_cache = False
        return model.train()


class Row(NamedTuple):
    """A row of the stream, as training/batches.py reads it."""

    lane: int
    input_ids: Any
    labels: Any
    position_ids: Any


def make_batch(place: Place, rows: int) -> StepBatch:
    """One micro-batch of rows that are one document each."""
    draw = np.random.default_rng(0)
    made = []
    for lane in range(rows):
        ids = draw.integers(0, place.llama.vocab_size, place.seq_len)
        made.append(Row(lane, ids, np.append(ids[1:], IGNORE), np.arange(place.seq_len)))
    return StepBatch(micro_batches=[stack(made)], row_hash=0, documents=[])  # type: ignore[arg-type, list-item]


class Contender:
    """Something that takes steps on the same rows."""

    phases: Phases
    adapter: LoRAConfig | None = None

    def __init__(self, place: Place, rows: int) -> None:
        batch = make_batch(place, rows)
        self.place, self.batch = place, batch.pinned() if place.device.type == "cuda" else batch
        self.tokens = rows * place.seq_len
        self.phases = Phases(place.device)
        self.optimizer: torch.optim.Optimizer | None = None

    def step(self) -> float:
        """One step; its loss, in nats per target."""
        raise NotImplementedError

    def flops(self) -> float:
        """Model FLOPs of a step."""
        return step_flops(
            from_hugging_face(self.place.llama.to_dict()), self.adapter,
            tokens=self.tokens, targets=self.batch.num_targets, pairs=self.batch.pairs,
        )  # fmt: skip


class Ours(Contender):
    """This system's engine with a replicated placement."""

    def __init__(self, place: Place, kind: str, *, rows: int = 1, recomputed: int = 0, compiled: bool = False) -> None:
        super().__init__(place, rows)
        config = Config(
            run=RunConfig(dir=Path("unused")),
            model=ModelConfig(compile=compiled),
            adapter=AdapterConfig(kind=kind, rank=RANK, alpha=ALPHA, targets=TARGETS, dropout=0.0),  # type: ignore[arg-type]
            data=DataConfig(sources={}, tokenizer=Path("unused"), seq_len=place.seq_len),
            train=TrainConfig(
                steps=10**6, placement="replicated", global_batch_rows=rows * place.world.size, micro_batch_rows=rows
            ),
            optim=OptimConfig(lr=1e-5, schedule="constant"),
        )
        model = place.model(attention=ATTENTION)
        recompute(model, recomputed)
        self.adapter = config.adapter.build()
        attached = attach_adapter(model, self.adapter, seed=0) if self.adapter else None
        self.kernels = use_kernels(model, config.model.kernels, place.device)
        assembly = Assembly(
            model=model, adapter=attached, hidden_key=None, recomputed_layers=recomputed, kernels=self.kernels
        )
        self._engine = Engine(assembly, config, {}, place.world)
        self.phases = self._engine.phases
        self._steps = 0

    def step(self) -> float:
        """Forward, backward, update, as training/loop.py has it."""
        result = self._engine.step(self.batch, self._steps, targets=self.batch.num_targets)
        self._steps += 1
        return result.loss


class Floor(Contender):
    """What any adapter needs at least: the frozen model forward, and the gradient of its input."""

    def __init__(self, place: Place, rows: int = 1) -> None:
        super().__init__(place, rows)
        self._model = place.model(attention=ATTENTION).requires_grad_(False)
        use_kernels(self._model, "auto", place.device)
        self._head = LossHead(self._model)

    def step(self) -> float:
        """Forward and backward."""
        micro = self.batch.micro_batches[0].to(self.place.device)
        with self.phases("forward"):
            embedded = self._model.get_input_embeddings()(micro.input_ids).requires_grad_()
            with self._head.asked(LossRequest(index=micro.target_index, targets=micro.targets)):
                losses: Tensor = self._model(
                    inputs_embeds=embedded, position_ids=micro.position_ids, use_cache=False,
                    cu_seq_lens_q=micro.cu_seqlens, cu_seq_lens_k=micro.cu_seqlens,
                    max_length_q=micro.max_seqlen, max_length_k=micro.max_seqlen,
                ).logits  # fmt: skip
            loss = losses.sum() / self.batch.num_targets
        with self.phases("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()


class Peer(Contender):
    """transformers with sdpa attention and its own loss, under autocast as its Trainer with bf16 = true; with PEFT or without."""

    def __init__(self, place: Place, kind: str, *, rows: int = 1) -> None:
        super().__init__(place, rows)
        model = place.model(attention="sdpa", dtype=torch.float32 if kind == "none" else DTYPE)
        self._penalty: Callable[[], Tensor] | None = None
        if kind == "none":
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        else:
            import peft

            # Of noise as many draws as one step needs: the default of 150 takes 87 GB at this size.
            noise = peft.MontecloraConfig(buffer_size=1) if kind == "monteclora" else None
            own = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), monteclora_config=noise)
            model = peft.get_peft_model(model, own).to(place.device)
            self._penalty = model.base_model._get_monteclora_loss if noise else None
            self.adapter = LoRAConfig(rank=RANK, alpha=ALPHA, targets=TARGETS)
        self._model: nn.Module = model
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self._trained, lr=1e-5, weight_decay=0.0, fused=True)

    def step(self) -> float:
        """Forward, backward, update."""
        micro = self.batch.micro_batches[0].to(self.place.device)
        assert self.optimizer is not None
        with self.phases("forward"), torch.autocast(self.place.device.type, DTYPE):
            loss = self._model(input_ids=micro.input_ids, labels=micro.input_ids).loss
            total = loss + self._penalty() if self._penalty else loss
        with self.phases("backward"):
            total.backward()
        with self.phases("optimizer"):
            nn.utils.clip_grad_norm_(self._trained, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        value: float = loss.item()
        return value


def measure(place: Place, makers: dict[str, Callable[[], Contender]], repetitions: int) -> dict[str, dict[str, Any]]:
    """Build all, let them take turns, and return each one's figures.

    Peak memory is that of a contender beyond what the others hold.
    """
    built: dict[str, Contender] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, make in makers.items():
        before = place.allocated()
        built[name] = make()
        first = built[name].step()
        built[name].step()
        place.wait()
        held = place.allocated() - before
        if place.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(place.device)
        built[name].step()
        place.wait()
        built[name].phases.reset()
        found[name] = {
            "first_loss": first, "held_bytes": held, "peak_bytes": place.peak() - before, "seconds": [],
            "kernels": getattr(built[name], "kernels", "torch"),
        }  # fmt: skip
    for order in turns(built, repetitions):
        for name in order:
            place.wait()
            start = time.perf_counter()
            built[name].step()
            place.wait()
            found[name]["seconds"].append(time.perf_counter() - start)
    peak = peak_flops(torch.cuda.get_device_name(place.device)) if place.device.type == "cuda" else None
    for name, contender in built.items():
        median = statistics.median(found[name]["seconds"])
        found[name] |= {
            "tokens_per_second": contender.tokens / median,
            "model_flops": contender.flops(),
            "mfu": contender.flops() / median / peak if peak and not isinstance(contender, Floor) else None,
            "phase_ms": {k: 1e3 * v / len(found[name]["seconds"]) for k, v in contender.phases.seconds().items()},
        }
        split = "  ".join(f"{k} {v:.1f}" for k, v in found[name]["phase_ms"].items())
        utilization = f"  MFU {found[name]['mfu']:.3f}" if found[name]["mfu"] else ""
        print(
            f"{name:22} {1e3 * median:9.1f} ms  {found[name]['tokens_per_second']:9.0f} tokens/s{utilization}  "
            f"peak {found[name]['peak_bytes'] / 2**30:6.1f} GiB  ({split} ms)",
            flush=True,
        )
    return found


def release(place: Place) -> None:
    """Give the memory of contenders back that nobody refers to."""
    gc.collect()
    if place.device.type == "cuda":
        torch.cuda.empty_cache()


def where_time_goes(place: Place, contender: Contender, label: str) -> dict[str, Any]:
    """Milliseconds of a step by kind of kernel, gaps, and the kernels that take most (on a CPU: operators)."""
    for _ in range(3):
        contender.step()
    place.wait()
    is_cuda = place.device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if is_cuda else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiled:
        contender.step()
        place.wait()
    totals: Counter[str] = Counter()
    gaps = span = 0.0
    if is_cuda:
        last = None
        events = [e for e in profiled.profiler.kineto_results.events() if e.device_type() == DeviceType.CUDA]
        events = [e for e in events if not getattr(e, "is_user_annotation", lambda: False)()]
        # Ranges that were named on the host appear among the kernels.
        kernels = [e for e in events if not e.name().startswith(("Optimizer.", "ProfilerStep"))]
        for event in sorted(kernels, key=lambda e: e.start_ns()):
            totals[event.name()] += event.duration_ns()
            if last is not None:
                gaps += max(0, event.start_ns() - last)
            end = event.start_ns() + event.duration_ns()
            last = end if last is None else max(last, end)
        if kernels and last is not None:
            span = last - min(e.start_ns() for e in kernels)
    else:
        for average in profiled.key_averages():
            totals[average.key] += round(1e3 * average.self_cpu_time_total)
        span = sum(totals.values())
    kinds: Counter[str] = Counter()
    for name, duration in totals.items():
        kinds["attention" if ATTENTION_KERNEL.search(name) else "gemm" if GEMM.search(name) else "rest"] += duration
    result = {
        "span_ms": span / 1e6,
        "idle_ms": gaps / 1e6,
        **{f"{kind}_ms": kinds[kind] / 1e6 for kind in ("gemm", "attention", "rest")},
        "top_ms": {name[:160]: duration / 1e6 for name, duration in totals.most_common(25)},
    }
    print(f"{label}: " + "  ".join(f"{k} {v:.1f}" for k, v in result.items() if k != "top_ms"))
    for name, milliseconds in list(result["top_ms"].items())[:15]:
        print(f"  {milliseconds:9.2f} ms  {name[:110]}")
    return result


def adapters(place: Place) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """LoRA and MonteCLoRA beside PEFT's LoRA and the floor."""
    makers: dict[str, Callable[[], Contender]] = {
        "floor": lambda: Floor(place),
        "ours_lora": lambda: Ours(place, "lora"),
        "ours_monteclora": lambda: Ours(place, "monteclora"),
    }
    if has("peft"):
        makers["peft_lora"] = lambda: Peer(place, "lora")
    found = measure(place, makers, place.repetitions)
    seconds = {name: figures["seconds"] for name, figures in found.items()}
    tokens = [float(place.seq_len)] * len(seconds["floor"])
    claims = [
        claim("lora_tokens_per_second", tokens, seconds["ours_lora"], ">=16000", "floor of the hardware"),
        claim(
            "monteclora_over_lora_tokens_per_second", seconds["ours_lora"], seconds["ours_monteclora"], ">=0.95", "ours"
        ),
        claim(
            "lora_over_frozen_forward_and_backward", seconds["ours_lora"], seconds["floor"], "<=1.10", "ours, frozen"
        ),
    ]
    if "peft_lora" in seconds:
        peer = f"transformers {transformers.__version__}, peft"
        claims += [
            claim("lora_over_peft_tokens_per_second", seconds["peft_lora"], seconds["ours_lora"], ">=1.3", peer),
            claim("peft_lora_over_frozen_forward_and_backward", seconds["peft_lora"], seconds["floor"], ">=1", peer),
            claim(
                "lora_peak_memory_over_peft",
                [float(found["ours_lora"]["peak_bytes"]) or 1.0], [float(found["peft_lora"]["peak_bytes"]) or 1.0], "<=1", peer,
            ),
        ]  # fmt: skip
    return found, claims


def profiles(place: Place) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Where a LoRA step and the floor spend their time, and what lies between them."""
    found: dict[str, Any] = {}
    makers: dict[str, Callable[[], Contender]] = {
        "floor": lambda: Floor(place),
        "ours_lora": lambda: Ours(place, "lora"),
    }
    for name, make in makers.items():
        found[name] = where_time_goes(place, make(), name)
        release(place)
    keys = ("span_ms", "idle_ms", "gemm_ms", "attention_ms", "rest_ms")
    found["lora_beyond_floor"] = {key: found["ours_lora"][key] - found["floor"][key] for key in keys}
    print("between LoRA and the floor: " + "  ".join(f"{k} {v:+.1f}" for k, v in found["lora_beyond_floor"].items()))
    return found, []


def full(place: Place) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Full finetuning: ours and transformers', one after the other, as both do not fit at once."""
    setup = Setup(
        model=Trained(from_hugging_face(place.llama.to_dict())), placement="replicated", micro_batch_rows=1,
        seq_len=place.seq_len, device="cuda" if place.device.type == "cuda" else "cpu",
    )  # fmt: skip
    recomputed = 0
    if place.device.type == "cuda":
        total = torch.cuda.get_device_properties(place.device).total_memory
        fewest = layers_to_recompute(setup, usable_bytes(total))
        if fewest is None:
            need = estimate(Setup(**{**setup.__dict__, "recomputed_layers": setup.model.shape.layers})).total
            raise NotHere(
                f"needs {need / 2**30:.0f} GiB with all layers recomputed, the GPU has {total / 2**30:.0f} GiB"
            )
        recomputed = fewest
    print(f"full finetuning, ours: {recomputed} of {setup.model.shape.layers} layers recomputed")
    rounds: dict[str, list[dict[str, Any]]] = {"ours_full": [], "transformers_full": []}
    makers: dict[str, Callable[[], Contender]] = {
        "ours_full": lambda: Ours(place, "none", recomputed=recomputed),
        "transformers_full": lambda: Peer(place, "none"),
    }
    for order in turns(makers, 2):
        for name in order:
            rounds[name].append(measure(place, {name: makers[name]}, place.repetitions // 2)[name])
            release(place)
    speeds = {name: [figures["tokens_per_second"] for figures in each] for name, each in rounds.items()}
    peer = f"transformers {transformers.__version__}"
    return {"recomputed_layers": recomputed, "rounds": rounds}, [
        claim("full_tokens_per_second", speeds["ours_full"], [1.0, 1.0], ">=9000", "floor of the hardware"),
        claim(
            "full_over_transformers_tokens_per_second", speeds["ours_full"], speeds["transformers_full"], ">=1.2", peer
        ),
    ]


def compiled(place: Place) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """LoRA with model.compile beside LoRA without."""
    found = measure(
        place,
        {"ours_lora": lambda: Ours(place, "lora"), "ours_lora_compiled": lambda: Ours(place, "lora", compiled=True)},
        place.repetitions,
    )
    eager, fused = (found[name]["seconds"] for name in ("ours_lora", "ours_lora_compiled"))
    return found, [claim("compiled_over_eager_lora_tokens_per_second", eager, fused, ">=1", "ours")]


def more_rows(place: Place) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """LoRA with more rows at once, no activation recomputed."""
    found: dict[str, Any] = {}
    for rows in (2, 4):
        name = f"ours_lora_{rows}_rows"
        found |= measure(place, {name: functools.partial(Ours, place, "lora", rows=rows)}, place.repetitions // 2)
        release(place)
    return found, []


def peft_noise(place: Place) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """PEFT's MonteCLoRA beside ours."""
    if not has("peft"):
        raise NotHere("peft is not installed")
    found = measure(
        place,
        {"ours_monteclora": lambda: Ours(place, "monteclora"), "peft_monteclora": lambda: Peer(place, "monteclora")},
        place.repetitions,
    )
    ours, theirs = (found[name]["seconds"] for name in ("ours_monteclora", "peft_monteclora"))
    return found, [claim("monteclora_over_peft_tokens_per_second", theirs, ours, ">=1.3", "peft")]


class NotHere(Exception):
    """A part cannot run here; the message says why."""


def has(package: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(package) is not None


def open_place(quick: bool) -> Place:
    """The GPU and a 7B model, or the CPU and a small one."""
    world = detect_world(os.environ)
    device = init_distributed(world)
    if device.type == "cuda":
        sizes: dict[str, Any] = {
            "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
        }  # fmt: skip
        return Place(device, world, LlamaConfig(**sizes), 4096, 6 if quick else 30)
    torch.set_num_threads(1)
    sizes = {
        "vocab_size": 1000, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256,
    }  # fmt: skip
    return Place(device, world, LlamaConfig(**sizes), 256, 4 if quick else 10)


def main() -> None:
    """Run the parts, print a line per claim, and keep the JSON up to date."""
    parser = options(__doc__, quick="few repetitions, in under two minutes", bench="everything; not part of make bench")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to run, separated by commas")
    asked = parser.parse_args()
    chosen = asked.parts.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    place = open_place(asked.size == "quick")
    is_claim = place.device.type == "cuda"
    name = torch.cuda.get_device_name(place.device) if is_claim else "a CPU"
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    if not is_claim:
        print("small shapes on a CPU: the numbers are no claim")
    content: dict[str, Any] = {
        "device": name, "is_claim": is_claim, "rank": RANK, "seq_len": place.seq_len,
        "liger": has("liger_kernel"), "parts": {}, "claims": [],
    }  # fmt: skip
    functions = dict(zip(PARTS, (adapters, profiles, full, more_rows, peft_noise, compiled), strict=True))
    for part in chosen:
        print(f"--- {part}", flush=True)
        try:
            content["parts"][part], claims = functions[part](place)
            content["claims"] += claims if is_claim else [line | {"goal": "none"} for line in claims]
        except NotHere as reason:
            print(f"left out: {reason}")
            content["parts"][part] = {"left_out": str(reason)}
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            # What was measured before is worth keeping, and what comes after is worth trying.
            traceback.print_exc()
            content["parts"][part] = {"failed": f"{type(error).__name__}: {error}"}
        release(place)
        if asked.json:
            write_json(asked.json, asked.size, content)
    if not is_claim:
        print("small shapes on a CPU: the numbers are no claim")
    show(content["claims"])
    leave_distributed()
    sys.exit(any("failed" in figures for figures in content["parts"].values()))


if __name__ == "__main__":
    main()
