"""What ranks do in tests of scoring; called by name through tests.ranks."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from evals.scoring.rows import Row
from evals.scoring.scorer import Scorer
from evals.scoring.stopping import Stopped
from tests.distributed.scenarios import Run, start
from training.ranks import distributed


def make_rows() -> list[Row]:
    """Questions whose endings share a context, and texts, of the tiny recipe's 512 tokens."""
    generator = torch.Generator().manual_seed(2)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 512, (count,), generator=generator).tolist())

    contexts = [(1, *tokens(length)) for length in (4, 11, 30, 12, 5, 19, 8)]
    rows = [Row(context + tokens(k), first=len(context)) for context in contexts for k in (1, 3, 7, 5)]
    return rows + [Row((1, *tokens(count)), first=1) for count in (40, 3, 25)]


def score(recipe: str, threshold: int | None = None) -> dict[str, Any]:
    """Answers of a live engine: of many rows, of fewer rows than ranks, and of an evaluation that one rank stops.

    Args:
        recipe: file of the tiny recipe.
        threshold: parameters of fewer elements than this are whole on every rank (ZeRO-3).
    """
    world = start()
    run = Run(recipe, ["--adapter.kind", "lora", "--train.steps", "3"], world, threshold)
    run.train(0, 2)
    model = run.engine.placement.model
    forwards: list[int] = []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))
    make = functools.partial(
        Scorer, model=model, device=run.engine.device, pad_id=0, max_length=64, batch_tokens=120, rank=world.rank,
        world_size=world.size,
    )  # fmt: skip
    rows = make_rows()
    found = {"many": make().score(rows), "forwards": len(forwards)}
    found["few"] = make().score(rows[-1:])

    forwards.clear()
    own = asked(world.rank)
    try:
        make(should_stop=lambda: distributed.any_rank(next(own))).score(rows)
    except Stopped:
        found["stopped_after"] = len(forwards)
    # It trains as before, and answers as before.
    run.train(2, 3)
    found["is_training"] = model.training
    partitioned = sum(hasattr(parameter, "ds_id") for parameter in model.parameters())
    dist.barrier()
    return found | {"partitioned": partitioned}


def asked(rank: int) -> Iterator[bool]:
    """Only the last of two ranks wants to stop, before the third forward."""
    yield from (False, False)
    while True:
        yield rank == 1
