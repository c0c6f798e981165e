from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.world import (
    World,
    WorldError,
    detect_world,
    free_port,
    from_torch_variables,
    interface_to,
    limit_threads,
    own_address,
    tasks_on_node,
)

ROOT = Path(__file__).resolve().parents[3]
DEEPSPEED = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4", "MASTER_ADDR": "node0", "MASTER_PORT": "29501",
    "CROSS_RANK": "1", "CROSS_SIZE": "2",
}  # fmt: skip
TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node0",
    "MASTER_PORT": "29501", "GROUP_RANK": "1", "TORCHELASTIC_RUN_ID": "x",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
}  # fmt: skip


def world(rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1) -> World:
    return World(
        rank=rank, size=size, local_rank=local_rank, local_size=local_size,
        master_addr="node0", master_port=29501, launcher="test",
    )  # fmt: skip


class TestTorchVariables:
    @pytest.mark.parametrize("env", [DEEPSPEED, TORCHRUN], ids=["deepspeed", "torchrun"])
    def test_they_are_taken(self, env: dict[str, str]) -> None:
        assert detect_world(env) == World(
            rank=5, size=8, local_rank=1, local_size=4, master_addr="node0", master_port=29501,
            launcher="deepspeed/torchrun",
        )  # fmt: skip

    def test_they_win_inside_an_allocation_or_mpi(self) -> None:
        assert detect_world({**SRUN, "OMPI_COMM_WORLD_SIZE": "3", **DEEPSPEED}).launcher == "deepspeed/torchrun"

    def test_without_a_local_size_all_are_on_this_node(self) -> None:
        env = {key: value for key, value in DEEPSPEED.items() if key != "LOCAL_SIZE"}
        assert detect_world(env).local_size == 8

    @pytest.mark.parametrize(
        ("absent", "named"),
        [
            (["MASTER_ADDR"], "MASTER_ADDR"),
            (["LOCAL_RANK", "MASTER_PORT"], "LOCAL_RANK, MASTER_PORT"),
        ],
    )
    def test_half_of_them_is_a_contradiction(self, absent: list[str], named: str) -> None:
        env = {key: value for key, value in DEEPSPEED.items() if key not in absent}
        message = f"^RANK and WORLD_SIZE are set but {named} not; unset both, or set all of them$"
        with pytest.raises(WorldError, match=message):
            detect_world(env)

    def test_a_word_for_a_number(self) -> None:
        with pytest.raises(WorldError, match=r"^a launcher's variable is wrong: .*'http'"):
            detect_world({**DEEPSPEED, "MASTER_PORT": "http"})

    @pytest.mark.parametrize("rank", ["8", "-1"])
    def test_a_rank_outside_of_the_world(self, rank: str) -> None:
        with pytest.raises(WorldError, match=f"says rank {rank} of 8 processes; ranks count from 0"):
            detect_world({**DEEPSPEED, "RANK": rank})

    def test_what_is_exported_is_read_back(self) -> None:
        env: dict[str, str] = {}
        here = world(rank=3, size=4, local_rank=1, local_size=2)
        here.export(env)
        assert env.keys() >= {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
        back = from_torch_variables(env)
        assert (back.rank, back.size, back.local_rank, back.local_size) == (3, 4, 1, 2)
        assert (back.master_addr, back.master_port) == ("node0", 29501)


class TestSrun:
    def test_several_nodes(self) -> None:
        assert detect_world(SRUN) == World(
            rank=5, size=8, local_rank=1, local_size=4, master_addr="10.0.0.7", master_port=21234, launcher="srun"
        )

    def test_the_port_follows_the_job_so_that_jobs_on_a_node_do_not_clash(self) -> None:
        ports = {detect_world({**SRUN, "SLURM_JOB_ID": str(job)}).master_port for job in range(100_000, 100_050)}
        assert len(ports) == 50
        assert all(1024 < port < 65536 for port in ports)

    def test_an_address_and_port_given_by_the_user_win(self) -> None:
        found = detect_world({**SRUN, "MASTER_ADDR": "ib0", "MASTER_PORT": "4000"})
        assert (found.master_addr, found.master_port) == ("ib0", 4000)

    def test_one_node_needs_no_network(self) -> None:
        env = {**SRUN, "SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "8"}
        found = detect_world(env)
        assert (found.master_addr, found.local_size) == ("127.0.0.1", 8)

    def test_an_allocations_variables_stand_in_for_the_steps(self) -> None:
        env = {key: value for key, value in SRUN.items() if not key.startswith(("SLURM_STEP_N", "SLURM_STEP_T"))}
        found = detect_world({**env, "SLURM_NNODES": "2", "SLURM_TASKS_PER_NODE": "2,6"})
        assert (found.size, found.local_size, found.master_addr) == (8, 6, "10.0.0.7")

    def test_several_nodes_without_an_address(self) -> None:
        env = {key: value for key, value in SRUN.items() if key != "SLURM_LAUNCH_NODE_IPADDR"}
        with pytest.raises(WorldError, match="srun started several nodes and neither MASTER_ADDR nor SLURM_LAUNCH"):
            detect_world(env)

    @pytest.mark.parametrize(
        ("nodes", "first"),
        [("gpu[07-09,12],big1", "gpu07"), ("rack[0-1]n[3-5]", "rack0n3"), ("n1,n2", "n1"), ("gpu12", "gpu12")],
    )
    def test_rank_0_is_on_the_steps_first_node(self, nodes: str, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("socket.gethostbyname", lambda name: "10.1.1.1")
        assert detect_world({**SRUN, "SLURM_STEP_NODELIST": nodes}).master_addr == first

    def test_a_first_node_that_does_not_resolve(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(name: str) -> str:
            raise OSError

        monkeypatch.setattr("socket.gethostbyname", refuse)
        assert detect_world({**SRUN, "SLURM_STEP_NODELIST": "n[1-2]"}).master_addr == "10.0.0.7"

    def test_an_incomplete_environment(self) -> None:
        env = {key: value for key, value in SRUN.items() if key != "SLURM_LOCALID"}
        with pytest.raises(WorldError, match=r"^the launcher's variables are incomplete: 'SLURM_LOCALID'$"):
            detect_world(env)

    def test_a_batch_script_is_no_task(self) -> None:
        env = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}
        assert detect_world(env).launcher == "none"

    def test_pmi_of_srun_needs_no_mpi(self) -> None:
        assert detect_world({**SRUN, "PMI_SIZE": "8", "PMI_RANK": "5"}).launcher == "srun"

    @given(counts=st.lists(st.integers(1, 16), min_size=1, max_size=12), data=st.data())
    def test_run_lengths(self, counts: list[int], data: st.DataObject) -> None:
        runs: list[tuple[int, int]] = []
        for count in counts:
            if runs and runs[-1][0] == count and data.draw(st.booleans()):
                runs[-1] = (count, runs[-1][1] + 1)
            else:
                runs.append((count, 1))
        written = ",".join(str(count) if repeat == 1 else f"{count}(x{repeat})" for count, repeat in runs)
        assert [tasks_on_node(written, node) for node in range(len(counts))] == counts

    def test_run_lengths_by_hand(self) -> None:
        assert [tasks_on_node("2(x3),1", node) for node in range(4)] == [2, 2, 2, 1]


class TestAlone:
    def test_no_launcher_is_a_world_of_one(self) -> None:
        found = detect_world({"HOME": "/root", "RANK": "3"})
        assert (found.rank, found.size, found.local_rank, found.local_size) == (0, 1, 0, 1)
        assert (found.master_addr, found.launcher) == ("127.0.0.1", "none")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", found.master_port))

    def test_free_ports(self) -> None:
        port = free_port()
        assert 1024 <= port < 65536
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            assert free_port() != port

    def test_own_address(self) -> None:
        socket.inet_aton(own_address())


@given(size=st.integers(1, 64), share=st.integers(1, 16))
def test_the_ranks_lanes_are_contiguous_and_each_lane_has_one_owner(size: int, share: int) -> None:
    owned = [lane for rank in range(size) for lane in world(rank=rank, size=size).lanes(size * share)]
    assert owned == list(range(size * share))


@given(groups=st.integers(1, 16), group=st.integers(1, 8), share=st.integers(1, 16))
def test_the_ranks_of_a_group_have_the_same_lanes(groups: int, group: int, share: int) -> None:
    size = groups * group
    lanes = [world(rank=rank, size=size).lanes(groups * share, group) for rank in range(size)]
    assert lanes == [each for each in lanes[::group] for _ in range(group)]
    assert [lane for each in lanes[::group] for lane in each] == list(range(groups * share))


class TestThreads:
    def test_cores_are_shared_among_the_ranks_of_a_node(self) -> None:
        cores = len(os.sched_getaffinity(0))
        for local_size in (1, 2, 1000):
            env: dict[str, str] = {}
            limit_threads(world(size=1000, local_size=local_size), env)
            assert env == {"OMP_NUM_THREADS": str(max(1, cores // local_size))}

    def test_the_users_choice_stays(self) -> None:
        env = {"OMP_NUM_THREADS": "7"}
        limit_threads(world(), env)
        assert env == {"OMP_NUM_THREADS": "7"}


def detect_in_subprocess(**variables: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import os\nfrom training.world import *\n"
        "env = {k: v for k, v in os.environ.items() if k.startswith(('OMPI_COMM', 'PMI_'))}\n"
        "try:\n    w = detect_world(env)\n    print(w.launcher, w.rank, w.size, w.local_rank, w.local_size, w.master_addr)\n"
        "except WorldError as error:\n    print(error)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)


class TestMpi:
    def test_without_mpi4py(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mpi4py", None)
        with pytest.raises(WorldError, match=r"^started by mpirun, which needs mpi4py to find the other processes: "):
            detect_world({"OMPI_COMM_WORLD_SIZE": "2"})

    def test_one_process(self) -> None:
        pytest.importorskip("mpi4py")
        done = detect_in_subprocess(OMPI_COMM_WORLD_SIZE="1")
        if done.returncode != 0 and "libmpi" in done.stderr:
            pytest.skip("mpi4py finds no MPI library here")
        assert done.stdout == "mpirun 0 1 0 1 127.0.0.1\n", done.stderr

    def test_processes_that_each_believe_to_be_alone(self) -> None:
        pytest.importorskip("mpi4py")
        done = detect_in_subprocess(PMI_SIZE="2")
        if done.returncode != 0 and "libmpi" in done.stderr:
            pytest.skip("mpi4py finds no MPI library here")
        assert done.stdout == (
            "mpirun started 2 processes but mpi4py sees 1: mpi4py uses another MPI than mpirun; "
            "set MPI4PY_LIBMPI to mpirun's library, or start with deepspeed or torchrun\n"
        ), done.stderr


def test_the_interface_to_an_address() -> None:
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("no such host") is None
