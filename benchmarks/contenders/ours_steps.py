"""This system's step: the model, adapter, placement and engine that training/main.py makes, on the rows of the benchmark."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import steps
import torch

# Run by path, a script sees its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_pipeline.config import DataConfig
from data_pipeline.stream.token_stream import Row
from training import placements
from training.batches import take_step
from training.config import AdapterConfig, Config, ModelConfig, OptimConfig, RunConfig, TrainConfig
from training.engine import Engine
from training.model.assembly import assemble
from training.ranks.distributed import init_distributed, sum_over_ranks
from training.world import World, detect_world


def configuration(asked: steps.argparse.Namespace, world: World) -> Config:
    """A recipe with what the peer is told, too."""
    return Config(
        run=RunConfig(dir=Path("unused")),
        model=ModelConfig(base=str(asked.base)),
        adapter=AdapterConfig(
            kind="lora" if asked.method == "lora" else "none", rank=steps.LORA["rank"], alpha=steps.LORA["alpha"],
            targets=steps.LORA_TARGETS, dropout=0.0,
        ),
        data=DataConfig(sources={}, tokenizer=Path("unused"), seq_len=asked.seq_len),
        train=TrainConfig(
            steps=asked.warm_up + asked.steps, placement=asked.placement, precision=asked.precision,
            global_batch_rows=world.size * asked.micro * asked.accumulation, micro_batch_rows=asked.micro,
        ),
        optim=OptimConfig(lr=steps.LEARNING_RATE, schedule="constant"),
    )  # fmt: skip


def rows_of_rank(rows: steps.Rows, config: Config, world: World) -> Iterator[Row]:
    """This rank's lanes of every step."""
    lanes = config.train.global_batch_rows
    for step in range(config.train.steps):
        for lane in world.lanes(lanes):
            yield Row(lane, *(column[step * lanes + lane] for column in rows))


def main() -> None:
    """Measure."""
    asked = steps.arguments(str(__doc__))
    world = detect_world(os.environ)
    config = configuration(asked, world)
    device = init_distributed(world)
    ds_config = placements.prepare(config, json.loads(asked.ds_config.read_text()), world)
    clock = steps.Clock(asked.warm_up)
    assembly = assemble(config, ds_config, world, device)
    engine = Engine(assembly, config, ds_config, world)
    rows = steps.make_rows(
        config.train.steps * config.train.global_batch_rows,
        seq_len=asked.seq_len,
        vocab_size=assembly.model.config.vocab_size,
        document=asked.document,
        masked=asked.masked,
    )
    mine = rows_of_rank(rows, config, world)
    traffic = steps.Counted(asked)
    first_loss = 0.0
    for step in range(config.train.steps):
        profiler = steps.profiler(asked) if step == config.train.steps - 1 else contextlib.nullcontext()
        with profiler:
            batch = take_step(
                mine, num_rows=len(world.lanes(config.train.global_batch_rows)), micro_batch_rows=asked.micro
            )
            (targets,) = sum_over_ranks([batch.num_targets])
            result = engine.step(batch, step, targets=int(targets))
            first_loss = first_loss or result.loss
            clock.step_ended()
        traffic.step_ended()
    clock.report(first_loss=first_loss, traffic=traffic.result())
    steps.leave()


if __name__ == "__main__":
    # One thread per rank, whatever the machine has.
    torch.set_num_threads(1)
    main()
