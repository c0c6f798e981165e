"""What a finetuning step with an adapter costs: ours and PEFT's LoRA and MonteCLoRA, one linear layer and a whole LLaMA.

A step is forward, loss, penalty where there is one, backward and AdamW. All contenders live in one process, with the
same frozen weights, shapes, rank and dtype, and take turns; a ratio is taken within a repetition, the median over the
repetitions is the claim, the extremes are its spread. Nothing is timed before all of them have started from the same
loss with the trainable parameters that they should have.

Peak memory, operators, host reads and random numbers kept are measured for each contender alone (`probes.py` says how).
Without a GPU: one thread, fp32, small shapes. With one: bf16 and the shapes of a 7B model. PEFT's buffers are filled
before the clock starts, and hold enough for all steps where they have their default size. Its MonteCLoRA recomputes
activations with other noise than it computed them with, so where they are checkpointed its gradients are wrong; it is
timed all the same.

    python benchmarks/adapter_step.py [--quick | --bench] [--json PATH]
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch
import transformers
from peft.tuners.lora.monteclora import MontecloraSampler
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.claims import claim, options, show, turns, write_json  # noqa: E402
from benchmarks.probes import Operators, Saved, measure_memory  # noqa: E402
from monteclora import LoRAConfig, MonteCLoRAConfig, attach_adapter  # noqa: E402
from monteclora.config import count_adapter_parameters  # noqa: E402
from monteclora.low_rank import standard_normal  # noqa: E402

PEER = f"peft {peft.__version__}"
NOISE_SCALE = 2.5e-5
RANKS = (16, 64, 256)
BUFFER_LIMIT = 4 * 2**30
"""Bytes of noise in PEFT's buffers beyond which they hold 1 draw each, and are filled at every forward."""

Figures = dict[str, list[float]]


class Place(NamedTuple):
    """Where and in what precision everything is."""

    device: torch.device
    dtype: torch.dtype

    def wait(self) -> None:
        """Let the device finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Layer(nn.Module):
    """One linear layer, by a name that both libraries can be pointed at."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [tokens, width] to [tokens, width]."""
        result: Tensor = self.proj(x)
        return result


class Blocks(nn.Module):
    """The linear layers of LLaMA blocks and nothing else, each with an input of its own."""

    def __init__(self, num_blocks: int, shapes: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(shapes) for _ in range(num_blocks))

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Map each layer's input [tokens, in] to its output [tokens, out], in every block."""
        return [output for block in self.layers for output in block(inputs)]


class Block(nn.Module):
    """The seven linear layers of a LLaMA block."""

    def __init__(self, shapes: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        for name, (fan_in, fan_out) in shapes.items():
            self.add_module(name, nn.Linear(fan_in, fan_out, bias=False))

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Map each layer's input [tokens, in] to its output [tokens, out]."""
        return [self.get_submodule(name)(x) for name, x in inputs.items()]


def block_shapes(hidden: int, intermediate: int) -> dict[str, tuple[int, int]]:
    """(in, out) of the seven linear layers of a LLaMA block."""
    return dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (hidden, hidden)) | {
        "gate_proj": (hidden, intermediate),
        "up_proj": (hidden, intermediate),
        "down_proj": (intermediate, hidden),
    }


