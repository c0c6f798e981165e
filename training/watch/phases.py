"""Where the time of a step goes, phase by phase: forward, backward, optimizer."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_FOLD_AT = 1024
"""Timed stretches after which those that are over are added up, so that their events can be used again."""


class Phases:
    """Seconds by phase, as the device spends them.

    On a CPU that is the time between entering and leaving. On a GPU the host runs ahead, so an event is put into the
    stream at both ends, and nothing waits for them until `seconds` is asked for; a phase then lasts from when the stream has done
    all that came before to when it has done the phase's work, including what it waited for meanwhile: the host, and the
    streams of collectives. In both cases, communication that computation does not hide is part of the phase it delays.
    Phases neither nest nor overlap, so their sum is at most the time that has passed.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._free: list[torch.cuda.Event] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """What happens inside the block belongs to this phase."""
        if not self._is_cuda:
            began = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - began
            return
        first = self._record()
        yield
        self._pending.append((name, first, self._record()))
        if len(self._pending) >= _FOLD_AT:
            self._fold()

    def seconds(self) -> dict[str, float]:
        """Seconds of every phase since the last `reset`; waits for the GPU to finish the last of them."""
        if self._pending:
            self._pending[-1][2].synchronize()
            self._fold()
        return dict(self._seconds)

    def reset(self) -> None:
        """Start anew."""
        self.seconds()
        self._seconds.clear()

    def _record(self) -> torch.cuda.Event:
        """An event at this point of the current stream."""
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _fold(self) -> None:
        """Add up the stretches that are over, without waiting."""
        count = 0
        for name, first, last in self._pending:
            if not last.query():
                break
            self._seconds[name] += first.elapsed_time(last) / 1000
            self._free += (first, last)
            count += 1
        del self._pending[:count]
