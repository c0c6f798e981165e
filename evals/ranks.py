"""This process among those that score a model together: as torchrun's variables say, or alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from evals.errors import EvalError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets for its processes, and a Slurm script for those of srun."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One process among all that score a model together."""

    rank: int = 0
    """0 .. size-1 over all nodes."""
    size: int = 1
    """How many there are."""
    local_rank: int = 0
    """The index of the GPU to use."""


def place_in(env: Mapping[str, str]) -> Place:
    """What the variables of the environment say.

    Raises:
        EvalError: they are there in part, or are not what a launcher sets.
    """
    if "RANK" not in env and "WORLD_SIZE" not in env:
        return Place()
    if missing := [name for name in VARIABLES if name not in env]:
        raise EvalError(
            f"of the variables that start several processes {', '.join(missing)} is not set; start with torchrun, or unset "
            f"{', '.join(name for name in VARIABLES if name in env)}"
        )
    try:
        place = Place(rank=int(env["RANK"]), size=int(env["WORLD_SIZE"]), local_rank=int(env["LOCAL_RANK"]))
    except ValueError as error:
        raise EvalError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers ({error}); start with torchrun") from error
    if not 0 <= place.rank < place.size:
        raise EvalError(f"RANK is {place.rank} and WORLD_SIZE {place.size}: ranks count from 0; start with torchrun")
    return place


@contextmanager
def joined(place: Place) -> Iterator[None]:
    """While inside, the processes can agree with each other."""
    if place.size == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo", rank=place.rank, world_size=place.size)
    try:
        yield
    finally:
        dist.destroy_process_group()