@dataclass(frozen=True)
class Workload:
    """A model to adapt and what it is trained on."""

    hidden: int
    intermediate: int
    rows: int
    length: int
    num_blocks: int = 0
    """Blocks of a LLaMA; 0 means a single linear layer hidden -> hidden."""
    is_checkpointed: bool = False
    """Recompute each block's activations in backward."""

    @property
    def name(self) -> str:
        """Short, for claims."""
        kind = f"model_d{self.hidden}x{self.num_blocks}" if self.num_blocks else f"layer_d{self.hidden}"
        return f"{kind}_t{self.rows * self.length}" + ("_checkpointed" if self.is_checkpointed else "")

    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of every layer to adapt, by name."""
        if not self.num_blocks:
            return {"proj": (self.hidden, self.hidden)}
        shapes = block_shapes(self.hidden, self.intermediate)
        return {f"{block}.{name}": shape for block in range(self.num_blocks) for name, shape in shapes.items()}

    def build(self, place: Place) -> Any:
        """The model before adaptation; its weights depend on the workload alone."""
        torch.manual_seed(0)
        if not self.num_blocks:
            return Layer(self.hidden).to(*place)
        heads = self.hidden // (64 if self.hidden < 4096 else 128)
        config = LlamaConfig(
            vocab_size=2048,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.num_blocks,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=self.length,
            use_cache=False,
        )
        model: nn.Module = LlamaForCausalLM(config).to(*place)
        return model

    def batch(self, place: Place) -> Tensor:
        """Token ids [rows, length] for a LLaMA; for a layer its input [tokens, hidden], which asks for its gradient."""
        generator = torch.Generator(device="cpu").manual_seed(1)
        if self.num_blocks:
            return torch.randint(2048, (self.rows, self.length), generator=generator, device="cpu").to(place.device)
        x = torch.randn(self.rows * self.length, self.hidden, generator=generator, device="cpu")
        return x.to(*place).requires_grad_()

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Scalar loss of the task."""
        loss: Tensor = model(input_ids=batch, labels=batch).loss if self.num_blocks else model(batch).square().mean()
        return loss


class Adapted(NamedTuple):
    """A model with an adapter."""

    model: nn.Module
    penalty: Callable[[], Tensor] | None
    """What has to be added to the loss, where gradients do not come without that."""
    logged: Callable[[], Tensor] | None
    """What training computes for its log only."""

    def trained(self) -> list[nn.Parameter]:
        """The parameters that train."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


class Contender(NamedTuple):
    """An adapter of one of the two libraries."""

    library: str
    """`ours` or `peft`"""
    num_samples: int
    """N of MonteCLoRA; 0 for LoRA"""

    @property
    def name(self) -> str:
        """Short, for claims."""
        return f"{self.library}_monteclora_n{self.num_samples}" if self.num_samples else f"{self.library}_lora"

    def config(self, rank: int, targets: tuple[str, ...]) -> LoRAConfig:
        """Settings in our words."""
        if not self.num_samples:
            return LoRAConfig(rank=rank, targets=targets)
        return MonteCLoRAConfig(rank=rank, targets=targets, num_samples=self.num_samples, noise_scale=NOISE_SCALE)

    def adapt(self, model: nn.Module, linears: dict[str, tuple[int, int]], rank: int) -> Adapted:
        """Put the adapter on the linear layers of `model`, in the dtype of their weights."""
        config = self.config(rank, tuple({name.rpartition(".")[2]: None for name in linears}))
        adapted = _ours(model, config) if self.library == "ours" else _peft(model, config, linears)
        trained = sum(parameter.numel() for parameter in adapted.trained())
        assert trained == count_adapter_parameters(linears, config), f"{self.name} trains {trained} parameters"
        return adapted


CONTENDERS = tuple(Contender(library, num_samples) for num_samples in (0, 4, 8) for library in ("ours", "peft"))


def _ours(model: nn.Module, config: LoRAConfig) -> Adapted:
    adapter = attach_adapter(model, config)
    adapter.set_penalty_weight(1.0)
    return Adapted(model.train(), None, adapter.penalty if adapter.posteriors else None)


def _peft(model: nn.Module, config: LoRAConfig, linears: dict[str, tuple[int, int]]) -> Adapted:
    noise = None
    if isinstance(config, MonteCLoRAConfig):
        itemsize = next(model.parameters()).itemsize
        noise = peft.MontecloraConfig(
            num_samples=config.num_samples,
            sample_scaler=config.noise_scale,
            dirichlet_prior=config.dirichlet_prior,
            kl_loss_weight=config.kl_weight,
            use_entropy=True,
            buffer_size=buffered_draws(linears, config.rank, config.num_samples, itemsize),
        )
    own = peft.LoraConfig(
        r=config.rank, lora_alpha=2 * config.rank, target_modules=list(config.targets), monteclora_config=noise
    )
    net = peft.get_peft_model(model, own, autocast_adapter_dtype=False)
    return Adapted(net.train(), net.base_model._get_monteclora_loss if noise else None, None)


def buffered_draws(linears: dict[str, tuple[int, int]], rank: int, num_samples: int, itemsize: int) -> int:
    """Draws that each of PEFT's buffers holds: its default where all of them fit `BUFFER_LIMIT`, else 1."""
    default: int = peft.MontecloraConfig().buffer_size
    draw_bytes = itemsize * num_samples * rank * sum(fan_in for fan_in, _ in linears.values())
    return default if default * draw_bytes <= BUFFER_LIMIT else 1


