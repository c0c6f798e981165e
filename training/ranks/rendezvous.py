"""Where the ranks that were started together find each other: a store, and who has come to it.

torchrun keeps one store over all its restarts. In it a rank of the second start can find what the first one left there, addresses
of processes that are dead among it, and wait for them. Its counter of restarts is no name for a start: every node's agent counts
for itself. So the ranks agree on a name that is new, by handing each other random numbers that only those who live now can know.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta

import torch.distributed as dist

from training.world import World

PREFIX = "palimpsest"
LOOK_SECONDS = 0.05

SAY_SECONDS = 20.0
"""Time after which a rank that waits for others says so."""


def store_of_this_start(
    world: World,
    timeout: timedelta,
    say: Callable[[str], None] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> dist.Store:
    """A store in which nobody has written before this start; rank 0 has it when all ranks have come.

    Args:
        world: this rank and all others.
        timeout: how long to wait for them.
        say: gets a line, on rank 0 or on the first rank of a node that can't reach it, when others are long in coming.
        environment: torchrun says in it that it keeps a store.

    Raises:
        TimeoutError: not all ranks have come.
        DistError: rank 0 can't be reached.
    """
    address = f"{world.master_addr}:{world.master_port}"
    wait = Wait(timeout, say if world.rank == 0 else None, address)
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        shared, _, _ = next(dist.rendezvous("env://", timeout=timeout))
        return dist.PrefixStore(agree_on_name(shared, world.rank, world.size, wait), shared)
    # Nothing but this thread speaks while torch tries to connect.
    patience = threading.Timer(SAY_SECONDS, lambda: say and say(f"waiting for rank 0 at {address}"))
    patience.daemon = True
    if world.rank != 0 and world.local_rank == 0:
        patience.start()
    try:
        store = dist.TCPStore(
            world.master_addr, world.master_port, world.size, is_master=world.rank == 0, timeout=timeout,
            wait_for_workers=False, multi_tenant=True,
        )  # fmt: skip
    finally:
        patience.cancel()
    wait_for_all(store, world.rank, world.size, wait)
    return store


class Wait:
    """Waiting for other ranks: how long, and who hears of it."""

    def __init__(self, timeout: timedelta, say: Callable[[str], None] | None = None, address: str = "") -> None:
        """`say` gets one line, of how many are to come to `address`."""
        self._started, self._timeout = time.monotonic(), timeout.total_seconds()
        self._say, self._address = say, address

    def pause(self, missing: str, verb: str) -> None:
        """Wait a moment for those who are missing, "2 of 3 ranks" that "have" not come.

        Raises:
            TimeoutError: they have not come in time.
        """
        seconds = time.monotonic() - self._started
        if seconds > self._timeout:
            raise TimeoutError(f"{missing} {verb} not come to the rendezvous in time")
        if self._say is not None and seconds > SAY_SECONDS:
            self._say(f"waiting for {missing} to come to {self._address}")
            self._say = None
        time.sleep(LOOK_SECONDS)


def wait_for_all(store: dist.Store, rank: int, size: int, wait: Wait) -> None:
    """Rank 0 waits until all ranks have called this, the others say that they are there.

    Raises:
        TimeoutError: not all ranks have come.
    """
    key = f"{PREFIX}/arrived"
    arrived = store.add(key, 1)
    while rank == 0 and arrived < size:
        wait.pause(f"{size - arrived} of {size} ranks", "have")
        arrived = store.add(key, 0)


def agree_on_name(store: dist.Store, rank: int, size: int, wait: Wait) -> str:
    """A name that no earlier start has used, the same on all ranks; all must call it.

    Raises:
        TimeoutError: not all ranks have come.
    """
    return _name_it(store, size, wait) if rank == 0 else _hear_it(store, rank, wait)


def _name_it(store: dist.Store, size: int, wait: Wait) -> str:
    """Rank 0: show every rank the number it wrote, beside the name, until all have taken the name over."""
    name = f"{PREFIX}/{secrets.token_hex(8)}"
    answers = {f"{PREFIX}/answer/{rank}" for rank in range(1, size)}
    while True:
        numbers = {rank: _read(store, f"{PREFIX}/number/{rank}") for rank in range(1, size)}
        store.set(f"{PREFIX}/name", json.dumps([name, numbers]))
        answers = {key for key in answers if _read(store, key) != name}
        if not answers:
            return name
        wait.pause(f"{len(answers)} of {size} ranks", "have")


def _hear_it(store: dist.Store, rank: int, wait: Wait) -> str:
    """The other ranks: a name that stands beside this rank's number is rank 0's of this start."""
    number = secrets.token_hex(8)
    store.set(f"{PREFIX}/number/{rank}", number)
    while True:
        name, numbers = json.loads(_read(store, f"{PREFIX}/name") or '["", {}]')
        if numbers.get(str(rank)) == number:
            store.set(f"{PREFIX}/answer/{rank}", name)
            return str(name)
        wait.pause("rank 0", "has")


def _read(store: dist.Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""
