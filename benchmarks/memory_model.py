"""Does the memory model know what a step takes? Measured peaks of real steps on CPU ranks, and what was predicted.

Each case is trained for three steps on two gloo ranks, by the engine of training/ with its placements, for LLaMAs from tiny
to medium: full finetuning, LoRA and MonteCLoRA, with and without recomputation. The measured figure is the most bytes that
torch's allocator has given out at once in the third step, operators' work space included; beside it are the bytes that are
held between steps, and the bytes on the wire, counted in the collectives. The ratios are predictions over measurements.

    python benchmarks/memory_model.py [--quick | --bench] [--json PATH]
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.claims import options, show, write_json  # noqa: E402
from tests.ranks import run_ranks  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
RANKS = 2
GOAL = 0.10
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 192, "intermediate_size": 512, "num_layers": 4, "num_heads": 6, "num_kv_heads": 6, "vocab_size": 2048},
    "small": {"hidden_size": 384, "intermediate_size": 1024, "num_layers": 8, "num_heads": 6, "num_kv_heads": 2, "vocab_size": 8192},
    "medium": {"hidden_size": 640, "intermediate_size": 1728, "num_layers": 10, "num_heads": 10, "num_kv_heads": 10, "vocab_size": 32000},
}  # fmt: skip
METHODS: dict[str, Any] = {"full": "none", "lora": "lora", "monteclora": "monteclora"}
SEQ_LEN, ROWS = 512, 2


def cases(size: str) -> list[dict[str, Any]]:
    """What is measured."""
    sizes = tuple(SIZES) if size == "full" else ("tiny", "small")
    grid = [
        {"size": size, "method": method, "placement": placement, "recomputed": recomputed}
        for size in sizes for placement in ("replicated", "zero3") for method in METHODS
        for recomputed in ("off", "full")
    ]  # fmt: skip
    more: list[dict[str, Any]] = [
        {"size": "small", "method": "full", "placement": "replicated", "recomputed": "3"},
        {"size": "small", "method": "full", "placement": "zero3", "recomputed": "off", "optimizer": "lionw"},
        {"size": "small", "method": "lora", "placement": "replicated", "recomputed": "off", "precision": "fp32"},
        {"size": "small", "method": "full", "placement": "zero3", "recomputed": "full", "target_fraction": 0.1},
    ]
    return grid if size == "quick" else grid + more


def measure_all(wanted: list[dict[str, Any]], folder: str) -> list[dict[str, float]]:
    """Train all cases on this rank, one after the other."""
    import torch

    from training.ranks.distributed import init_distributed
    from training.world import detect_world

    torch.set_num_threads(1)
    world = detect_world(os.environ)
    device = init_distributed(world)
    return [measure(case, Path(folder), world, device) for case in wanted]


def measure(case: dict[str, Any], folder: Path, world: Any, device: Any) -> dict[str, float]:
    """Train one case on this rank; the measured and the predicted figures, in bytes."""
    import torch

    from training import placements
    from training.costs.communication import step_bytes
    from training.costs.fitting import recomputed_layers, setup_of
    from training.costs.memory import estimate
    from training.ds_json import read_ds_config
    from training.engine import Engine
    from training.model.assembly import assemble
    from training.watch.traffic import Traffic

    config = configure(case, folder, world.size)
    ds_json, _ = read_ds_config(ROOT / "ds_configs" / "zero3_cpu.json")
    ds_config = placements.prepare(config, ds_json, world)
    recomputed = recomputed_layers(config, ds_config, world, device)
    batch, targets = random_batch(case, world.rank)
    before = live_bytes()
    engine = Engine(assemble(config, ds_config, world, device), config, ds_config, world)
    for step in range(2):
        engine.step(batch, step, targets=world.size * targets)
    held, traffic = live_bytes() - before, Traffic()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        engine.step(batch, 2, targets=world.size * targets)
    sent, peak = traffic.bytes, held + highest(profiler)
    engine.placement.close()
    del engine
    setup = setup_of(
        config, config.model.architecture.shape(), ranks=world.size, ranks_per_node=world.size, ds_config=ds_json,
        device="cpu",
    )  # fmt: skip
    setup = dataclasses.replace(setup, recomputed_layers=recomputed, target_fraction=targets / (ROWS * SEQ_LEN))
    predicted = estimate(setup)
    return {
        "peak": float(peak), "predicted_peak": predicted.total, "held": float(held),
        "predicted_held": predicted.states, "wire": float(sent), "predicted_wire": step_bytes(setup, 1),
        **{name: getattr(predicted, name) for name in ("activations", "head", "buffers")},
    }  # fmt: skip


def live_bytes() -> int:
    """Bytes of all tensors that Python can reach; of those that share memory it counts once."""
    import torch

    gc.collect()
    # Not isinstance, which wakes up lazy modules of other libraries.
    tensors = [value for value in gc.get_objects() if issubclass(type(value), torch.Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def highest(profiler: Any) -> int:
    """The most bytes that were allocated at once while it looked, beyond those at the beginning.

    What nobody is seen to release, gloo releases in threads of its own, which are not looked at: copies that NCCL doesn't
    make. It is left out, as a step ends with what it began with.
    """
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    sizes, open_of_size = [size for _, size in changes], defaultdict[int, list[int]](list)
    for index, size in enumerate(sizes):
        if size > 0:
            open_of_size[size].append(index)
        elif open_of_size[-size]:
            open_of_size[-size].pop()
        else:
            sizes[index] = 0
    for index in itertools.chain.from_iterable(open_of_size.values()):
        sizes[index] = 0
    return max(itertools.accumulate(sizes))


def configure(case: dict[str, Any], folder: Path, ranks: int) -> Any:
    """The case's configuration; nothing that it names is read."""
    from training.recipe import load_config

    settings: dict[str, Any] = {f"model.architecture.{name}": value for name, value in SIZES[case["size"]].items()}
    settings |= {
        "run.dir": folder, "data.seq_len": SEQ_LEN, "data.tokenizer": folder / "none", "data.sources.none.path": folder / "none",
        "train.global_batch_rows": ROWS * ranks, "train.micro_batch_rows": ROWS, "train.placement": case["placement"],
        "train.precision": case.get("precision", "bf16"), "optim.kind": case.get("optimizer", "adamw"),
        "model.architecture.tie_embeddings": "false", "model.activation_checkpointing": case["recomputed"],
    }  # fmt: skip
    overrides = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    config = load_config(None, overrides, world_size=ranks, needs_files=False)
    # Afterwards, as a recipe may put adapters on a pretrained base only.
    return dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, kind=METHODS[case["method"]]))


