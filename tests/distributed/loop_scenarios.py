"""Whole runs in which something goes wrong; called by name through tests.ranks."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from typing import Any

import torch

from evals.errors import EvalError
from training import main
from training.engine import Engine


def spiking(arguments: list[str], calls: list[int]) -> dict[str, Any]:
    """Train; the steps taken at these calls, counted from 0, report a loss of 99."""
    own, taken = Engine.step, []

    def step(self: Engine, *args: Any, **kwargs: Any) -> Any:
        result = own(self, *args, **kwargs)
        taken.append(result.loss)
        return dataclasses.replace(result, loss=99.0) if len(taken) - 1 in calls else result

    Engine.step = step  # type: ignore[method-assign]
    return {"taken": taken, **run(arguments)}


def spoiled(arguments: list[str], first: int, last: int) -> dict[str, Any]:
    """Train; the losses of micro-batches first .. last-1 on this rank are not numbers."""
    own, taken = Engine._losses, []

    def losses(self: Engine, *args: Any, **kwargs: Any) -> Any:
        taken.append(None)
        return own(self, *args, **kwargs) * (float("nan") if first < len(taken) <= last else 1.0)

    Engine._losses = losses  # type: ignore[method-assign]
    return run(arguments)


def run(arguments: list[str]) -> dict[str, Any]:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main.main(arguments)
    torch.distributed.destroy_process_group() if torch.distributed.is_initialized() else None
    return {"code": code, "said": said.getvalue()}


def disagreeing(arguments: list[str]) -> dict[str, Any]:
    """Train with another learning rate on rank 1."""
    return run([*arguments, *(["--optim.lr", "0.25"] if os.environ["RANK"] == "1" else [])])


def refused_on_rank_1(arguments: list[str]) -> dict[str, Any]:
    """Train; rank 1 alone has an option that is no setting."""
    return run([*arguments, *(["--optim.lrr", "1"] if os.environ["RANK"] == "1" else [])])


def missing_on_rank_1(arguments: list[str]) -> dict[str, Any]:
    """Train; rank 1 alone can't read the held-out text."""
    from training import evaluation

    def check_tasks(*args: Any, **kwargs: Any) -> None:
        raise EvalError("heldout.jsonl: no such file")

    if os.environ["RANK"] == "1":
        evaluation.check_tasks = check_tasks  # type: ignore[assignment]
    return run(arguments)
