"""What ranks do in tests of sequence parallelism; called by name through tests.ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from tests.distributed.scenarios import Run, start, write_state
from training.model.attention import ATTENTION
from training.model.sequence_parallel import SequenceGroup, exchange
from training.progress import Progress
from training.world import World


def shared_rows(recipe: str, cases: dict[str, list[str]], steps: int, size: int, folder: str) -> dict[str, Any]:
    """Train several configurations on groups of `size` ranks; every rank writes its slices of the state to `folder`."""
    world = start()
    found: dict[str, Any] = {"exchange": exchanged(SequenceGroup(world, size))}
    for name, overrides in cases.items():
        shared = ["--train.sequence_parallel", str(size), "--run.dir", f"{folder}/run-{name}"]
        run = Run(recipe, [*overrides, *shared], world)
        found[name] = {"curve": run.train(0, steps), "evaluation": evaluated(run, world)}
        run.saver().settle(Progress(step=steps, data_hash=run.hash))
        shard = Path(folder) / name
        shard.mkdir(exist_ok=True, parents=True)
        write_state(shard, run.engine)
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


def evaluated(run: Run, world: World) -> float:
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