def training_step(contender: Contender, workload: Workload, rank: int, place: Place) -> Callable[[], Tensor]:
    """Build a model with an adapter; return a function that makes one training step and returns the task's loss."""
    model = workload.build(place)
    adapted = contender.adapt(model, workload.linears(), rank)
    if workload.is_checkpointed:
        # After the adapter: before it, PEFT would let the embeddings' output require gradients, which costs it time.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    batch = workload.batch(place)
    optimizer = torch.optim.AdamW(adapted.trained(), lr=1e-4, weight_decay=0.0, fused=True)

    def step() -> Tensor:
        loss = workload.loss(adapted.model, batch)
        (loss + adapted.penalty() if adapted.penalty else loss).backward()
        if adapted.logged:
            adapted.logged()
        optimizer.step()
        optimizer.zero_grad()
        batch.grad = None
        return loss.detach()

    return step


def measure_seconds(workload: Workload, rank: int, place: Place, repetitions: int) -> Figures:
    """Seconds per step of each contender, by name, one value per repetition."""
    steps = {contender.name: training_step(contender, workload, rank, place) for contender in CONTENDERS}
    losses = {name: float(step()) for name, step in steps.items()}
    if max(losses.values()) > 1.001 * min(losses.values()):
        raise RuntimeError(f"the contenders do not start from the same loss: {losses}")
    seconds: Figures = {name: [] for name in steps}
    for step in steps.values():
        step()
    for order in turns(steps, repetitions):
        for name in order:
            place.wait()
            start = time.perf_counter()
            steps[name]()
            place.wait()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def measure_memories(workload: Workload, rank: int, place: Place) -> dict[str, dict[str, int]]:
    """Bytes held between steps and at the peak of a step, of each contender alone, by name."""
    return {
        contender.name: measure_memory(
            functools.partial(training_step, contender, workload, rank, place), place.device
        )._asdict()
        for contender in CONTENDERS
    }


def watch(contender: Contender, place: Place, rank: int = 16, num_blocks: int = 4) -> dict[str, float]:
    """What forward, penalty and backward do per adapted layer, in the steady state, at the linear layers of LLaMA blocks."""
    shapes = block_shapes(256, 704)
    linears = {f"{block}.{name}": shape for block in range(num_blocks) for name, shape in shapes.items()}
    count = len(linears)
    operators = Operators()
    with operators:
        adapted = contender.adapt(Blocks(num_blocks, shapes).to(*place), linears, rank)
        inputs = {
            name: torch.randn(64, fan_in, device=place.device, dtype=place.dtype, requires_grad=True)
            for name, (fan_in, _) in shapes.items()
        }
        own = [*adapted.model.parameters(), *inputs.values()]
        # The first step allocates what later ones keep.
        for _ in range(2):
            for tensor in own:
                tensor.grad = None
            operators.clear()
            saved = Saved(own)
            with saved:
                outputs = adapted.model(inputs)
                if adapted.penalty:
                    outputs.append(adapted.penalty())
            noise_for_backward = operators.random_bytes(beside=own)
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
            del outputs
            if adapted.logged:
                adapted.logged()
            kept = operators.random_bytes(beside=own)
    # Less the ones that stand in for the gradient of a loss.
    ones = count + (adapted.penalty is not None)
    return {
        "operators": (operators.without_views - ones) / count,
        "operators_and_views": (operators.with_views - ones) / count,
        "host_reads": operators.host_reads / count,
        "saved_bytes": saved.bytes / count,
        "noise_bytes_for_backward": noise_for_backward / count,
        "noise_bytes_between_steps": kept / count,
    }


