"""What ranks do in tests of sequence parallelism; called by name through tests.ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from data_pipeline import TokenStream
from tests.distributed.scenarios import CPU_JSON, attach, start
from training import placements
from training.attention import ATTENTION
from training.batches import HASH_SIZE, chain_hash, take_step
from training.checkpoint import write_shard
from training.distributed import device_of, sum_over_ranks
from training.ds_json import read_ds_config
from training.assembly import Assembly
from training.engine import Engine
from training.model import build_model
from training.recipe import load_config
from training.sequence_parallel import SequenceGroup, exchange, shard_step, use_shared_rows
from training.world import World


class SharedRun:
    """An engine whose rows are shared by groups of ranks."""

    def __init__(self, recipe: str, overrides: list[str], world: World, group: SequenceGroup, recomputed: int) -> None:
        self.config = config = load_config(Path(recipe), overrides, world_size=world.size)
        self.group = group
        ds_config = placements.prepare(config, read_ds_config(CPU_JSON)[0], world)
        model = build_model(
            config.model, placement=config.train.placement, precision="fp32", ds_config=ds_config, seed=config.run.seed,
            world=world, device=device_of(world), attention=use_shared_rows(group), recomputed_layers=recomputed,
        )  # fmt: skip
        adapter, _ = attach(model, config)
        self.engine = Engine(
            Assembly(model=model, adapter=adapter, hidden_key=None, recomputed_layers=0, kernels="torch"),
            config, ds_config, world,
        )  # fmt: skip
        num_lanes = config.train.global_batch_rows
        lanes = world.lanes(num_lanes, group.size)
        self.stream = TokenStream(config.data, num_lanes=num_lanes, lanes=lanes, seed=config.run.seed)
        self.rows, self.hash = iter(self.stream), ""

    def train(self, steps: int) -> list[list[Any]]:
        """[loss, gradient norm, penalty, data hash] of each step."""
        return [self.step(step) for step in range(steps)]

    def step(self, step: int) -> list[Any]:
        micro_rows = self.config.train.micro_batch_rows
        whole = take_step(self.rows, num_rows=len(self.stream.lanes), micro_batch_rows=micro_rows)
        batch = shard_step(whole, self.group.rank, self.group.size)
        targets, hash_sum = (int(x) for x in sum_over_ranks([batch.num_targets, batch.row_hash]))
        result = self.engine.step(batch, step, targets=targets)
        self.hash = chain_hash(self.hash, hash_sum % HASH_SIZE)
        return [result.loss, result.grad_norm, result.penalty, self.hash]


def shared_rows(recipe: str, cases: dict[str, dict[str, Any]], steps: int, size: int, folder: str) -> dict[str, Any]:
    """Train several configurations on groups of `size` ranks; every rank writes its slices of the state to `folder`."""
    world = start()
    group = SequenceGroup(world, size)
    found: dict[str, Any] = {"exchange": exchanged(group)}
    for name, case in cases.items():
        overrides = [*case["overrides"], "--train.sequence_parallel", str(size)]
        run = SharedRun(recipe, overrides, world, group, case.get("recomputed", 0))
        found[name] = {"curve": run.train(steps), "shapes": run.engine.shapes(), "evaluation": evaluated(run, world)}
        shard = Path(folder) / name
        shard.mkdir(exist_ok=True, parents=True)
        write_shard(shard, run.engine.local_state(), world.rank, world.size)
    return found


def exchanged(group: SequenceGroup) -> dict[str, list[int]]:
    """An exchange of positions for heads of numbers that say where they come from, and the way of a gradient."""
    # [rows 2, heads 2 * size, positions 3, dim 1]: the value is 1000 row + 100 head + position in the whole row.
    heads, width = 2 * group.size, 3
    positions = torch.arange(width) + group.rank * width
    x = 1000 * torch.arange(2)[:, None, None, None] + 100 * torch.arange(heads)[:, None, None] + positions[:, None]
    x = x.double().requires_grad_()
    y = exchange(x, group, scattered=1, gathered=2)
    # Each rank weighs what it has by a number of its own.
    (y * (1 + dist.get_rank())).sum().backward()
    assert x.grad is not None
    return {"shape": list(y.shape), "y": y.flatten().int().tolist(), "grad": x.grad.flatten().int().tolist()}


def evaluated(run: SharedRun, world: World) -> float:
    """Largest difference of logits of rows of this rank alone to those of a model with the same weights; of the replicated
    placement only, whose ranks can go through a model a different number of times.
    """
    if run.config.train.placement != "replicated":
        return 0.0
    model: Any = run.engine.model.eval()
    ids = torch.arange(24).view(1, 24).repeat(1 + world.rank, 1) + world.rank
    with torch.no_grad():
        ours = model(input_ids=ids).logits
        model.set_attn_implementation(ATTENTION)
        return float(F.l1_loss(ours, model(input_ids=ids).logits, reduction="none").max())
