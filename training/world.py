"""Who am I among the processes of this run? Read from whichever launcher started us, before torch is imported."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
from collections.abc import MutableMapping
from dataclasses import dataclass

SIOCGIFADDR = 0x8915
"""Linux' request for an interface's address."""


class WorldError(ValueError):
    """The launcher's variables contradict each other; starting would train something else than was asked for."""


@dataclass(frozen=True, kw_only=True)
class World:
    """One process among all processes of a run."""

    rank: int
    """0 .. size-1 over all nodes."""

    size: int
    """Number of processes of the run."""

    local_rank: int
    """0 .. local_size-1 on this node: the index of the GPU to use."""

    local_size: int
    """Number of processes on this node."""

    master_addr: str
    """Address at which rank 0 can be reached."""

    master_port: int
    """Port at which rank 0 listens."""

    launcher: str
    """deepspeed/torchrun, mpirun, srun or none."""

    def lanes(self, num_lanes: int, sequence_parallel: int = 1) -> range:
        """The contiguous range of data lanes whose rows this rank trains on, alone or with the others of its group.

        A group is `sequence_parallel` consecutive ranks; num_lanes is divisible by the number of groups.
        """
        share = num_lanes * sequence_parallel // self.size
        first = self.rank // sequence_parallel * share
        return range(first, first + share)

    def export(self, environment: MutableMapping[str, str]) -> None:
        """Set the variables that torch.distributed and DeepSpeed read (all five, or DeepSpeed looks for MPI)."""
        environment.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.size),
            LOCAL_RANK=str(self.local_rank),
            LOCAL_SIZE=str(self.local_size),
            MASTER_ADDR=self.master_addr,
            MASTER_PORT=str(self.master_port),
        )


def detect_world(env: MutableMapping[str, str]) -> World:
    """Find this process's place: from deepspeed or torchrun, mpirun, srun, or a world of one.

    Raises:
        WorldError: when the variables contradict each other, as when srun starts MPI processes that don't find
            one another and each believes to be alone.
    """
    try:
        world = read_world(env)
    except (KeyError, IndexError) as error:
        raise WorldError(f"the launcher's variables are incomplete: {error}") from error
    except WorldError:
        raise
    except ValueError as error:
        raise WorldError(f"a launcher's variable is wrong: {error}") from error
    if not 0 <= world.rank < world.size:
        raise WorldError(f"{world.launcher} says rank {world.rank} of {world.size} processes; ranks count from 0")
    return world


def read_world(env: MutableMapping[str, str]) -> World:
    """What the variables say, not checked."""
    if "RANK" in env and "WORLD_SIZE" in env:
        return from_torch_variables(env)
    is_srun = "SLURM_STEP_ID" in env and "SLURM_PROCID" in env
    # srun speaks PMI too (--mpi=pmi2, often the cluster's default), and then says the same in its own variables.
    is_pmi_of_srun = is_srun and env.get("PMI_SIZE") == env.get("SLURM_STEP_NUM_TASKS")
    if "OMPI_COMM_WORLD_SIZE" in env or ("PMI_SIZE" in env and not is_pmi_of_srun):
        return from_mpi(env)
    if is_srun:
        return from_slurm(env)
    return World(
        rank=0, size=1, local_rank=0, local_size=1,
        master_addr="127.0.0.1", master_port=free_port(), launcher="none",
    )  # fmt: skip


def from_torch_variables(env: MutableMapping[str, str]) -> World:
    """The variables of deepspeed's launcher and of torchrun."""
    missing = [name for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in env]
    if missing:
        raise WorldError(f"RANK and WORLD_SIZE are set but {', '.join(missing)} not; unset both, or set all of them")
    size = int(env["WORLD_SIZE"])
    # deepspeed's launcher and this module say LOCAL_SIZE, torchrun says LOCAL_WORLD_SIZE.
    local_size = int(env.get("LOCAL_WORLD_SIZE") or env.get("LOCAL_SIZE") or size)
    return World(
        rank=int(env["RANK"]), size=size, local_rank=int(env["LOCAL_RANK"]), local_size=local_size,
        master_addr=env["MASTER_ADDR"], master_port=int(env["MASTER_PORT"]), launcher="deepspeed/torchrun",
    )  # fmt: skip


