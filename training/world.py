"""Who am I among the processes of this run? Read from whichever launcher started us, before torch is imported."""

from __future__ import annotations

import fcntl
import math
import os
import re
import socket
import struct
from collections.abc import Mapping, MutableMapping
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


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """The Slurm job that this process belongs to."""

    job: str
    """Its id as squeue shows it: of an array's task ARRAY_TASK, as in 12_3."""

    restart: int
    """How often it was requeued before."""

    nodes: list[str]
    """Those of the step; in a batch script those of the job."""


def slurm_job(env: Mapping[str, str]) -> SlurmJob | None:
    """The job that this process belongs to; None outside of Slurm."""
    job = env.get("SLURM_JOB_ID")
    if not job:
        return None
    array, task = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
    try:
        nodes = expand_nodes(node_list(env))
    except ValueError:
        nodes = [node_list(env)]
    restart = env.get("SLURM_RESTART_COUNT", "")
    return SlurmJob(
        job=f"{array}_{task}" if array and task else job,
        restart=int(restart) if restart.isdecimal() else 0,
        nodes=nodes,
    )


def detect_world(env: Mapping[str, str]) -> World:
    """Find this process's place: from deepspeed or torchrun, mpirun, srun, or a world of one.

    Raises:
        WorldError: when the variables contradict each other, or don't fit what Slurm was asked for.
    """
    try:
        if problem := misfit(env):
            raise WorldError(problem)
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


def read_world(env: Mapping[str, str]) -> World:
    """What the variables say, not checked."""
    match launcher_of(env):
        case "deepspeed/torchrun":
            return from_torch_variables(env)
        case "mpirun":
            return from_mpi(env)
        case "srun":
            return from_slurm(env)
    return World(
        rank=0, size=1, local_rank=0, local_size=1,
        master_addr="127.0.0.1", master_port=free_port(), launcher="none",
    )  # fmt: skip


def launcher_of(env: Mapping[str, str]) -> str:
    """Whose variables count, as World.launcher."""
    if "RANK" in env and "WORLD_SIZE" in env:
        return "deepspeed/torchrun"
    # srun speaks PMI too (--mpi=pmi2, often the cluster's default), and then says the same in its own variables.
    is_pmi_of_srun = is_task(env) and env.get("PMI_SIZE") == env.get("SLURM_STEP_NUM_TASKS")
    if "OMPI_COMM_WORLD_SIZE" in env or ("PMI_SIZE" in env and not is_pmi_of_srun):
        return "mpirun"
    return "srun" if is_task(env) else "none"


def is_task(env: Mapping[str, str]) -> bool:
    """Whether srun started this process, or the launcher that did."""
    if "SLURM_STEP_ID" not in env or "SLURM_PROCID" not in env:
        return False
    # A batch script that was submitted from within a step, and salloc's own shell, carry variables of a step that is not theirs.
    return env.get("SLURM_STEP_NUM_TASKS") != "1" or int(env.get("SLURM_NTASKS") or 1) == 1


def misfit(env: Mapping[str, str]) -> str | None:
    """Why the world that the variables describe can't be what Slurm was asked for; None where it can, and without Slurm."""
    launcher = launcher_of(env)
    if not is_task(env):
        if launcher == "none":
            return alone_in_job(env)
        return part_of_job(env) if launcher == "deepspeed/torchrun" else None
    tasks = int(env.get("SLURM_STEP_NUM_TASKS") or "1")
    if launcher == "srun" or tasks == 1:
        return None
    of_mpi = "OMPI_COMM_WORLD_SIZE" if "OMPI_COMM_WORLD_SIZE" in env else "PMI_SIZE"
    name = of_mpi if launcher == "mpirun" else "WORLD_SIZE"
    size = int(env[name])
    launchers = launchers_of(env)
    on_node = tasks_on_node(env.get("SLURM_STEP_TASKS_PER_NODE") or str(tasks), int(env.get("SLURM_NODEID") or "0"))
    if launchers and launchers < tasks and (on_node > 1 or (launchers == 1 and not is_elastic(env))):
        return (
            f"srun started deepspeed or torchrun {tasks} times, {on_node} of them on this node, and this one knows of {launchers}: "
            "each would train by itself; start one per node that knows of the others (srun --ntasks-per-node=1 torchrun "
            "--nnodes …), or python itself with one task per GPU"
        )
    if launcher == "mpirun" and size >= tasks and on_node > 1:
        return (
            f"srun started mpirun {on_node} times on this node, and each starts {size} processes; "
            "start mpirun without srun, or python itself with srun"
        )
    if size < tasks and not is_elastic(env):
        return (
            f"srun started {tasks} tasks, and {name}={size} says that there are {size} in all: they would train by "
            f"themselves; start python itself with srun, and unset {name}"
        )
    # Of more processes than tasks, each task has started several by itself, whose ranks are others.
    if launcher != "mpirun" and not launchers and size == tasks and int(env["RANK"]) != int(env["SLURM_PROCID"]):
        return (
            f"srun started {tasks} tasks, of which this is number {env['SLURM_PROCID']}, and RANK={env['RANK']} was set before, as for "
            "all of them: unset RANK and WORLD_SIZE, Slurm's own variables are enough"
        )
    return None


def launchers_of(env: Mapping[str, str]) -> int:
    """How many torchruns or deepspeeds, one per node as a rule, know of each other; 0 without them."""
    return int(env.get("GROUP_WORLD_SIZE") or env.get("CROSS_SIZE") or 0)


def is_elastic(env: Mapping[str, str]) -> bool:
    """Whether torchrun may start again: it then goes on without nodes that it has lost."""
    return int(env.get("TORCHELASTIC_MAX_RESTARTS") or "0") > 0


