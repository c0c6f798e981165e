"""This system's step on pairs: whole examples packed into rows as they come, replicated placement, an epoch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import instructions
import torch

# Run by path, a script sees its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.stream.token_stream import TokenStream
from training.batches import take_step
from training.config import AdapterConfig, Config, ModelConfig, OptimConfig, RunConfig, TrainConfig
from training.engine import Engine
from training.model.assembly import assemble
from training.ranks.distributed import init_distributed
from training.world import detect_world


def configuration(folder: Path, seq_len: int, steps: int) -> Config:
    """A recipe for the folder of pairs: one packed row per step."""
    pairs = SourceConfig(
        path=str(folder / "pairs.jsonl"), kind="prompt", prompt_field="prompt", response_field="response"
    )
    return Config(
        run=RunConfig(dir=Path("unused")),
        model=ModelConfig(base=str(folder / "base")),
        adapter=AdapterConfig(kind="none"),
        data=DataConfig(
            sources={"pairs": pairs}, tokenizer=folder / "tokenizer.model", seq_len=seq_len, cache_dir=folder / "cache"
        ),
        train=TrainConfig(
            steps=steps, placement="replicated", precision="fp32", global_batch_rows=1, micro_batch_rows=1
        ),
        optim=OptimConfig(lr=instructions.LEARNING_RATE, schedule="constant"),
    )


def main() -> None:
    """Measure."""
    asked = instructions.arguments(str(__doc__))
    # About an epoch, and the warm-up.
    tokens = sum(len(example.input_ids) for example in instructions.read_examples(asked.folder))
    steps = asked.warm_up + max(1, round(tokens / asked.seq_len))
    config = configuration(asked.folder, asked.seq_len, steps)
    world = detect_world(os.environ)
    assembly = assemble(config, {}, world, init_distributed(world))
    engine = Engine(assembly, config, {}, world)
    rows = TokenStream(config.data, num_lanes=1, lanes=range(1), seed=0)
    clock = instructions.Clock(asked.warm_up)
    for step in range(steps):
        batch = take_step(rows, num_rows=1, micro_batch_rows=1)
        engine.step(batch, step, targets=batch.num_targets)
        clock.step_ended(batch.num_targets, asked.seq_len)
    clock.report()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
    sys.stdout.flush()
    # Without the threads of process groups.
    os._exit(0)
