"""What ranks do in tests of resuming: many runs one after the other in one launch; called by name through tests.ranks."""

from __future__ import annotations

import dataclasses
from typing import Any

from tests.distributed.scenarios import Run, start
from training.progress import Progress
from training.world import World

Curve = list[list[Any]]
"""Loss, gradient norm, penalty, data hash and compensation of each step."""

Case = dict[str, Any]
"""The overrides of a run and, as local_size, how many ranks are on each node."""


def save(recipe: str, cases: dict[str, Case], first: int, last: int) -> dict[str, Curve]:
    """Train each run to `first`, begin to save and train on to `last` at once; the curves from `first` on."""
    world, curves = start(), {}
    for name, case in cases.items():
        run = make(recipe, case, world)
        run.train(0, first)
        saver = run.saver()
        saver.save(Progress(step=first, data_hash=run.hash))
        curves[name] = run.train(first, last)
        saver.finish()
        saver.close()
        close(run)
    return curves


def resume(recipe: str, cases: dict[str, Case], first: int, last: int) -> dict[str, Curve]:
    """Go on with each run from its newest checkpoint, which is that of step `first`; the curves from there to `last`."""
    world, curves = start(), {}
    for name, case in cases.items():
        run = make(recipe, case, world)
        progress = Progress()
        assert run.resume(progress), name
        assert progress.step == first, name
        run.hash = progress.data_hash
        curves[name] = run.train(first, last)
        close(run)
    return curves


def make(recipe: str, case: Case, world: World) -> Run:
    local_size = case["local_size"]
    place = dataclasses.replace(world, local_rank=world.rank % local_size, local_size=local_size)
    # Also the small parameters of a test are to be in pieces, where the placement cuts them.
    return Run(recipe, case["overrides"], place, threshold=0)


def close(run: Run) -> None:
    run.batches.close()
    run.engine.placement.close()
