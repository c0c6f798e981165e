"""A store for the ranks that were started together, where torchrun keeps one over all its restarts.

In torchrun's store a rank of the second start can find what the first one left there, addresses of processes that are dead
among it, and wait for them. Its counter of restarts is no name for a start: every node's agent counts for itself. So the ranks
agree on a name that is new, by handing each other random numbers that only those who live now can know.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed as dist

from training.world import World

PREFIX = "palimpsest"
LOOK_SECONDS = 0.05


def store_of_this_start(
    world: World, timeout: timedelta, environment: Mapping[str, str] = os.environ
) -> dist.Store | None:
    """A store in which nobody has written before this start; None where torch makes a new one by itself.

    Raises:
        TimeoutError: not all ranks have come.
    """
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    return dist.PrefixStore(agree_on_name(store, world.rank, world.size, timeout), store)


def agree_on_name(store: dist.Store, rank: int, size: int, timeout: timedelta) -> str:
    """A name that no earlier start has used, the same on all ranks; all must call it.

    Raises:
        TimeoutError: not all ranks have come.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    return _name_it(store, size, deadline) if rank == 0 else _hear_it(store, rank, deadline)


def _name_it(store: dist.Store, size: int, deadline: float) -> str:
    """Rank 0: show every rank the number it wrote, beside the name, until all have taken the name over."""
    name = f"{PREFIX}/{secrets.token_hex(8)}"
    answers = {f"{PREFIX}/answer/{rank}" for rank in range(1, size)}
    while True:
        numbers = {rank: _read(store, f"{PREFIX}/number/{rank}") for rank in range(1, size)}
        store.set(f"{PREFIX}/name", json.dumps([name, numbers]))
        answers = {key for key in answers if _read(store, key) != name}
        if not answers:
            return name
        _pause(deadline, f"{len(answers)} of {size} ranks have not come")


def _hear_it(store: dist.Store, rank: int, deadline: float) -> str:
    """The other ranks: a name that stands beside this rank's number is rank 0's of this start."""
    number = secrets.token_hex(8)
    store.set(f"{PREFIX}/number/{rank}", number)
    while True:
        name, numbers = json.loads(_read(store, f"{PREFIX}/name") or '["", {}]')
        if numbers.get(str(rank)) == number:
            store.set(f"{PREFIX}/answer/{rank}", name)
            return str(name)
        _pause(deadline, "rank 0 has not come")


def _read(store: dist.Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _pause(deadline: float, problem: str) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError(f"{problem} to the rendezvous in time")
    time.sleep(LOOK_SECONDS)
