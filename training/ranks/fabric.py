"""What carries a run, measured: the store that ranks meet at, sums over the wires between them, and the speed of GPUs.

For `launch preflight`, which imports no torch itself. Every wait has an end: gloo and NCCL raise when the timeout of their group
is over, and what a rank was waiting for is said before.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training.ranks.distributed import device_of, gpu_index
from training.world import World, interface_to

MAX_ROUNDS = 8
"""Rounds of pairs of nodes, whatever the number of nodes: the time must not grow with it."""

MATMUL_SIDE = 8192
MATMULS = 20


class Unreachable(Exception):
    """Ranks can't meet; the message says where."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is sent to measure a wire."""

    elements: int
    """fp32 numbers of one all-reduce."""
    repetitions: int
    """Of which the fastest counts."""
    timeout: float = 30.0
    """Seconds after which a rank stops waiting for another."""


def load_of(device: str) -> Load:
    """What saturates a wire and still takes no time: on a CPU many ranks may share a core."""
    return Load(elements=2**26, repetitions=5) if device == "cuda" else Load(elements=2**18, repetitions=3)


@dataclass(kw_only=True)
class Measured:
    """What a rank has found; rates are in bytes per second of the slowest link of a ring (2 (n-1) / n bytes per byte)."""

    device: str = "cpu"
    inside: float | None = None
    """With the other ranks of its node; None: there are none."""
    pairs: dict[int, float] = field(default_factory=dict)
    """With its counterpart on another node, by the number of that node."""
    all: float | None = None
    flops: float | None = None
    """Of a bf16 matrix product on a GPU, per second."""
    wrong: list[str] = field(default_factory=list)
    """Results that are not what they must be: "inside", "pair 3", "all", "matmul"."""
    stopped_at: str | None = None
    """What could not be finished, in the same words."""
    error: str = ""
    """Why."""


def open_store(world: World, seconds: float, environment: Mapping[str, str] = os.environ) -> Any:
    """The store that rank 0 keeps; rank 0 does not wait for the others.

    Raises:
        Unreachable: rank 0 can't keep it, or another rank has not reached it after so many seconds.
    """
    address, timeout = f"{world.master_addr}:{world.master_port}", timedelta(seconds=seconds)
    # torchrun's agents keep one there themselves.
    is_kept = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = dist.TCPStore(
            world.master_addr, world.master_port, None, is_master=world.rank == 0 and not is_kept, timeout=timeout,
            wait_for_workers=False,
        )  # fmt: skip
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if world.rank == 0:
            raise Unreachable(f"rank 0 can't be met at {address}: {reason}; set MASTER_ADDR or MASTER_PORT") from error
        raise Unreachable(
            f"can't reach rank 0 at {address} within {seconds:g} s: it was not started, or a firewall or a wrong MASTER_ADDR is "
            "in between"
        ) from error
    restart = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"palimpsest/preflight/{restart}", store)