def moment_ratios(draws: int) -> dict[str, float]:
    """Second and fourth moments of our noise over those of PEFT's, at the same parameters: both are 1 in law."""
    torch.manual_seed(0)
    rank, width, num_samples = 8, 64, 4
    sampler = MontecloraSampler(width, rank, num_samples, sample_scaler=1.0, buffer_size=draws, device="cpu")
    config = MonteCLoRAConfig(rank=rank, targets=("proj",), num_samples=num_samples, noise_scale=1.0)
    (posterior,) = attach_adapter(Layer(width), config).posteriors.values()
    like = torch.empty(rank, width)
    powers = (2, 4)
    sums = {library: [0.0] * len(powers) for library in ("ours", "peft")}
    with torch.no_grad():
        posterior.log_std.copy_(sampler.std_prior)
        posterior.log_concentration.copy_(sampler.expert_weights_prior)
        for _ in range(draws):
            (draw,) = posterior.draw()
            noise, pi = sampler()
            ours, theirs = draw.scale.unsqueeze(-1) * standard_normal(like, draw.seed), torch.tensordot(pi, noise, 1)
            for library, value in (("ours", ours), ("peft", theirs)):
                for place, power in enumerate(powers):
                    sums[library][place] += value.pow(power).mean().item()
    second, fourth = (a / b for a, b in zip(sums["ours"], sums["peft"], strict=True))
    return {"second": second, "fourth": fourth, "draws": draws}


