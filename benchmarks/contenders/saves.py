"""Training steps with saves between them, and a resume: how long steps stand still, how long they take meanwhile, what is
on disk, how much memory it took. One way to save per process; the engine and its steps are this system's in all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import steps
import torch
import torch.distributed as dist
import ways_to_save
from ours_steps import rows_of_rank

# Run by path, a script sees its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_pipeline.config import DataConfig
from training import placements
from training.batches import take_step
from training.config import (
    AdapterConfig,
    ArchitectureConfig,
    CheckpointConfig,
    Config,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from training.engine import Engine
from training.model.assembly import assemble
from training.ranks.distributed import init_distributed, sum_over_ranks
from training.world import World, detect_world

WARM_UP = 2
LEAST_STEPS, MOST_STEPS = 3, 20
"""Steps without a save that are measured beside those with one."""
SAMPLE_SECONDS = 0.01


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=ways_to_save.WAYS, required=True)
    parser.add_argument("--dir", type=Path, required=True, help="an empty folder on a disk")
    parser.add_argument("--ds-config", type=Path, required=True, help="DeepSpeed JSON: stage and buckets")
    parser.add_argument("--saves", type=int, required=True, help="that are measured, after a first one")
    for name in ("hidden", "layers", "vocab", "seq-len"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True, help="of LoRA; 0: full finetuning")
    parser.add_argument("--tokenizer", type=Path, default=Path("unused"), help="of a run that is to be exported")
    parser.add_argument("--memory", action="store_true", help="sample the memory, and look at nothing else")
    return parser.parse_args()


def configuration(asked: argparse.Namespace, world: World) -> Config:
    """A recipe of this size under ZeRO-3, one row per rank and step."""
    heads = asked.hidden // 64
    shape = ArchitectureConfig(
        hidden_size=asked.hidden, intermediate_size=asked.hidden * 8 // 3 // 64 * 64, num_layers=asked.layers,
        num_heads=heads, num_kv_heads=heads, vocab_size=asked.vocab, tie_embeddings=False,
    )  # fmt: skip
    adapter = AdapterConfig(kind="none")
    if asked.rank:
        adapter = AdapterConfig(
            kind="lora", rank=asked.rank, alpha=2 * asked.rank, targets=steps.LORA_TARGETS, dropout=0.0
        )
    return Config(
        run=RunConfig(dir=asked.dir / "run"), model=ModelConfig(architecture=shape), adapter=adapter,
        data=DataConfig(sources={}, tokenizer=asked.tokenizer, seq_len=asked.seq_len),
        train=TrainConfig(
            steps=10**6, placement="zero3", precision="bf16", global_batch_rows=world.size, micro_batch_rows=1
        ),
        optim=OptimConfig(lr=steps.LEARNING_RATE, schedule="constant"),
        checkpoint=CheckpointConfig(keep=1, background=asked.way != "ours_blocking"),
    )  # fmt: skip


class Run:
    """An engine that takes steps on rows of random tokens."""

    def __init__(self, asked: argparse.Namespace, world: World) -> None:
        self.config = configuration(asked, world)
        device = init_distributed(world)
        ds_config = placements.prepare(self.config, json.loads(asked.ds_config.read_text()), world)
        self.engine = Engine(assemble(self.config, ds_config, world, device), self.config, ds_config, world)
        self._make_way = ways_to_save.WAYS[asked.way]
        rows = steps.make_rows(
            world.size, seq_len=asked.seq_len, vocab_size=asked.vocab, document=asked.seq_len, masked=0.0
        )
        one_step = dataclasses.replace(self.config, train=dataclasses.replace(self.config.train, steps=1))
        self._batch = take_step(rows_of_rank(rows, one_step, world), num_rows=1, micro_batch_rows=1)
        self._targets = int(sum_over_ranks([self._batch.num_targets])[0])
        self.step = 0

    @functools.cached_property
    def way(self) -> ways_to_save.Way:
        """The way to save, from its first use on."""
        way: ways_to_save.Way = self._make_way(self.engine, self.config)
        return way

    def advance(self) -> None:
        """A step alone."""
        self.engine.step(self._batch, self.step, targets=self._targets)
        self.step += 1

    def take_step(self) -> tuple[float, bool, float]:
        """A step with the boundary behind it: its seconds, whether the save goes on, and for how long that held it up."""
        began = time.perf_counter()
        self.advance()
        is_busy, held = self.way.cross()
        return time.perf_counter() - began, is_busy, held

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of what is saved."""
        return {name: view.detach().clone() for name, view in self.engine.local_views()}

    def num_trained(self) -> int:
        """Elements that train."""
        return sum(torch.Size(shape).numel() for shape in self.engine.shapes().values())