def versions() -> dict[str, str]:
    """Of what torch brings with it; the NVIDIA driver's is nvidia-smi's to say."""
    found = {"CUDA": torch.version.cuda or "none"}
    if torch.version.cuda and dist.is_nccl_available():
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def measure(
    world: World,
    store: Any,
    nodes: Sequence[Sequence[int]],
    load: Load,
    doing: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Check and time sums inside this rank's node, with other nodes pair by pair, and over all; a collective of all ranks.

    Args:
        world: this rank and all others.
        store: for the process groups to meet at.
        nodes: ranks of each node, in the same order on all ranks.
        load: what is sent.
        doing: is told what comes next.

    Returns:
        The fields of `Measured`. What fails is in it, and ends this rank's part.
    """
    found = Measured(device="cuda" if has_gpu() else "cpu")
    stage = ""
    try:
        for stage, act in _stages(world, store, nodes, load, found):
            doing(stage)
            act()
    except (RuntimeError, ValueError) as error:
        found.stopped_at, found.error = stage, (str(error).strip() or type(error).__name__).splitlines()[0]
    return dataclasses.asdict(found)


def _stages(
    world: World, store: Any, nodes: Sequence[Sequence[int]], load: Load, found: Measured
) -> list[tuple[str, Callable[[], None]]]:
    own = next(number for number, ranks in enumerate(nodes) if world.rank in ranks)
    place = list(nodes[own]).index(world.rank)
    stages: list[tuple[str, Callable[[], None]]] = []
    if found.device == "cuda":
        stages += [("gpu", lambda: _take_gpu(world)), ("matmul", lambda: _try_matmul(device_of(world), found))]
    stages.append(("join", lambda: _join(world, store, load.timeout)))

    def inside() -> None:
        found.inside = _rate(list(nodes[own]), world, load, "inside", found)

    def pair(other: int) -> Callable[[], None]:
        def act() -> None:
            found.pairs[other] = _rate([world.rank, nodes[other][place]], world, load, f"pair {other}", found)

        return act

    def everyone() -> None:
        found.all = _rate(None, world, load, "all", found)

    if len(nodes[own]) > 1:
        stages.append(("inside", inside))
    for pairs in rounds(len(nodes))[:MAX_ROUNDS]:
        other = next((pair[1 - pair.index(own)] for pair in pairs if own in pair), None)
        if other is not None and place < len(nodes[other]):
            stages.append((f"pair {other}", pair(other)))
    if world.size > 1:
        stages.append(("all", everyone))
    return stages


def rounds(count: int) -> list[list[tuple[int, int]]]:
    """A tournament in which each of `count` nodes meets every other once: rounds of disjoint pairs (the circle method).

    One stays at its place, the others move on by one after every round; an odd one out has a pause.
    """
    circle: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    found = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        opposite = zip(circle[:half], reversed(circle[half:]), strict=True)
        found.append([(a, b) for a, b in opposite if a is not None and b is not None])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return found


def has_gpu() -> bool:
    """Whether this rank computes on one."""
    return torch.cuda.is_available()


def leave(code: int) -> None:
    """Leave the process group, if this rank is in one; where sums may not have come to an end, end the process with the code."""
    if not dist.is_initialized():
        return
    if code == 0:
        dist.destroy_process_group()
        return
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of the group may wait for a rank that is gone, and the interpreter for them.
    os._exit(code)


def _take_gpu(world: World) -> None:
    index = gpu_index(world.local_rank, torch.cuda.device_count())
    if index is None:
        raise ValueError(f"rank {world.rank} is number {world.local_rank} and is shown {torch.cuda.device_count()}")
    torch.cuda.set_device(index)


def _join(world: World, store: Any, timeout: float) -> None:
    """As training does (training.ranks.distributed.init_distributed), but over a store that is there."""
    if world.size > world.local_size and (interface := interface_to(world.master_addr)):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    # A collective that takes too long is to raise here, not to end the process without a report.
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if has_gpu() else "gloo", store=dist.PrefixStore("group", store), rank=world.rank,
        world_size=world.size, timeout=timedelta(seconds=timeout),
    )  # fmt: skip


def _rate(ranks: list[int] | None, world: World, load: Load, name: str, found: Measured) -> float:
    """Check a sum over these ranks (None: all), and return how fast the fastest of some was."""
    group = None
    if ranks is not None:
        # The others need not know: only its members make a group.
        group = dist.new_group(ranks, timeout=timedelta(seconds=load.timeout), use_local_synchronization=True)
    members = sorted(ranks) if ranks is not None else list(range(world.size))
    device = device_of(world)
    values = _pattern(load.elements, device) + world.rank
    dist.all_reduce(values, group=group)
    if not torch.equal(values, len(members) * _pattern(load.elements, device) + sum(members)):
        found.wrong.append(name)
    values.zero_()
    seconds = []
    for _ in range(load.repetitions):
        _wait_for(device)
        began = time.perf_counter()
        dist.all_reduce(values, group=group)
        _wait_for(device)
        seconds.append(time.perf_counter() - began)
    if group is not None:
        dist.destroy_process_group(group)
    return 2 * (len(members) - 1) / len(members) * 4 * load.elements / min(seconds)


def _pattern(elements: int, device: torch.device) -> Tensor:
    """Whole numbers of 0 to 250, whose sums over thousands of ranks are exact in fp32."""
    return (torch.arange(elements, device=device) % 251).float()


def _try_matmul(device: torch.device, found: Measured) -> None:
    exact, found.flops = matmul(device, MATMUL_SIDE, MATMULS)
    if not exact:
        found.wrong.append("matmul")


def matmul(device: torch.device, side: int, repetitions: int) -> tuple[bool, float]:
    """Whether a bf16 product of square matrices is exact, and FLOPs per second.

    The matrices are u 1' and s v' of signs, and the signs s add up to 64: every element of the product is 64 or -64, which bf16
    holds exactly, and no multiplication is by zero.
    """
    signs = 1 - 2 * (torch.arange(side, device=device) % 3 == 0).to(torch.bfloat16)
    sums = torch.ones(side, device=device, dtype=torch.bfloat16)
    sums[: (side - 64) // 2] = -1
    left, right = signs[:, None].expand(-1, side).contiguous(), sums[:, None] * signs[None, :]
    product = left @ right
    is_exact = torch.equal(product, 64 * signs[:, None] * signs[None, :])
    seconds = []
    for _ in range(3):
        _wait_for(device)
        began = time.perf_counter()
        for _ in range(repetitions):
            torch.mm(left, right, out=product)
        _wait_for(device)
        seconds.append(time.perf_counter() - began)
    return is_exact, 2 * side**3 * repetitions / statistics.median(seconds)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
