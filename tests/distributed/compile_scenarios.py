"""Training with and without torch.compile, in a process of its own; called by name through tests.ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch._dynamo.utils import counters

from tests.distributed.scenarios import Run, start
from training.model.compiling import compile_layers


def compiled_and_not(recipe: str, cases: dict[str, list[str]], steps: int) -> dict[str, Any]:
    """Loss and gradient norm of every step of both, and the number of graphs compiled until after each step."""
    world = start()
    found: dict[str, Any] = {}
    for name, overrides in cases.items():
        torch._dynamo.reset()
        counters.clear()
        runs = [Run(recipe, [*overrides, "--train.placement", "replicated"], world) for _ in range(2)]
        compile_layers(runs[1].engine.model)
        curves: list[list[list[float]]] = [[], []]
        graphs = []
        for step in range(steps):
            for run, curve in zip(runs, curves, strict=True):
                result = run.step(step)
                curve.append([result.loss, result.grad_norm])
            graphs.append(counters["stats"]["unique_graphs"])
        found[name] = {"plain": curves[0], "compiled": curves[1], "graphs": graphs}
    return found
