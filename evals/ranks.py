"""This process among those that score a model together: as torchrun's or srun's variables say, or alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from evals.agreement import CommonError
from evals.errors import EvalError

if TYPE_CHECKING:
    from torch.distributed import Store

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets for its processes."""
SRUN_VARIABLES = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}
"""What srun says in place of torchrun's; the address is set by the script that calls it (slurm/job.sh)."""


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
        if env.get("SLURM_STEP_NUM_TASKS", "1") == "1" or "SLURM_PROCID" not in env:
            return Place()
        env = {**env, **{name: env[theirs] for name, theirs in SRUN_VARIABLES.items() if theirs in env}}
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


PATIENCE = timedelta(minutes=1)
"""How long a process that is done waits for the others to say the same."""


@contextmanager
def joined(place: Place) -> Iterator[None]:
    """While inside, the processes can agree with each other; they leave together, or alone with an error of their own."""
    if place.size == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
    store, _, _ = next(dist.rendezvous("env://", place.rank, place.size))
    dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=place.rank, world_size=place.size)
    try:
        try:
            yield
        except CommonError:
            _wait_for_all(store, place)
            raise
        _wait_for_all(store, place)
    finally:
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """Exit with `code`; where torch was at work, without tearing the interpreter down.

    Threads of native libraries can abort that, and a launcher would take the whole evaluation for failed after its result
    was written.
    """
    if "torch" in sys.modules:
        for stream in (sys.stdout, sys.stderr):
            # They may be files on a full disk.
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _wait_for_all(store: Store, place: Place) -> None:
    """Return when nobody needs this process any more.

    The last collective ends on a rank when it has what it needs; closing its connections then can cut off what another has
    not read yet. And the store lives in the first process, which therefore goes last.
    """
    import torch.distributed as dist

    # Who does not come has ended with an error of its own.
    with suppress(dist.DistError):
        store.set(f"done/{place.rank}", "")
        store.wait([f"done/{rank}" for rank in range(place.size)], PATIENCE)
        if place.rank == 0:
            store.wait([f"gone/{rank}" for rank in range(1, place.size)], PATIENCE)
        else:
            store.set(f"gone/{place.rank}", "")
