"""What ranks do in tests of generation; called by name through tests.ranks."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch.distributed as dist

from evals.scoring.generation import Prompt, generate
from evals.scoring.stopping import Stopped
from tests.distributed.scenarios import Run, start
from training.ranks import distributed

UNEVEN = [
    Prompt(ids=tuple(range(3, 40)), max_new_tokens=30),
    Prompt(ids=(1, 9), max_new_tokens=2, samples=5, temperature=1.0, seed=4),
    Prompt(ids=(1, 9, 80), max_new_tokens=9, samples=3, temperature=0.7, top_p=0.9, stop=(" 3",)),
    *(Prompt(ids=(1, 100 + number), max_new_tokens=1 + number) for number in range(4)),
]


def decode(ids: Sequence[int]) -> str:
    """Tokens as text."""
    return "".join(f" {token}" for token in ids)


def write(recipe: str, threshold: int | None = None) -> dict[str, Any]:
    """Texts of a live engine: many, one alone, from logits that are not finite, and until one rank stops.

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
    told: list[tuple[int, int]] = []
    ask = functools.partial(
        generate, model, decode=decode, eos_ids={2}, device=run.engine.device, pad_id=0, max_length=80, batch_tokens=300,
        rank=world.rank, world_size=world.size, progress=lambda *done: told.append(done),
    )  # fmt: skip
    found: dict[str, Any] = {"uneven": ask(UNEVEN), "forwards": len(forwards), "told": told[-1:]}
    found["one"] = ask(UNEVEN[:1])
    found["none"] = ask([])

    broken = [model.register_forward_hook(spoil)] if world.rank == 1 else []
    found["not_finite"] = ask(UNEVEN[3:])
    for handle in broken:
        handle.remove()

    forwards.clear()
    own = asked(world.rank)
    try:
        ask(UNEVEN, should_stop=lambda: distributed.any_rank(next(own)))
    except Stopped:
        found["stopped_after"] = len(forwards)
    # It trains as before.
    run.train(2, 3)
    found["is_training"] = model.training
    found["partitioned"] = sum(hasattr(parameter, "ds_id") for parameter in model.parameters())
    dist.barrier()
    return found


def spoil(_module: Any, _arguments: Any, output: Any) -> None:
    """Make one of the logits NaN."""
    output.logits[..., 103] = float("nan")


def asked(rank: int) -> Iterator[bool]:
    """Only the last of two ranks wants to stop, the second time they are asked."""
    yield False
    while True:
        yield rank == 1
