"""The ranks of a run together: joining them, agreeing on values, and raising a problem of one on all.

Values of the host travel as CPU tensors over gloo, also where the model's tensors travel over NCCL: agreeing on them never
waits for a GPU.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from training.ranks.rendezvous import store_of_this_start
from training.recipe import ConfigError
from training.world import World, interface_to


def init_distributed(
    world: World, *, patience: timedelta | None = None, say: Callable[[str], None] | None = None
) -> torch.device:
    """Join the process group and return this rank's device: a GPU when there are any, else the CPU.

    Args:
        world: this rank and all others.
        patience: how long to wait for other ranks, here and in every collective; else DEEPSPEED_TIMEOUT minutes, or 30.
        say: gets a line on one of the ranks that wait, when others are long in coming.

    Raises:
        ConfigError: on all ranks, when one of them has no GPU of its own, or two have the same.
    """
    world.export(os.environ)
    if world.size > world.local_size and (interface := interface_to(world.master_addr)):
        # gloo would take that of the host's name, which many machines give to the loopback.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    problem, gpu = None, None
    if has_gpu := torch.cuda.is_available():
        index = gpu_index(world.local_rank, torch.cuda.device_count())
        if index is None:
            problem = (
                f"rank {world.rank} is number {world.local_rank} on its node, which shows it {torch.cuda.device_count()} "
                "GPUs; start as many ranks per node as it has GPUs"
            )
        else:
            torch.cuda.set_device(index)
            # DeepSpeed goes by it.
            os.environ["LOCAL_RANK"] = str(index)
            gpu = f"{torch.cuda.get_device_properties(index).uuid} of {socket.gethostname()}"
    timeout = patience or timedelta(minutes=float(os.environ.get("DEEPSPEED_TIMEOUT", "30")))
    store = store_of_this_start(world, timeout, say)
    backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
    dist.init_process_group(backend, timeout=timeout, store=store, rank=world.rank, world_size=world.size)
    problems, gpus = zip(*gather((problem, gpu), world), strict=True)
    if text := next(filter(None, [*problems, shared_gpu(gpus)]), None):
        raise ConfigError([text])
    return device_of(world)


def shared_gpu(gpus: Sequence[str | None]) -> str | None:
    """What is wrong where two ranks have the same GPU, given the name of each rank's; NCCL would fail later."""
    owners: dict[str, int] = {}
    for rank, gpu in enumerate(gpus):
        if gpu is not None and owners.setdefault(gpu, rank) != rank:
            return (
                f"ranks {owners[gpu]} and {rank} were given the same GPU, {gpu}; start as many ranks per node as it has GPUs, "
                "and let the launcher show each of them all of these or one of its own"
            )
    return None


def gpu_index(local_rank: int, num_gpus: int) -> int | None:
    """Which of the GPUs that a rank sees is its own: its own number's, or the only one; None when there is none."""
    if local_rank < num_gpus:
        return local_rank
    return 0 if num_gpus == 1 else None


def device_of(world: World) -> torch.device:
    """This rank's device."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", gpu_index(world.local_rank, torch.cuda.device_count()) or 0)


def leave_distributed() -> None:
    """Leave the process group, if this rank is in one: exiting inside it can abort the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def rank_0_first(world: World, *, heartbeat_seconds: float = 10.0) -> Iterator[None]:
    """The other ranks enter the block when rank 0 has left it (a collective), however long that takes.

    Rank 0 says every few seconds that it is still busy: a mere barrier would end all ranks at the process group's timeout.
    """
    if world.rank != 0:
        while _from_rank_0_flag(False):
            pass
        yield
        return
    done = threading.Event()

    def beat() -> None:
        while not done.wait(heartbeat_seconds):
            _from_rank_0_flag(True)

    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()
        _from_rank_0_flag(False)


def raise_on_all_ranks(problem: Exception | None, kind: type[Exception], world: World) -> None:
    """Raise the first problem that any rank has on all ranks, as this kind (a collective); nothing where none has one.

    A rank that alone could not read a file, of a disk of its node say, would else end without a word, and the others wait.
    """
    messages = gather(None if problem is None else str(problem), world)
    for rank, message in enumerate(messages):
        if message is not None:
            raise kind(message if rank == 0 else f"rank {rank}: {message}") from problem


def from_rank_0(compute: Callable[[], Any], world: World) -> Any:
    """What `compute` returns on rank 0, on all ranks (a collective)."""
    values = [compute() if world.rank == 0 else None]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def gather(value: Any, world: World) -> list[Any]:
    """The value of every rank, in rank order, on all ranks (a collective)."""
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def gather_to_rank_0(value: Any, world: World) -> list[Any] | None:
    """The value of every rank, in rank order, on rank 0; None on the others (a collective)."""
    values: list[Any] | None = [None] * world.size if world.rank == 0 else None
    dist.gather_object(value, values)
    return values


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Sum each value over all ranks (a collective), in fp64: whole numbers are exact up to 2^53."""
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return [float(value) for value in total.tolist()]


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank (a collective)."""
    return sum_over_ranks([float(flag)])[0] > 0


def _from_rank_0_flag(flag: bool) -> bool:
    """Rank 0's flag, on all ranks (a collective)."""
    value = torch.tensor(int(flag))
    dist.broadcast(value, src=0)
    return bool(value.item())
