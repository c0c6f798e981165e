from __future__ import annotations

import os
import stat
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import slurm
from launch.slurm import Partition, Queued, SlurmError

Fake = Callable[[str, str], None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts a shell script in the place of a command; of Slurm there is nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/nowhere")

    def make(name: str, body: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/bash\nPATH=/usr/bin:/bin\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return make


class TestTimes:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("90", 5400), ("30:00", 1800), ("1:00:00", 3600), ("24:00:00", 86400), ("2-12", 216_000), ("7-00:00:00", 604_800),
            ("1-01:30", 91_800), ("0", 0), (" 5 ", 300), ("infinite", None), ("UNLIMITED", None), ("n/a", None),
        ],
    )  # fmt: skip
    def test_written_in_every_way(self, text: str, seconds: float | None) -> None:
        assert slurm.parse_time(text) == seconds

    @pytest.mark.parametrize("text", ["", "24h", "1:2:3:4", "1-", "-1", "1.5", "1-2-3", "٣", "1:2:", "now"])
    def test_no_time(self, text: str) -> None:
        with pytest.raises(
            ValueError, match=r"is no time of Slurm's; write minutes, hours:minutes:seconds or days-hours"
        ):
            slurm.parse_time(text)

    @given(st.integers(0, 10**8))
    def test_what_is_written_is_read(self, seconds: int) -> None:
        assert slurm.parse_time(slurm.write_time(seconds)) == seconds

    @given(st.text("0123456789:-infiteud ", max_size=12))
    def test_anything_is_a_time_or_refused(self, text: str) -> None:
        try:
            seconds = slurm.parse_time(text)
        except ValueError:
            return
        assert seconds is None or seconds >= 0

    def test_as_slurm_writes_them(self) -> None:
        assert [slurm.write_time(each) for each in (59, 3600, 604_800)] == ["0:00:59", "1:00:00", "7-00:00:00"]


class TestGpus:
    @pytest.mark.parametrize(
        ("resources", "number"),
        [
            ("(null)", 0), ("", 0), ("gpu:2", 2), ("gpu:h100:8(S:0-1)", 8), ("gpu:4,mps:400", 4), ("mps:400", 0), ("gpu", 1),
            ("gpu:tesla", 1), ("gpu:a100:2(S:0,1),gpu:v100:4(S:1)", 6), ("gpu:1g.5gb:7", 7), ("nvme:1,gpu:no_consume:2", 2),
            ("gpus:8", 0), ("craynetwork:4,gpu:h100:4", 4),
        ],
    )  # fmt: skip
    def test_as_sinfo_prints_them(self, resources: str, number: int) -> None:
        assert slurm.count_gpus(resources) == number

    @given(
        st.lists(st.tuples(st.sampled_from(["h100", "a100", ""]), st.integers(0, 16), st.sampled_from(["", "(S:0-1)", "(S:0,1)"]))),
        st.lists(st.sampled_from(["mps:400", "shard:16", "nvme:1(S:0)", "craynetwork"])),
    )  # fmt: skip
    def test_are_added_up_among_other_things(self, gpus: list[tuple[str, int, str]], others: list[str]) -> None:
        written = [f"gpu:{kind}:{number}{where}" if kind else f"gpu:{number}{where}" for kind, number, where in gpus]
        assert slurm.count_gpus(",".join([*others, *written])) == sum(number for _, number, _ in gpus)


class TestPartitions:
    def test_as_sinfo_prints_them(self, fake: Fake, tmp_path: Path) -> None:
        fake(
            "sinfo",
            f"""echo "$@" > {tmp_path}/asked; cat <<'END'
gpu*|12|64|7-00:00:00|gpu:h100:8(S:0-1)
gpu*|4|128+|7-00:00:00|gpu:h100:4(S:0-1),mps:400
cpu|0|0|infinite|(null)
END""",
        )
        assert slurm.partitions() == [
            Partition(name="gpu", is_default=True, nodes=16, gpus_per_node=8, cpus_per_node=128, time_limit_seconds=604_800),
            Partition(name="cpu", is_default=False, nodes=0, gpus_per_node=0, cpus_per_node=0, time_limit_seconds=None),
        ]  # fmt: skip
        assert (tmp_path / "asked").read_text().split() == ["--noheader", "--all", "--exact", "--format=%P|%D|%c|%l|%G"]

    @given(st.text(st.sampled_from("gpu*|0123:-()\n infinite,é"), max_size=80))
    def test_anything_else_is_left_out(self, text: str) -> None:
        assert all(each.name and each.nodes >= 0 and each.gpus_per_node >= 0 for each in slurm.read_partitions(text))

    def test_a_limit_that_is_none(self) -> None:
        assert slurm.read_partitions("a|1|4|soon|(null)")[0].time_limit_seconds is None


