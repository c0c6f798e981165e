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
    SlurmJob,
    World,
    WorldError,
    detect_world,
    expand_nodes,
    free_port,
    from_torch_variables,
    interface_to,
    limit_threads,
    misfit,
    own_address,
    slurm_job,
    slurm_port,
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


BATCH = {
    "SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "2",
    "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip
"""What a batch script of 2 nodes with 2 tasks each has. This and what follows is recorded from a Slurm of two nodes."""
STEP = BATCH | {
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
}  # fmt: skip
"""The last task of srun in it."""
PER_NODE = STEP | {
    "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}  # fmt: skip
"""The second of one task per node, of which a launcher can be started, and mpirun starts its daemons so."""
ONE_TASK = {
    "SLURM_STEP_ID": "5", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "n1",
    "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
}  # fmt: skip
"""Of a step of one task: of srun --ntasks=1, of salloc's shell, and of what is submitted from such a step."""
TORCHRUN_ALONE = {
    "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "23001", "TORCHELASTIC_MAX_RESTARTS": "0", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip
"""torchrun --nproc_per_node 2."""
DEEPSPEED_ALONE = {
    "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "CROSS_RANK": "0", "CROSS_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip
"""deepspeed --num_accelerators 2."""


def world(rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1, launcher: str = "test") -> World:
    return World(
        rank=rank, size=size, local_rank=local_rank, local_size=local_size,
        master_addr="node0", master_port=29501, launcher=launcher,
    )  # fmt: skip


class TestTorchVariables:
    @pytest.mark.parametrize("env", [DEEPSPEED, TORCHRUN], ids=["deepspeed", "torchrun"])
    def test_they_are_taken(self, env: dict[str, str]) -> None:
        assert detect_world(env) == World(
            rank=5, size=8, local_rank=1, local_size=4, master_addr="node0", master_port=29501,
            launcher="deepspeed/torchrun",
        )  # fmt: skip

    def test_they_win_inside_an_allocation_or_mpi(self) -> None:
        assert detect_world({**BATCH, "OMPI_COMM_WORLD_SIZE": "3", **DEEPSPEED}).launcher == "deepspeed/torchrun"

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
            rank=5, size=8, local_rank=1, local_size=4, master_addr="10.0.0.7", master_port=13234, launcher="srun"
        )

    def test_the_port_follows_the_job_so_that_jobs_on_a_node_do_not_clash(self) -> None:
        ports = {detect_world({**SRUN, "SLURM_JOB_ID": str(job)}).master_port for job in range(100_000, 100_050)}
        assert len(ports) == 50

    @given(job=st.integers(1, 2**32))
    def test_the_port_is_none_that_linux_hands_out(self, job: int) -> None:
        assert 12000 <= slurm_port(job) < 32000
        assert slurm_port(job) != slurm_port(job + 1)

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

    @pytest.mark.parametrize(
        ("nodes", "names"),
        [
            ("", []),
            ("gpu12", ["gpu12"]),
            ("n1,n2", ["n1", "n2"]),
            ("gpu[07-09,12],big1", ["gpu07", "gpu08", "gpu09", "gpu12", "big1"]),
            ("n[099-101]", ["n099", "n100", "n101"]),
            ("rack[0-1]n[3-5]", ["rack0n3", "rack0n4", "rack0n5", "rack1n3", "rack1n4", "rack1n5"]),
        ],
    )
    def test_a_list_of_nodes(self, nodes: str, names: list[str]) -> None:
        assert expand_nodes(nodes) == names

    def test_a_list_of_nodes_with_a_word_for_a_number(self) -> None:
        with pytest.raises(ValueError, match="'a'"):
            expand_nodes("n[a-b]")

    def test_a_first_node_that_does_not_resolve(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(name: str) -> str:
            raise OSError

        monkeypatch.setattr("socket.gethostbyname", refuse)
        assert detect_world({**SRUN, "SLURM_STEP_NODELIST": "n[1-2]"}).master_addr == "10.0.0.7"

    def test_an_incomplete_environment(self) -> None:
        env = {key: value for key, value in SRUN.items() if key != "SLURM_LOCALID"}
        with pytest.raises(WorldError, match=r"^the launcher's variables are incomplete: 'SLURM_LOCALID'$"):
            detect_world(env)

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


def refusal(env: dict[str, str]) -> str:
    """Why the world is refused."""
    with pytest.raises(WorldError) as caught:
        detect_world(env)
    return str(caught.value)


class TestWhatSlurmWasAskedFor:
    ALONE = (
        "Slurm job 1 is for {}, and this process was started without srun, so it would train alone: "
        "put srun before it; for one process all the same, srun --nodes=1 --ntasks=1"
    )

    def test_a_step_fits(self) -> None:
        found = detect_world(STEP)
        assert (found.rank, found.size, found.local_rank, found.local_size) == (3, 4, 1, 2)
        assert (found.master_addr, found.master_port, found.launcher) == ("127.0.0.1", 12001, "srun")

    @pytest.mark.parametrize("mpi", [{"PMI_RANK": "3", "PMI_SIZE": "4", "PMI_JOBID": "1.1"}, {"PMIX_RANK": "3"}])
    def test_whatever_mpi_srun_speaks(self, mpi: dict[str, str]) -> None:
        assert detect_world(STEP | mpi) == detect_world(STEP)

    def test_a_batch_script_without_srun(self) -> None:
        assert refusal(BATCH) == self.ALONE.format("4 tasks")

    def test_nodes_without_a_number_of_tasks(self) -> None:
        env = {key: value for key, value in BATCH.items() if "NTASKS" not in key} | {"SLURM_TASKS_PER_NODE": "1(x2)"}
        assert refusal(env) == self.ALONE.format("2 nodes")

    @pytest.mark.parametrize("shell", ["salloc", "submitted from a step"])
    def test_variables_of_another_step(self, shell: str) -> None:
        assert refusal(BATCH | ONE_TASK) == self.ALONE.format("4 tasks"), shell

    def test_one_process_is_what_one_task_is_for(self) -> None:
        assert detect_world(BATCH | ONE_TASK | {"SLURM_NTASKS": "1", "SLURM_NNODES": "1"}).size == 1
        # sbatch --nodes=1 --exclusive on a node of 4 CPUs, and --ntasks=1
        assert detect_world({"SLURM_JOB_ID": "1", "SLURM_NNODES": "1", "SLURM_TASKS_PER_NODE": "4"}).size == 1
        assert detect_world({"SLURM_JOB_ID": "1", "SLURM_NNODES": "1", "SLURM_NTASKS": "1"}).launcher == "none"

    @pytest.mark.parametrize("launcher", [TORCHRUN_ALONE, DEEPSPEED_ALONE], ids=["torchrun", "deepspeed"])
    def test_a_launcher_in_a_batch_script_or_as_one_task(self, launcher: dict[str, str]) -> None:
        one_node = BATCH | {"SLURM_NNODES": "1"}
        # What the job's tasks are counted as is no matter on one node: launch demo takes two ranks of any job.
        batches = [one_node | {"SLURM_NTASKS": tasks} for tasks in ("1", "2", "4")]
        for env in (*batches, one_node | ONE_TASK, BATCH | ONE_TASK | {"SLURM_NTASKS": "1"}):
            assert (detect_world(env | launcher).rank, detect_world(env | launcher).size) == (1, 2)

    @pytest.mark.parametrize("launcher", [TORCHRUN_ALONE, DEEPSPEED_ALONE], ids=["torchrun", "deepspeed"])
    @pytest.mark.parametrize("tasks", ["", "2", "4"])
    def test_a_launcher_without_srun_on_one_of_several_nodes(self, launcher: dict[str, str], tasks: str) -> None:
        for env in (BATCH, BATCH | ONE_TASK | {"SLURM_NTASKS": "4"}):
            assert refusal(env | {"SLURM_NTASKS": tasks or env["SLURM_NTASKS"]} | launcher) == (
                "Slurm job 1 is for 2 nodes, and deepspeed or torchrun, which was started without srun, knows of 1: start one per "
                "node that knows of the others (srun --ntasks-per-node=1 torchrun --nnodes …), or python itself with srun; "
                "for one node all the same, srun --nodes=1 --ntasks=1"
            )

    def test_launchers_on_several_nodes_without_srun(self) -> None:
        # As deepspeed starts them by ssh.
        for launcher in (DEEPSPEED, TORCHRUN | {"GROUP_WORLD_SIZE": "2"}):
            assert detect_world(BATCH | launcher).size == 8
        assert detect_world(BATCH | TORCHRUN_ALONE | {"TORCHELASTIC_MAX_RESTARTS": "3"}).size == 2

    def test_variables_left_over_in_a_batch_script(self) -> None:
        left = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "4000"}
        one_node = BATCH | {"SLURM_NNODES": "1", "SLURM_NTASKS": "2"}
        no_tasks = BATCH | {"SLURM_NTASKS": "1"}
        for env, asked in ((BATCH, "4 tasks"), (one_node, "2 tasks"), (no_tasks, "2 nodes")):
            assert refusal(env | left) == (
                f"Slurm job 1 is for {asked}, and RANK=0 and WORLD_SIZE=1, which no launcher has set, say otherwise: "
                "unset both and put srun before python; for one process all the same, srun --nodes=1 --ntasks=1"
            )
        assert detect_world(one_node | {"SLURM_NTASKS": "1"} | left).size == 1
        both = left | {"WORLD_SIZE": "2"}
        assert detect_world(one_node | both | {"LOCAL_SIZE": "2"}).size == 2
        assert "is for 2 nodes" in refusal(no_tasks | both | {"LOCAL_SIZE": "2"})
        # One on each node.
        for each in (both, both | {"LOCAL_SIZE": "1"}):
            assert detect_world(no_tasks | {"SLURM_NTASKS": "2"} | each).size == 2
        assert detect_world(left).size == 1

    @pytest.mark.parametrize("launcher", [TORCHRUN_ALONE, DEEPSPEED_ALONE], ids=["torchrun", "deepspeed"])
    @pytest.mark.parametrize(("step", "tasks", "here"), [(STEP, 4, 2), (PER_NODE, 2, 1)], ids=["per GPU", "per node"])
    def test_launchers_that_do_not_know_of_each_other(
        self, launcher: dict[str, str], step: dict[str, str], tasks: int, here: int
    ) -> None:
        assert refusal(step | launcher) == (
            f"srun started deepspeed or torchrun {tasks} times, {here} of them on this node, and this one knows of 1: each "
            "would train by itself; start one per node that knows of the others (srun --ntasks-per-node=1 torchrun --nnodes …), "
            "or python itself with one task per GPU"
        )

    def test_launchers_that_know_of_each_other(self) -> None:
        torchrun = TORCHRUN_ALONE | {"RANK": "3", "WORLD_SIZE": "4", "GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2"}
        deepspeed = DEEPSPEED_ALONE | {"RANK": "3", "WORLD_SIZE": "4", "CROSS_RANK": "1", "CROSS_SIZE": "2"}
        for launcher in (torchrun, deepspeed):
            assert detect_world(PER_NODE | launcher).size == 4
        # Two on each node, of which only one knows of one on the other.
        assert "torchrun 4 times, 2 of them on this node, and this one knows of 2: " in refusal(STEP | torchrun)

    def test_torchrun_may_lose_nodes_where_it_restarts(self) -> None:
        left = TORCHRUN_ALONE | {"TORCHELASTIC_MAX_RESTARTS": "3"}
        assert detect_world(PER_NODE | left).size == 2
        assert detect_world(PER_NODE | left | {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}).size == 1

    def test_variables_set_by_hand(self) -> None:
        own = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "4000"}
        assert detect_world(STEP | own).rank == 3
        assert refusal(STEP | own | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) == (
            "srun started 4 tasks, and WORLD_SIZE=1 says that there are 1 in all: they would train by themselves; "
            "start python itself with srun, and unset WORLD_SIZE"
        )
        # Two in each of the tasks.
        assert detect_world(PER_NODE | own | {"RANK": "3"}).rank == 3

    def test_ranks_set_in_the_batch_script_are_those_of_no_task(self) -> None:
        # export WORLD_SIZE=$SLURM_NTASKS RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
        own = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "n1", "MASTER_PORT": "4000"}
        assert refusal(STEP | own) == (
            "srun started 4 tasks, of which this is number 3, and RANK=0 was set before, as for all of them: "
            "unset RANK and WORLD_SIZE, Slurm's own variables are enough"
        )
        assert detect_world(STEP | own | {"SLURM_PROCID": "0"}).rank == 0

    @pytest.mark.parametrize("name", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
    def test_processes_of_mpi_that_do_not_find_each_other(self, name: str) -> None:
        # Without RANK nobody goes by WORLD_SIZE.
        assert refusal(STEP | {name: "1", "WORLD_SIZE": "4"}) == (
            f"srun started 4 tasks, and {name}=1 says that there are 1 in all: they would train by themselves; "
            f"start python itself with srun, and unset {name}"
        )

    def test_mpirun_in_every_task(self) -> None:
        assert refusal(STEP | {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}) == (
            "srun started mpirun 2 times on this node, and each starts 4 processes; "
            "start mpirun without srun, or python itself with srun"
        )

    def test_mpirun_of_a_batch_script_starts_its_daemons_with_srun(self) -> None:
        assert misfit(PER_NODE | {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}) is None


class TestSlurmJob:
    def test_none_outside_of_slurm(self) -> None:
        assert slurm_job({"HOME": "/root"}) is None

    def test_a_job(self) -> None:
        assert slurm_job(BATCH) == SlurmJob(job="1", restart=0, nodes=["n1", "n2"])

    def test_a_step_on_part_of_the_nodes_after_a_requeue(self) -> None:
        env = BATCH | ONE_TASK | {"SLURM_NTASKS": "1", "SLURM_RESTART_COUNT": "2"}
        assert slurm_job(env) == SlurmJob(job="1", restart=2, nodes=["n1"])

    def test_a_task_of_an_array(self) -> None:
        found = slurm_job(STEP | {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"})
        assert found == SlurmJob(job="7_0", restart=0, nodes=["n1", "n2"])

    def test_a_list_of_nodes_that_is_not_understood_stays_as_it_is(self) -> None:
        found = slurm_job({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-x]"})
        assert found == SlurmJob(job="1", restart=0, nodes=["n[1-x]"])


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

    def test_srun_has_shared_them_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Bound to its own 8 cores of 64, a task must not divide them by the 8 tasks of the node once more.
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
        for launcher, cpus, threads in (("srun", "8", "8"), ("srun", "64", "8"), ("srun", "", "1"), ("none", "8", "1")):
            env = {"SLURM_CPUS_PER_TASK": cpus}
            limit_threads(world(local_size=8, size=8, launcher=launcher), env)
            assert env["OMP_NUM_THREADS"] == threads, (launcher, cpus)

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
