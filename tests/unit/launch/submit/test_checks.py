from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.jobs import Event, note
from launch.slurm import Queued, read_partitions
from launch.submit.checks import (
    file_system,
    mounts,
    partition_problems,
    place_warnings,
    queued_jobs,
    run_problems,
    slurm_problems,
)
from launch.submit.script import Resources
from tests.unit.launch.submit.conftest import SINFO, FakeSlurm
from training.files import write_json

KNOWN = read_partitions(SINFO)


def asked(**values: object) -> Resources:
    usual = {
        "nodes": 2,
        "gpus_per_node": 2,
        "tasks_per_node": 2,
        "cpus_per_task": 2,
        "time": "1:00:00",
        "name": "",
        "output": "",
    }
    return Resources(**(usual | values))  # type: ignore[arg-type]


class TestPartitions:
    @pytest.mark.parametrize(
        ("values", "problems"),
        [
            ({}, []),
            ({"partition": "other"}, []),
            ({"partition": "ohter"}, ["--partition ohter: there is none of this name; this cluster has other, debug, cpu"]),
            ({"nodes": 3}, ["--nodes 3: partition debug has 2"]),
            ({"gpus_per_node": 8}, ["--gpus 8: a node of partition debug has 2 at most"]),
            ({"partition": "cpu"}, ["--gpus 2: a node of partition cpu has none; --gpus 0 trains on CPUs"]),
            (
                {"cpus_per_task": 4},
                ["--cpus-per-task 4: 2 processes make 8 CPUs per node, and a node of partition debug has 4 at most"],
            ),
            ({"time": "2-00"}, ["--time 2-00: partition debug allows 1-00:00:00"]),
            ({"time": "infinite", "partition": "other"}, ["--time infinite: partition other allows 1:00:00"]),
            ({"time": "infinite", "partition": "cpu", "gpus_per_node": 0}, []),
            # Slurm takes whichever can.
            ({"partition": "other,debug", "time": "2:00:00"}, []),
            ({"partition": "other,cpu", "time": "2:00:00", "nodes": 3},
             ["--gpus 2: a node of partition cpu has none; --gpus 0 trains on CPUs"]),
            ({"partition": "other,x,y"}, ["--partition x: there is none of this name; this cluster has cpu, debug, other",
                                          "--partition y: there is none of this name; this cluster has cpu, debug, other"]),
        ],
    )  # fmt: skip
    def test_each(self, monkeypatch: pytest.MonkeyPatch, values: dict[str, object], problems: list[str]) -> None:
        monkeypatch.delenv("SBATCH_PARTITION", raising=False)
        found = partition_problems(asked(**values), KNOWN)
        if values.get("partition") == "other,x,y":  # The order of what is not alike is no matter.
            found = [problem.split("has")[0] for problem in found]
            problems = [problem.split("has")[0] for problem in problems]
        assert found == problems

    def test_several_problems(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SBATCH_PARTITION", raising=False)
        assert len(partition_problems(asked(nodes=9, gpus_per_node=9, tasks_per_node=9, time="9-9"), KNOWN)) == 4

    def test_no_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SBATCH_PARTITION", raising=False)
        assert partition_problems(asked(), KNOWN[1:]) == [
            "--partition is missing, and this cluster has no default; it has other, cpu"
        ]
        assert partition_problems(asked(), []) == [
            "--partition is missing, and this cluster has no default; it has none"
        ]

    def test_the_environments_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SBATCH_PARTITION", "cpu")
        assert partition_problems(asked(), KNOWN) == [
            "--gpus 2: a node of partition cpu has none; --gpus 0 trains on CPUs"
        ]


class TestSlurm:
    def test_without_it(self, no_slurm: None) -> None:
        (problem,) = slurm_problems(asked())
        assert problem.startswith("Slurm's sbatch is not on PATH: log in to a machine")

    def test_that_does_not_answer(self, fake_slurm: FakeSlurm) -> None:
        fake_slurm.says("sinfo", "echo 'sinfo: error: Unable to contact slurm controller' >&2; exit 1")
        assert slurm_problems(asked()) == ["sinfo failed: Unable to contact slurm controller"]

    def test_the_time_of_scoring(self, fake_slurm: FakeSlurm) -> None:
        assert slurm_problems(asked(nodes=3), asked(nodes=3, time="2-00")) == [
            "--nodes 3: partition debug has 2", "--eval-time 2-00: partition debug allows 1-00:00:00",
        ]  # fmt: skip


class TestRun:
    def test_a_new_one(self, tmp_path: Path) -> None:
        assert run_problems(tmp_path / "new", {}, "") == []

    def test_one_that_is_done(self, tmp_path: Path) -> None:
        write_json(tmp_path / "run.json", {"status": "done"})
        assert run_problems(tmp_path, {}, "") == [
            f'run.dir = "{tmp_path}": is done already; remove it, or choose another run.dir, to train again'
        ]

    def test_one_that_is_queued(self, tmp_path: Path) -> None:
        for job in ("12", "13", "14_2", "12"):
            note(tmp_path, Event(job=job, event="submitted"))
        queued = {job: Queued(job=job, state=state, reason="", ends=None, nodes="")
                  for job, state in (("12", "PENDING"), ("14_2", "RUNNING"), ("99", "RUNNING"))}  # fmt: skip
        assert run_problems(tmp_path, queued, "") == [
            f'run.dir = "{tmp_path}": this run has jobs in the queue already: 12 (PENDING), 14_2 (RUNNING); cancel them '
            "(scancel 12 14_2), or have the new one follow (--after afterany:12:14_2)"
        ]
        assert "already: 14_2 (RUNNING);" in run_problems(tmp_path, queued, "12")[0]
        assert run_problems(tmp_path, queued, "afterany:12:14_2") == []

    def test_one_that_was_changed_to_an_array(self, tmp_path: Path) -> None:
        """With --array in its script, which is there to be changed and submitted again."""
        note(tmp_path, Event(job="12", event="submitted"))
        queued = {job: Queued(job=job, state="RUNNING", reason="", ends=None, nodes="") for job in ("12_0", "12_1", "112_0")}  # fmt: skip
        assert queued_jobs(tmp_path, queued) == ["12_0", "12_1"]
        assert "already: 12_0 (RUNNING), 12_1 (RUNNING);" in run_problems(tmp_path, queued, "")[0]
        assert "already: 12_1 (RUNNING);" in run_problems(tmp_path, queued, "afterany:12_0")[0]
        assert run_problems(tmp_path, queued, "afterany:12") == []


MOUNTS = """\
overlay / overlay rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
server:/a /home nfs4 rw 0 0
tmpfs /home/fast\\040disk tmpfs rw 0 0
/dev/sda1 /tmp ext4 rw 0 0
damaged
"""


class TestPlace:
    @pytest.mark.parametrize(
        ("path", "kind"),
        [
            ("/x", "overlay"), ("/home/x", "nfs4"), ("/homes", "overlay"), ("/home/fast disk/x", "tmpfs"), ("/tmp/x/y", "ext4"),
            ("/", "overlay"), ("/home", "nfs4"),
        ],
    )  # fmt: skip
    def test_file_systems(self, path: str, kind: str) -> None:
        assert file_system(Path(path), MOUNTS) == kind

    @pytest.mark.parametrize(
        ("path", "where"),
        [
            ("/home/user/run", None), ("/x", None),
            ("/tmp/run", "in /tmp, which every machine has for itself"),
            ("/dev/shm/run", "in memory of this machine (tmpfs)"),
            ("/home/fast disk/run", "in memory of this machine (tmpfs)"),
        ],
    )  # fmt: skip
    def test_warnings(self, path: str, where: str | None) -> None:
        expected = [] if where is None else [
            f'run.dir = "{path}": is {where}; all nodes and this machine must see the same folder, so choose one on shared '
            "storage (the preflight of the job will tell)"
        ]  # fmt: skip
        assert place_warnings(Path(path), MOUNTS) == expected

    @given(st.text(st.sampled_from("/ab \\040\n"), max_size=60))
    def test_any_text(self, text: str) -> None:
        assert isinstance(file_system(Path("/a/b"), text), str)

    def test_of_this_machine(self) -> None:
        assert file_system(Path("/proc/self"), mounts()) == "proc"