def from_mpi(env: MutableMapping[str, str]) -> World:
    """mpirun: MPI is used to agree on an address, nothing else."""
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise WorldError(f"started by mpirun, which needs mpi4py to find the other processes: {error}") from error
    comm = MPI.COMM_WORLD
    declared = int(env.get("OMPI_COMM_WORLD_SIZE") or env["PMI_SIZE"])
    if comm.size != declared:
        raise WorldError(
            f"mpirun started {declared} processes but mpi4py sees {comm.size}: mpi4py uses another MPI than mpirun; "
            "set MPI4PY_LIBMPI to mpirun's library, or start with deepspeed or torchrun"
        )
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    hosts = comm.allgather(socket.gethostname())
    address = "127.0.0.1" if len(set(hosts)) == 1 else comm.bcast(own_address() if comm.rank == 0 else None, root=0)
    return World(
        rank=comm.rank, size=comm.size, local_rank=node.rank, local_size=node.size,
        master_addr=address, master_port=comm.bcast(free_port() if comm.rank == 0 else None, root=0), launcher="mpirun",
    )  # fmt: skip


def from_slurm(env: MutableMapping[str, str]) -> World:
    """srun, one task per GPU: Slurm's own variables, no MPI or PMIx involved."""
    tasks = env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or "1"
    nodes = int(env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES") or "1")
    address = env.get("MASTER_ADDR") or ("127.0.0.1" if nodes == 1 else first_node(env))
    # srun's own address, rank 0's inside a batch script; started from a login node, it is the login node's.
    address = address or env.get("SLURM_LAUNCH_NODE_IPADDR")
    if address is None:
        raise WorldError("srun started several nodes and neither MASTER_ADDR nor SLURM_LAUNCH_NODE_IPADDR is set")
    port = int(env.get("MASTER_PORT") or 20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000)
    per_node = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or tasks
    return World(
        rank=int(env["SLURM_PROCID"]), size=int(tasks), local_rank=int(env["SLURM_LOCALID"]),
        local_size=tasks_on_node(per_node, int(env.get("SLURM_NODEID", "0"))),
        master_addr=address, master_port=port, launcher="srun",
    )  # fmt: skip


def first_node(env: MutableMapping[str, str]) -> str | None:
    """Name of the node of rank 0, the first of Slurm's list such as 'gpu[07-09,12],big1'; None if it doesn't resolve."""
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or ""
    name = re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes).split(",")[0]
    try:
        return name if name and socket.gethostbyname(name) else None
    except OSError:
        return None


def tasks_on_node(tasks_per_node: str, node: int) -> int:
    """Tasks on the given node, from Slurm's run-length form: '2(x3),1' is 2, 2, 2, 1."""
    counts: list[int] = []
    for run in tasks_per_node.split(","):
        count, _, repeat = run.partition("(x")
        counts += [int(count)] * int(repeat.rstrip(")") or 1)
    return counts[node]


def own_address() -> str:
    """Address of this host as other hosts see it (no packet is sent)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return socket.gethostbyname(socket.gethostname())
        return str(probe.getsockname()[0])


def interface_to(address: str) -> str | None:
    """Name of the network interface over which this host reaches an address (no packet is sent); None if it isn't known."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                try:
                    found = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
                except OSError:  # an interface without an address
                    continue
                if socket.inet_ntoa(found[20:24]) == own:
                    return name
        except OSError:
            return None
    return None


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def limit_threads(world: World, env: MutableMapping[str, str]) -> None:
    """Share the CPU cores among the ranks of this node, unless the user chose OMP_NUM_THREADS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    env.setdefault("OMP_NUM_THREADS", str(max(1, cores // world.local_size)))