def workloads(place: Place, size: str) -> list[tuple[Workload, tuple[int, ...], int]]:
    """What is measured: workload, ranks, repetitions."""
    quick = size == "quick"
    if place.device.type == "cuda":
        layers = [Workload(4096, 0, 1, 4096)]
        model: dict[str, Any] = {"hidden": 4096, "intermediate": 11008, "rows": 1, "length": 4096, "num_blocks": 4}
        layer_repetitions, model_repetitions = (20, 5) if quick else (100, 30)
    else:
        layers = [Workload(width, 0, 1, 512) for width in ((1024, 4096) if size == "full" else (1024,))]
        rows = 1 if quick else 2
        model = {"hidden": 512, "intermediate": 1408, "rows": rows, "length": 512, "num_blocks": 8}
        layer_repetitions, model_repetitions = {"quick": (12, 1), "bench": (18, 6), "full": (36, 6)}[size]
    models = [
        Workload(**model, is_checkpointed=checkpointed)
        for checkpointed in ((False, True) if size == "full" else (False,))
    ]
    # The usual rank, and the one that costs MonteCLoRA most.
    ranks = {"quick": RANKS[:1], "bench": (RANKS[0], RANKS[-1]), "full": RANKS}[size]
    return [(layer, RANKS, max(12, layer_repetitions * 1024 // layer.hidden)) for layer in layers] + [
        (workload, ranks, model_repetitions) for workload in models
    ]


def time_claims(seconds: Figures, suffix: str, is_model: bool) -> list[dict[str, Any]]:
    """What the steps' times are to show; the goal of MonteCLoRA over LoRA is one for whole models."""
    claims = [claim(f"lora_over_peft_lora_{suffix}", seconds["ours_lora"], seconds["peft_lora"], "<=1", PEER)]
    for n in (4, 8):
        ours, theirs = seconds[f"ours_monteclora_n{n}"], seconds[f"peft_monteclora_n{n}"]
        if is_model:
            claims.append(claim(f"monteclora_n{n}_over_lora_{suffix}", ours, seconds["ours_lora"], "<=1.05", "ours"))
        claims.append(claim(f"monteclora_n{n}_over_peft_monteclora_{suffix}", ours, theirs, "<=1", PEER))
    return claims


def memory_claims(memory: dict[str, dict[str, int]], suffix: str) -> list[dict[str, Any]]:
    """What the peaks of memory are to show."""
    peak = {name: [float(sizes["peak"])] for name, sizes in memory.items()}
    claims = [claim(f"lora_memory_over_peft_lora_{suffix}", peak["ours_lora"], peak["peft_lora"], "<=1", PEER)]
    for n in (4, 8):
        ours, theirs = peak[f"ours_monteclora_n{n}"], peak[f"peft_monteclora_n{n}"]
        claims += [
            claim(f"monteclora_n{n}_memory_over_lora_{suffix}", ours, peak["ours_lora"], "<=1.01", "ours"),
            claim(f"monteclora_n{n}_memory_over_peft_monteclora_{suffix}", ours, theirs, "<=1", PEER),
        ]
    return claims


def watch_claims(watched: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """What is counted per layer; the peer's count is in its name."""
    goals = {"operators": "<=30", "host_reads": "<=0", "noise_bytes_between_steps": "<=0"}
    return [
        claim(
            f"{what}_per_layer_n{n}",
            [watched[f"ours_monteclora_n{n}"][what]],
            [1.0],
            goal,
            f"{PEER} ({watched[f'peft_monteclora_n{n}'][what]:.1f})",
        )
        for n in (4, 8)
        for what, goal in goals.items()
    ]


def main() -> None:
    """Measure, print a line per claim, and write the numbers where `--json` says."""
    parser = options(
        __doc__,
        quick="only small shapes, in under two minutes",
        bench="one layer, and a model at ranks 16 and 256 without checkpointing",
    )
    arguments = parser.parse_args()
    # PEFT asks transformers for something by a name that is on its way out.
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    place = (
        Place(torch.device("cuda", 0), torch.bfloat16)
        if torch.cuda.is_available()
        else Place(torch.device("cpu"), torch.float32)
    )

    moments = moment_ratios(500 if arguments.size == "quick" else 2000)
    print(f"noise, ours / {PEER}: second moment {moments['second']:.3f}, fourth moment {moments['fourth']:.3f}")
    watched = {contender.name: watch(contender, place) for contender in CONTENDERS}
    for name, counts in watched.items():
        print(f"per layer  {name:20}", *(f"{what} {count:.1f}" for what, count in counts.items()), sep="  ")
    claims = watch_claims(watched)
    measured: dict[str, Any] = {}
    for workload, ranks, repetitions in workloads(place, arguments.size):
        for rank in ranks:
            suffix = f"{workload.name}_r{rank}"
            seconds = measure_seconds(workload, rank, place, repetitions)
            # A layer's peak is its weights and input; memory is a matter of models, and hardly of their rank.
            is_weighed = workload.num_blocks and (arguments.size == "full" or rank == ranks[0])
            memory = measure_memories(workload, rank, place) if is_weighed else {}
            draws = {n: buffered_draws(workload.linears(), rank, n, place.dtype.itemsize) for n in (4, 8)}
            measured[suffix] = {"seconds": seconds, "memory": memory, "peft_buffered_draws": draws}
            for name, values in seconds.items():
                sizes = "".join(f"  {what} {size / 2**20:.1f} MiB" for what, size in memory.get(name, {}).items())
                print(f"{suffix}  {name:20}  {1e3 * statistics.median(values):.1f} ms{sizes}", flush=True)
            claims += time_claims(seconds, suffix, bool(workload.num_blocks))
            claims += memory_claims(memory, suffix) if memory else []
    show(claims)
    if arguments.json:
        settings = {
            "device": str(place.device),
            "dtype": str(place.dtype),
            "threads": 1,
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "peft": peft.__version__,
            },
        }
        content = {"settings": settings, "moments": moments, "per_layer": watched, "measured": measured}
        write_json(arguments.json, arguments.size, {**content, "claims": claims})


if __name__ == "__main__":
    main()