def random_batch(case: dict[str, Any], seed: int) -> tuple[Any, int]:
    """A step's rows of random tokens, of one document each, and their number of targets."""
    import torch

    from training.batches import MicroBatch, StepBatch

    tokens, vocab = ROWS * SEQ_LEN, SIZES[case["size"]]["vocab_size"]
    index = torch.arange(0, tokens, round(1 / case.get("target_fraction", 1.0)))
    generator = torch.Generator().manual_seed(seed)
    micro = MicroBatch(
        input_ids=torch.randint(vocab, (ROWS, SEQ_LEN), generator=generator),
        position_ids=torch.arange(SEQ_LEN).repeat(ROWS, 1), target_index=index,
        targets=torch.randint(vocab, (len(index),), generator=generator),
        cu_seqlens=torch.arange(0, tokens + 1, SEQ_LEN, dtype=torch.int32), max_seqlen=SEQ_LEN,
        pairs=tokens * (SEQ_LEN + 1) // 2, first_lane=0,
    )  # fmt: skip
    return StepBatch(micro_batches=[micro], row_hash=0, documents=[]), len(index)


def compare(wanted: list[dict[str, Any]], *, timeout: float) -> list[dict[str, Any]]:
    """Measure the cases on the ranks; a dictionary per case, of the rank with the higher peak."""
    with tempfile.TemporaryDirectory() as folder:
        found = run_ranks("benchmarks.memory_model:measure_all", RANKS, timeout=timeout, wanted=wanted, folder=folder)
    worst = [max(ranks, key=lambda figures: figures["peak"]) for ranks in zip(*found, strict=True)]
    return [{**case, **figures} for case, figures in zip(wanted, worst, strict=True)]


def claims_of(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The largest deviation of each kind of prediction, as |prediction / measurement - 1|."""
    claims = []
    for what in ("peak", "held", "wire"):
        errors = [abs(case[f"predicted_{what}"] / case[what] - 1) for case in results]
        claims.append({
            "claim": f"predicted_{what}_error", "ratio": max(errors), "goal": f"<={GOAL}", "min": min(errors),
            "max": max(errors), "n": len(errors), "peer": "measurement",
        })  # fmt: skip
    return claims


def main() -> None:
    """Run the benchmark."""
    parser = options(
        __doc__, quick="the two smaller models", bench="the two smaller models, and the cases beside the grid"
    )
    arguments = parser.parse_args()
    results = compare(cases(arguments.size), timeout=1800)
    for case in results:
        label = " ".join(
            str(case.get(key, "")) for key in ("size", "method", "placement", "recomputed", "optimizer", "precision")
        )
        figures = "  ".join(
            f"{what} {case[what] / 2**20:8.2f} MiB, predicted {case[f'predicted_{what}'] / case[what]:.3f}"
            for what in ("peak", "held", "wire")
        )
        print(f"{label:38}  {figures}")
    claims = claims_of(results)
    show(claims)
    if arguments.json:
        write_json(arguments.json, arguments.size, {"ranks": RANKS, "results": results, "claims": claims})


if __name__ == "__main__":
    main()