class TestQueue:
    def test_as_squeue_prints_it(self, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
        monkeypatch.setenv("SQUEUE_PARTITION", "other")
        fake(
            "squeue",
            f"""echo "$@" > {tmp_path}/asked; env | grep -E 'SLURM_TIME_FORMAT|SQUEUE_' >> {tmp_path}/asked; cat <<'END'
12|RUNNING|2026-01-02T03:04:05|n[1-2]|None
13_3|PENDING|N/A||QOSMaxJobsPerUserLimit
no job
END""",
        )
        assert slurm.queue() == {
            "12": Queued(job="12", state="RUNNING", reason="", ends=datetime(2026, 1, 2, 3, 4, 5), nodes="n[1-2]"),
            "13_3": Queued(job="13_3", state="PENDING", reason="QOSMaxJobsPerUserLimit", ends=None, nodes=""),
        }
        asked = (tmp_path / "asked").read_text().split()
        assert asked == ["--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%e|%N|%r"]

    def test_where_it_fails(self, fake: Fake) -> None:
        fake("squeue", "echo 'squeue: error: Socket timed out' >&2; exit 1")
        with pytest.raises(SlurmError, match=r"^squeue failed: Socket timed out$"):
            slurm.queue()

    def test_where_nothing_is_queued(self, fake: Fake) -> None:
        fake("squeue", "")
        assert slurm.queue() == {}

    def test_where_there_is_none(self, fake: Fake) -> None:
        assert slurm.queue() is None

    @given(st.text(st.sampled_from("12_|PENDING-T:\n é"), max_size=60))
    def test_anything_else_is_left_out(self, text: str) -> None:
        assert all(job == queued.job and job for job, queued in slurm.read_queue(text).items())


class TestSubmit:
    @pytest.mark.parametrize("answer", ["123", "123;cluster", "Dear user, your balance is 7\n123"])
    def test_returns_the_job(self, fake: Fake, tmp_path: Path, answer: str) -> None:
        fake("sbatch", f"cat > {tmp_path}/got; pwd > {tmp_path}/cwd; echo '{answer}'")
        assert slurm.submit("#!/bin/bash\ntrue\n", cwd=tmp_path) == "123"
        assert (tmp_path / "got").read_text() == "#!/bin/bash\ntrue\n"
        assert (tmp_path / "cwd").read_text().strip() == str(tmp_path)

    def test_says_what_sbatch_says(self, fake: Fake, tmp_path: Path) -> None:
        fake(
            "sbatch",
            "echo 'sbatch: error: invalid account' >&2; echo 'sbatch: error: Batch job submission failed' >&2; exit 1",
        )
        with pytest.raises(SlurmError, match=r"^sbatch failed: invalid account; Batch job submission failed$"):
            slurm.submit("#!/bin/bash\n", cwd=tmp_path)

    def test_a_failure_without_words(self, fake: Fake, tmp_path: Path) -> None:
        fake("sbatch", "exit 3")
        with pytest.raises(SlurmError, match=r"^sbatch failed: exit code 3$"):
            slurm.submit("#!/bin/bash\n", cwd=tmp_path)

    @pytest.mark.parametrize("answer", ["", "Submitted"])
    def test_no_number(self, fake: Fake, tmp_path: Path, answer: str) -> None:
        fake("sbatch", f"echo {answer}")
        with pytest.raises(SlurmError, match=r"sbatch has not said the job's number, but '.*'; see squeue"):
            slurm.submit("#!/bin/bash\n", cwd=tmp_path)

    def test_no_slurm(self, fake: Fake, tmp_path: Path) -> None:
        with pytest.raises(
            SlurmError, match=r"sbatch is not on PATH: log in to a machine .* deepspeed, torchrun or mpirun"
        ):
            slurm.submit("#!/bin/bash\n", cwd=tmp_path)
        with pytest.raises(SlurmError, match=r"^sinfo is not on PATH$"):
            slurm.partitions()

    def test_no_answer(self, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake("sinfo", "exec sleep 60")
        monkeypatch.setattr(slurm, "TIMEOUT_SECONDS", 0.1)
        with pytest.raises(SlurmError, match=r"sinfo has not answered within 0.1 s"):
            slurm.partitions()

    def test_not_a_program(self, fake: Fake, tmp_path: Path) -> None:
        fake("sinfo", "true")
        (tmp_path / "bin" / "sinfo").write_bytes(b"\x7fELF")
        with pytest.raises(SlurmError, match=r"sinfo can't be started: .*"):
            slurm.partitions()

    def test_the_script_wins_over_variables(self, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # Of sbatch's three sources the environment is stronger than the script.
        for name in ("PARTITION", "TIMELIMIT", "NO_REQUEUE", "ACCOUNT"):
            monkeypatch.setenv(f"SBATCH_{name}", "x")
        fake("sbatch", f"env | grep ^SBATCH_ > {tmp_path}/env; echo 1")
        slurm.submit("#!/bin/bash\n#SBATCH --partition=a\n#SBATCH --time=5\n#SBATCH --requeue\n", cwd=tmp_path)
        assert (tmp_path / "env").read_text() == "SBATCH_ACCOUNT=x\n"

    def test_nothing_of_the_job_that_it_is_called_in(
        self, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURM_NTASKS_PER_NODE", "SLURM_CONF", "SBATCH_EXPORT"):  # fmt: skip
            monkeypatch.setenv(name, "7")
        fake("sbatch", f"env | grep -E '^(SLURM|SBATCH)_' | sort > {tmp_path}/env; echo 1")
        slurm.submit("#!/bin/bash\n", cwd=tmp_path)
        assert (tmp_path / "env").read_text() == "SBATCH_EXPORT=7\nSLURM_CONF=7\n"


def test_require(fake: Fake) -> None:
    with pytest.raises(SlurmError):
        slurm.require()
    fake("sbatch", "true")
    slurm.require()
