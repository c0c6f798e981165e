"""What ranks tell each other before there is a process group: JSON values in a store, every wait with an end.

Rank 0 hears all and notes who has gone silent, with what that rank was last busy with; from then on nobody waits for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from datetime import timedelta
from typing import Any, Protocol


class Store(Protocol):
    """What is used of torch's stores. They raise RuntimeError when time is up or the connection is gone."""

    def set(self, key: str, value: str) -> None:
        """Write."""

    def get(self, key: str) -> bytes:
        """Read what is there."""

    def check(self, keys: list[str]) -> bool:
        """Whether all are there."""

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        """Wait until all are there."""


class Silence(Exception):
    """Another rank has not answered in time, or no longer counts this one; the message says which."""


class Exchange:
    """The conversation, seen from one rank. All ranks in `ranks` must make the same calls in the same order."""

    def __init__(self, store: Store, rank: int, size: int, *, limit: float) -> None:
        """`limit`: seconds that rank 0 waits for a rank to come, and for every answer."""
        self.rank, self.limit = rank, limit
        self.present = set(range(size))
        """Ranks that rank 0 still waits for; known there only."""
        self.lost: dict[int, str] = {}
        """On rank 0: ranks that have gone silent, and what each was busy with."""
        self._store = store

    def put(self, key: str, value: Any) -> None:
        """Write a value that JSON can hold.

        Raises:
            Silence: rank 0, which keeps the values, is gone.
        """
        try:
            self._store.set(key, json.dumps(value))
        except RuntimeError as error:
            raise Silence("the connection to rank 0 is lost") from error

    def take(self, key: str, seconds: float) -> Any:
        """The value that another rank writes.

        Raises:
            Silence: it isn't there after so many seconds.
        """
        try:
            self._store.wait([key], timedelta(seconds=seconds))
            return json.loads(self._store.get(key))
        except RuntimeError as error:
            raise Silence(f"no {key} after {seconds:.0f} s") from error

    def doing(self, what: str) -> None:
        """Note what this rank is about to do, in case that it is the last one hears of it."""
        self.put(f"doing/{self.rank}", what)

    def collected(self, name: str, value: Any, ranks: Collection[int]) -> dict[int, Any]:
        """The values of those of the ranks that answer, in rank order; on rank 0, the others get only their own."""
        if self.rank != 0:
            self.put(f"{name}/{self.rank}", value)
            return {self.rank: value}
        keys = {rank: f"{name}/{rank}" for rank in sorted(ranks) if rank in self.present and rank != 0}
        if keys:
            try:
                self._store.wait(list(keys.values()), timedelta(seconds=self.limit))
            except RuntimeError:
                for rank in [rank for rank, key in keys.items() if not self._store.check([key])]:
                    self.lose(rank)
                    del keys[rank]
        return {0: value} | {rank: json.loads(self._store.get(key)) for rank, key in keys.items()}

    def told(self, name: str, value: Any = None) -> Any:
        """Rank 0's value, on all ranks.

        Raises:
            Silence: rank 0 says nothing for much longer than it would wait for others.
        """
        if self.rank == 0:
            self.put(name, value)
            return value
        try:
            return self.take(name, 5 * self.limit + 60)
        except Silence as error:
            raise Silence("rank 0 does not answer any more") from error

    def gathered(self, name: str, value: Any, ranks: Collection[int]) -> dict[int, Any]:
        """The values of those of the ranks that answer, in rank order, on all of them.

        Raises:
            Silence: this rank was too late, or rank 0 is gone.
        """
        values = self.collected(name, value, ranks)
        heard = self.told(f"{name}/all", {str(rank): each for rank, each in values.items()})
        if str(self.rank) not in heard:
            raise Silence(f"rank {self.rank} was too late with {name}, the others went on without it")
        return {int(rank): each for rank, each in heard.items()}

    def lose(self, rank: int) -> None:
        """On rank 0: wait for this rank no more."""
        key = f"doing/{rank}"
        self.lost[rank] = json.loads(self._store.get(key)) if self._store.check([key]) else ""
        self.present.discard(rank)

    def close(self, seconds: float = 5.0) -> None:
        """Rank 0, which keeps the values, leaves when the others have read what they need, or after some seconds."""
        if self.rank != 0:
            self.put(f"bye/{self.rank}", True)
            return
        deadline = time.monotonic() + seconds
        for rank in sorted(self.present - {0}):
            try:
                self.take(f"bye/{rank}", max(0.01, deadline - time.monotonic()))
            except Silence:
                continue
