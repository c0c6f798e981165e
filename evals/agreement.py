"""Processes that score a model together go on together or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from evals.errors import EvalError

T = TypeVar("T")


class CommonError(EvalError):
    """Raised on all ranks with the same message, so it is enough that the first one tells it."""


def gathered(value: T, world_size: int) -> list[T]:
    """Every rank's value, by rank; a collective when there are several."""
    if world_size == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world_size
    dist.all_gather_object(values, value)
    return values


def made_by_all(make: Callable[[], T], world_size: int) -> T:
    """What `make` returns on this rank, once it has returned on all; a collective when there are several.

    Raises:
        CommonError: on all of several ranks, when one could not make its value or had no memory, process or file for it;
            the message is that of the first such rank. A rank that is alone raises its error as it is.
    """
    if world_size == 1:
        return make()
    value: T | None = None
    caught: Exception | None = None
    try:
        value = make()
    except (EvalError, OSError, MemoryError, RuntimeError) as error:
        caught = error
    problems = gathered(None if caught is None else _text(caught), world_size)
    for rank, problem in enumerate(problems):
        if problem is not None:
            is_everywhere = all(other == problem for other in problems)
            raise CommonError(problem if is_everywhere else f"rank {rank}: {problem}") from caught
    return value  # type: ignore[return-value]


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, EvalError) else f"{type(error).__name__}: {error}"