@dataclasses.dataclass
class Measured:
    """Of all saves, the first one apart; seconds of the slowest rank."""

    stalls: list[float] = dataclasses.field(default_factory=list)
    """That training stood still."""
    writes: list[float] = dataclasses.field(default_factory=list)
    """From the beginning of a save until it was complete."""
    busy: list[float] = dataclasses.field(default_factory=list)
    """Steps of which all lay in a save."""
    quiet: list[float] = dataclasses.field(default_factory=list)
    """Steps between saves."""


def save_once(run: Run, found: Measured) -> None:
    """Save, and take steps until that is complete."""
    settle()
    began = time.perf_counter()
    stall = run.way.save(run.step)
    seconds = []
    is_busy = True
    while is_busy:
        took, is_busy, held = run.take_step()
        stall += held
        seconds.append(took - held)
    # The last step may have been without a save for the most part.
    found.busy += highest(seconds[:-1])
    found.stalls += highest([stall])
    found.writes += highest([time.perf_counter() - began])


def settle() -> None:
    """Let the disk finish what others have written."""
    os.sync()
    dist.barrier()


def highest(values: list[float]) -> list[float]:
    """Of the rank with the highest of each (a collective)."""
    found = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return [float(value) for value in found.tolist()]


def measure(run: Run, saves: int) -> dict[str, object]:
    """Saves with steps between them, then a resume."""
    assert run.way
    first = Measured()
    save_once(run, first)
    found = Measured()
    for _ in range(saves):
        before = len(found.busy)
        save_once(run, found)
        for _ in range(min(MOST_STEPS, max(LEAST_STEPS, len(found.busy) - before))):
            found.quiet += highest([run.take_step()[0]])
    run.way.save(run.step)
    saved, expected = run.step, run.state()
    while run.take_step()[1]:
        pass
    return {
        "state_bytes": 12 * run.num_trained(),
        "bytes": sum(path.stat().st_size for path in files(run.way.folder(saved))),
        "first_stall_seconds": first.stalls[0], "stall_seconds": found.stalls, "write_seconds": found.writes,
        "busy_seconds": found.busy, "quiet_seconds": found.quiet,
        "resume_seconds": load(run, saved, expected, is_verified=True),
        "load_seconds": load(run, saved, expected, is_verified=False),
    }  # fmt: skip


def save_and_wait(run: Run) -> None:
    """Save, and take steps until that is complete."""
    run.way.save(run.step)
    while run.take_step()[1]:
        pass


def files(folder: Path) -> Iterator[Path]:
    """What a checkpoint consists of."""
    return (path for path in folder.rglob("*") if path.is_file())


def load(run: Run, saved: int, expected: dict[str, torch.Tensor], *, is_verified: bool) -> float | None:
    """Seconds to go back to a saved step, read from the disk; None where there is no such way."""
    settle()
    for path in files(run.way.folder(saved)):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    dist.barrier()
    began = time.perf_counter()
    if not run.way.load(saved, is_verified=is_verified):
        return None
    (seconds,) = highest([time.perf_counter() - began])
    for name, view in run.engine.local_views():
        if not torch.equal(view, expected[name]):
            raise SystemExit(f"{name} is not what was saved")
    run.take_step()
    return seconds


class PeakMemory:
    """The most memory that this process and its children have had; shared pages count for each in part."""

    def __init__(self) -> None:
        self.highest = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._is_over.wait(SAMPLE_SECONDS):
            self.highest = max(self.highest, sum(proportional_bytes(pid) for pid in family(os.getpid())))

    def end(self) -> int:
        """Stop looking."""
        self._is_over.set()
        self._thread.join()
        return self.highest


def family(pid: int) -> Iterator[int]:
    """A process and all that it has started, and they."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from family(int(child))


def proportional_bytes(pid: int) -> int:
    """Memory of a process, of what it shares its part (Pss)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def measure_memory(run: Run, saves: int) -> dict[str, object]:
    """The highest memory of all ranks before anything was made for a save, and with all saves but the first."""
    before = PeakMemory()
    for _ in range(LEAST_STEPS):
        run.advance()
    without = before.end()
    # The first save starts processes: one that has been forked and runs nothing yet would count as a second one of this size.
    save_and_wait(run)
    during = PeakMemory()
    for _ in range(saves):
        save_and_wait(run)
    peaks = sum_over_ranks([float(without), float(during.end())])
    return {"state_bytes": 12 * run.num_trained(), "without_bytes": peaks[0], "with_bytes": peaks[1]}


def main() -> None:
    """Measure, and print JSON."""
    asked = arguments()
    world = detect_world(os.environ)
    run = Run(asked, world)
    for _ in range(WARM_UP):
        run.advance()
    found = (measure_memory if asked.memory else measure)(run, asked.saves)
    if world.rank == 0:
        print(json.dumps(found), flush=True)
    steps.leave()


if __name__ == "__main__":
    # One thread per rank, whatever the machine has.
    torch.set_num_threads(1)
    main()
