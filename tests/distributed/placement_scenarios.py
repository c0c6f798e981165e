"""What ranks do in tests of placements; called by name through tests.ranks."""

from __future__ import annotations

from typing import Any

import torch

from tests.distributed.scenarios import Run, start, state_of
from training.progress import Progress
from training.ranks import distributed


def skipped(recipe: str, cases: dict[str, list[str]]) -> dict[str, Any]:
    """In each configuration, a step that the last rank alone spoils, between two good ones, with what is left of it."""
    world = start()
    found: dict[str, Any] = {}
    for name, overrides in cases.items():
        run = Run(recipe, overrides, world)
        before = run.train(0, 1)
        state, steps = state_of(run.engine), run.engine.optimizer_steps()
        losses_of = run.engine._losses
        spoiled: list[str] = []

        def spoil(micro: Any, step: int, losses_of: Any = losses_of, spoiled: Any = spoiled, name: str = name) -> Any:
            losses = losses_of(micro, step)
            if world.rank == world.size - 1 and not spoiled:
                spoiled.append(name)
                # The gradient of this infinite loss is finite.
                value = float("inf") if "inf" in name else float("nan")
                return losses + torch.tensor([value, 0.0])
            return losses

        run.engine._losses = spoil  # type: ignore[method-assign]
        result = run.step(1)
        after = state_of(run.engine)
        run.engine._losses = losses_of  # type: ignore[method-assign]
        found[name] = {
            "is_applied": result.is_applied,
            "norm_is_finite": bool(torch.isfinite(torch.tensor(result.grad_norm))),
            "loss_is_finite": bool(torch.isfinite(torch.tensor(result.loss))),
            "changed": [key for key in state if not torch.equal(state[key], after[key])],
            "steps": [steps, run.engine.optimizer_steps()],
            "next": run.step(2).is_applied,
            "before": before,
        }
    return found


def saved_in(recipe: str, overrides: list[str], first: int, last: int) -> list[list[Any]]:
    """Train to `first`, save, and train on to `last` without interruption."""
    run = Run(recipe, overrides, start())
    run.train(0, first)
    run.saver().settle(Progress(step=first, data_hash=run.hash))
    return run.train(first, last)


def resumed_in(recipe: str, cases: dict[str, list[str]], last: int) -> dict[str, Any]:
    """Go on from the newest checkpoint in each configuration, and in a new model of the first one once more."""
    world = start()
    found: dict[str, Any] = {}
    for name, overrides in cases.items():
        run = Run(recipe, overrides, world)
        progress = Progress()
        assert run.resume(progress)
        run.hash = progress.data_hash
        found[name] = run.train(progress.step, last)
        run.engine.placement.close()
    return found


def node_copies(recipe: str, cases: dict[str, list[str]], first: int, last: int) -> dict[str, Any]:
    """Under hpZ: a curve, and its end again from a state loaded into a model that has already gathered."""
    world = start()
    found: dict[str, Any] = {}
    for name, overrides in cases.items():
        run = Run(recipe, overrides, world, 0)
        curve = run.train(0, first)
        state, steps, data = state_of(run.engine), run.engine.optimizer_steps(), run.batches.state_dict()
        hash_before = run.hash
        end = run.train(first, last)
        run.engine.load_local_state(state.items(), steps)
        run.batches.load_state_dict(data)
        run.hash = hash_before
        again = run.train(first, last)
        found[name] = {"curve": curve + end, "end": end, "again": again, "ranks": distributed.gather(world.rank, world)}
        run.batches.close()
        run.engine.placement.close()
    return found