def part_of_job(env: Mapping[str, str]) -> str | None:
    """Why what was started in a batch script, without srun, leaves some of its job unused; None where it can be, and without a job."""
    if "SLURM_JOB_ID" not in env:
        return None
    tasks, nodes = job_size(env)
    size, launchers = int(env["WORLD_SIZE"]), launchers_of(env)
    on_node = int(env.get("LOCAL_WORLD_SIZE") or env.get("LOCAL_SIZE") or 1)
    reached = launchers or math.ceil(size / on_node)
    if launchers and reached < nodes and not is_elastic(env):
        return (
            f"Slurm job {env['SLURM_JOB_ID']} is for {nodes} nodes, and deepspeed or torchrun, which was started without srun, knows "
            f"of {reached}: start one per node that knows of the others (srun --ntasks-per-node=1 torchrun --nnodes …), or python "
            "itself with srun; for one node all the same, srun --nodes=1 --ntasks=1"
        )
    # A launcher was told how many to start on a node; that the job counts more tasks there says nothing.
    if not launchers and (size < tasks or reached < nodes):
        asked = f"{tasks} tasks" if size < tasks else f"{nodes} nodes"
        return (
            f"Slurm job {env['SLURM_JOB_ID']} is for {asked}, and RANK={env['RANK']} and WORLD_SIZE={size}, which no launcher has set, "
            "say otherwise: unset both and put srun before python; for one process all the same, srun --nodes=1 --ntasks=1"
        )
    return None


def job_size(env: Mapping[str, str]) -> tuple[int, int]:
    """Tasks and nodes of the job; 1 where it doesn't say."""
    # Not SLURM_TASKS_PER_NODE: without --ntasks it counts the CPUs of an exclusive node.
    return int(env.get("SLURM_NTASKS") or "1"), int(env.get("SLURM_NNODES") or "1")


def alone_in_job(env: Mapping[str, str]) -> str | None:
    """Why a process without a launcher is not what its job is for; None where it can be, and without a job."""
    tasks, nodes = job_size(env)
    if "SLURM_JOB_ID" not in env or max(tasks, nodes) == 1:
        return None
    asked = f"{tasks} tasks" if tasks > 1 else f"{nodes} nodes"
    return (
        f"Slurm job {env['SLURM_JOB_ID']} is for {asked}, and this process was started without srun, so it would train "
        "alone: put srun before it; for one process all the same, srun --nodes=1 --ntasks=1"
    )


def from_torch_variables(env: Mapping[str, str]) -> World:
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


def from_mpi(env: Mapping[str, str]) -> World:
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


def from_slurm(env: Mapping[str, str]) -> World:
    """srun, one task per GPU: Slurm's own variables, no MPI or PMIx involved."""
    tasks = env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or "1"
    nodes = int(env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES") or "1")
    address = env.get("MASTER_ADDR") or ("127.0.0.1" if nodes == 1 else first_node(env))
    # srun's own address, rank 0's inside a batch script; started from a login node, it is the login node's.
    address = address or env.get("SLURM_LAUNCH_NODE_IPADDR")
    if address is None:
        raise WorldError("srun started several nodes and neither MASTER_ADDR nor SLURM_LAUNCH_NODE_IPADDR is set")
    port = int(env.get("MASTER_PORT") or slurm_port(int(env.get("SLURM_JOB_ID", "0"))))
    per_node = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or tasks
    return World(
        rank=int(env["SLURM_PROCID"]), size=int(tasks), local_rank=int(env["SLURM_LOCALID"]),
        local_size=tasks_on_node(per_node, int(env.get("SLURM_NODEID", "0"))),
        master_addr=address, master_port=port, launcher="srun",
    )  # fmt: skip


def slurm_port(job_id: int) -> int:
    """Port of a job's rank 0, another one for jobs that follow each other, as an array's tasks do.

    Below 32768, from where on Linux hands out ports to connections.
    """
    return 12000 + job_id % 20000


def node_list(env: Mapping[str, str]) -> str:
    """Slurm's list of the nodes of the step, or of the job; empty where it has none."""
    step = env.get("SLURM_STEP_NODELIST") if is_task(env) else None
    return step or env.get("SLURM_JOB_NODELIST") or ""


def first_node(env: Mapping[str, str]) -> str | None:
    """Name of the node of rank 0, the first of the step's; None if it doesn't resolve."""
    nodes = expand_nodes(node_list(env))
    try:
        return nodes[0] if nodes and socket.gethostbyname(nodes[0]) else None
    except OSError:
        return None


def expand_nodes(nodes: str) -> list[str]:
    """The names in Slurm's list of nodes: 'gpu[07-09,12],big1' is gpu07, gpu08, gpu09, gpu12, big1.

    Raises:
        ValueError: it is no such list.
    """
    names: list[str] = []
    for entry in re.findall(r"(?:\[[^\]]*\]|[^,\[])+", nodes):
        expanded = [""]
        for ranges, plain in re.findall(r"\[([^\]]*)\]|([^\[]+)", entry):
            parts = numbers(ranges) if ranges else [plain]
            expanded = [name + part for name in expanded for part in parts]
        names += expanded
    return names


def numbers(ranges: str) -> list[str]:
    """The numbers in the brackets of a list of nodes, as written: '07-09,12' is 07, 08, 09, 12."""
    found: list[str] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return found


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
    """Share the CPU cores among the ranks of this node, unless the user chose OMP_NUM_THREADS.

    Slurm says how many are a task's, which it may have bound to them already.
    """
    of_task = env.get("SLURM_CPUS_PER_TASK", "") if world.launcher == "srun" else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(int(of_task), cores) if of_task.isdecimal() else cores // world.local_size
    env.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
