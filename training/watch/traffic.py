"""Bytes that this rank's collectives put on the wire, and how long the host waited for them.

Counted where torch hands a collective to its backend, in the methods of ProcessGroup: everything passes there exactly once,
whether our own code, DeepSpeed or torch itself calls, coalesced or not, and whatever the function in front is called in this
release. (Collectives inside a compiled graph are the exception; the system has none.) What is counted is what an ideal
algorithm sends from one rank, for n ranks:

    all-gather       (n - 1) * this rank's part                = S (n - 1) / n of a result of S bytes
    reduce-scatter   (n - 1) * the part this rank ends with    = S (n - 1) / n of an input of S bytes
    all-reduce       2 S (n - 1) / n
    all-to-all       S (n - 1) / n of an input of S bytes
    broadcast, reduce, gather, scatter    S (n - 1) / n, the mean over the ranks
    send             S
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor


def _per_part(ranks: int) -> float:
    """Of what one rank has of the whole."""
    return ranks - 1


def _per_whole(ranks: int) -> float:
    """Of the whole."""
    return (ranks - 1) / ranks


def _twice(ranks: int) -> float:
    """Of the whole, there and back."""
    return 2 * (ranks - 1) / ranks


def _all(ranks: int) -> float:
    """To one other rank."""
    return 1.0


_METHODS: dict[str, tuple[str, int, Callable[[int], float]]] = {
    "allreduce": ("all_reduce", 0, _twice),
    "allreduce_coalesced": ("all_reduce", 0, _twice),
    "allgather": ("all_gather", 1, _per_part),
    "allgather_coalesced": ("all_gather", 1, _per_part),
    "_allgather_base": ("all_gather", 1, _per_part),
    "allgather_into_tensor_coalesced": ("all_gather", 1, _per_part),
    "all_gather_single": ("all_gather", 1, _per_part),
    "all_gather_single_coalesced": ("all_gather", 1, _per_part),
    "reduce_scatter": ("reduce_scatter", 0, _per_part),
    "_reduce_scatter_base": ("reduce_scatter", 0, _per_part),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", 0, _per_part),
    "reduce_scatter_single": ("reduce_scatter", 0, _per_part),
    "reduce_scatter_single_coalesced": ("reduce_scatter", 0, _per_part),
    "alltoall": ("all_to_all", 1, _per_whole),
    "alltoall_base": ("all_to_all", 1, _per_whole),
    "all_to_all_single": ("all_to_all", 1, _per_whole),
    "broadcast": ("broadcast", 0, _per_whole),
    "reduce": ("reduce", 0, _per_whole),
    "gather": ("gather", 1, _per_whole),
    "scatter": ("scatter", 0, _per_whole),
    "send": ("send", 0, _all),
}
"""Methods of ProcessGroup, under the names of torch 2.11 to 2.13: the kind of collective, which argument's size counts, and
what of it is sent per rank as a function of the number of ranks."""

_bytes: Counter[str] = Counter()
_calls: Counter[str] = Counter()
_seconds = 0.0
_is_installed = False


class Traffic:
    """What this rank has sent since `start`, which making one does, too; any number of them count side by side."""

    def __init__(self) -> None:
        install()
        self.start()

    def start(self) -> None:
        """Count from here."""
        self._bytes, self._calls, self._seconds = _bytes.copy(), _calls.copy(), _seconds

    @property
    def bytes(self) -> float:
        """Bytes sent, of all kinds of collectives together."""
        return sum(self.bytes_by_kind().values())

    @property
    def calls(self) -> int:
        """Number of collectives."""
        return sum(self.calls_by_kind().values())

    @property
    def seconds(self) -> float:
        """Time the host has waited for collectives to end.

        With gloo that is the communication that computation did not hide, and the lateness of slower ranks. With NCCL the host does not wait, the GPU's
        stream does, and this is close to 0 whatever the network does.
        """
        return _seconds - self._seconds

    def bytes_by_kind(self) -> dict[str, float]:
        """Bytes sent by kind of collective: all_gather, reduce_scatter, all_reduce, all_to_all, broadcast, ..."""
        return {kind: value - self._bytes[kind] for kind, value in _bytes.items() if _calls[kind] > self._calls[kind]}

    def calls_by_kind(self) -> dict[str, int]:
        """Number of collectives by kind."""
        return {kind: value - self._calls[kind] for kind, value in _calls.items() if value > self._calls[kind]}


def install() -> None:
    """Count from now on, in this process; again is once. A collective costs a microsecond more."""
    global _is_installed
    if _is_installed:
        return
    _is_installed = True
    for name, (kind, index, factor) in _METHODS.items():
        if original := getattr(dist.ProcessGroup, name, None):
            setattr(dist.ProcessGroup, name, _counted(original, kind, index, factor))
    dist.Work.wait = _timed(dist.Work.wait)  # type: ignore[method-assign]


def _counted(original: Callable[..., Any], kind: str, index: int, factor: Callable[[int], float]) -> Callable[..., Any]:
    """A method of ProcessGroup that counts before it does what it did."""

    @functools.wraps(original)
    def method(group: Any, *args: Any, **kwargs: Any) -> Any:
        counted = args[index] if len(args) > index else (*args, *kwargs.values())[index]
        _bytes[kind] += factor(group.size()) * _size(counted)  # type: ignore[assignment]
        _calls[kind] += 1
        return original(group, *args, **kwargs)

    return method


def _timed(original: Callable[..., Any]) -> Callable[..., Any]:
    """Work.wait with its duration added up."""

    @functools.wraps(original)
    def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
        global _seconds
        began = time.perf_counter()
        try:
            return original(work, *args, **kwargs)
        finally:
            _seconds += time.perf_counter() - began

    return wait


def _size(value: Any) -> int:
    """Bytes of a tensor, or of all tensors in a list of them or of such lists."""
    return value.nbytes if isinstance(value, Tensor) else sum(map(_size, value))
