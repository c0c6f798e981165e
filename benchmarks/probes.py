"""What a training step does besides its arithmetic: operators, reads by the host, random numbers kept, peak memory.

Every figure is taken from outside, from what passes torch's dispatcher and allocator: the same rule for every
implementation that is compared.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten

HOST_READS = (
    aten._local_scalar_dense,
    aten._linalg_check_errors,
    aten.equal,
    aten.masked_select,
    aten.nonzero,
    aten._unique2,
    aten.unique_consecutive,
)
"""Operators for whose answer the host waits when the tensor is on a GPU."""

MASKABLE = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
"""Operators that do so when what they index with is a mask."""


class Operators(TorchDispatchMode):
    """Watches the operators that reach the dispatcher inside a `with` block, those of backward included.

    On the CPU a host read counts when it would wait if the step ran on a GPU: any but that of a single number which a
    factory made on the CPU and which nothing has computed with.
    """

    def __init__(self) -> None:
        super().__init__()
        self.with_views = 0
        """Number of operators."""
        self.without_views = 0
        """The same without view, transpose, detach and the like, which run nothing."""
        self.host_reads = 0
        """Number of times that the host waits for the device."""
        self._host_numbers = WeakTensorKeyDictionary()
        self._random: dict[StorageWeakRef, int] = {}

    def clear(self) -> None:
        """Count from 0 again; random numbers made before stay known."""
        self.with_views = self.without_views = self.host_reads = 0

    def random_bytes(self, beside: Iterable[Tensor]) -> int:
        """Bytes that a random number generator filled and that are alive, beside these tensors."""
        known = {StorageWeakRef(tensor.untyped_storage()) for tensor in beside}
        return sum(size for ref, size in self._random.items() if not ref.expired() and ref not in known)

    def __torch_dispatch__(
        self, func: Any, types: Collection[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operator and take note of it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.with_views += 1
        self.without_views += not func.is_view
        read, made = _tensors((args, kwargs)), _tensors(result)
        is_masked = func.overloadpacket in MASKABLE and any(t.dtype == torch.bool for t in read[1:])
        if func.overloadpacket in HOST_READS or is_masked:
            self.host_reads += any(t not in self._host_numbers for t in read)
        if not read and str(kwargs.get("device")) == "cpu":
            self._host_numbers.update({t: True for t in made if t.dim() == 0})
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._random.update({StorageWeakRef(t.untyped_storage()): t.untyped_storage().nbytes() for t in made})
        return result


class Saved(saved_tensors_hooks):
    """Adds up, inside a `with` block, the bytes that autograd keeps for backward beside the tensors `known`."""

    def __init__(self, known: Collection[Tensor]) -> None:
        known_storages = {t.untyped_storage().data_ptr() for t in known}
        self._sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage().data_ptr()
            if storage not in known_storages:
                self._sizes[storage] = max(tensor.nbytes, self._sizes.get(storage, 0))
            return tensor

        super().__init__(pack, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        """The sum so far; of tensors that share memory the largest counts."""
        return sum(self._sizes.values())


class Memory(NamedTuple):
    """Bytes of one contender, which has the device to itself."""

    held: int
    """Between two steps: weights, optimizer states, buffers."""
    peak: int
    """Most at any moment of a step."""


def measure_memory(build: Callable[[], Callable[[], object]], device: torch.device) -> Memory:
    """Build a step, run it three times and look at the third.

    On CUDA these are the allocator's own counters. On the CPU they are the sum of all allocations and releases that
    torch's allocator reports to the profiler, operators' work space included; what a BLAS library allocates for itself
    is not. Both start from 0 at `build`.
    """
    # What earlier contenders left is not to be released in the middle.
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        step = build()
        step()
        step()
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return Memory(held - before, torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = build()
        step()
        step()
        with record_function(_MEASURED):
            step()
    recorded = list(profiler.profiler.kineto_results.events())
    (start,) = (event.start_ns() for event in recorded if event.name() == _MEASURED)
    changes = sorted((event.start_ns(), event.nbytes()) for event in recorded if event.name() == "[memory]")
    held = sum(size for time, size in changes if time < start)
    peak = level = held
    for time, size in changes:
        if time >= start:
            level += size
            peak = max(peak, level)
    return Memory(held, peak)


_MEASURED = "the measured step"


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
