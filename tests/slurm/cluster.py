"""A real Slurm of two nodes on this machine: slurmctld, two slurmd, munge, without systemd.

Every cluster has a folder, ports, job ids (from which jobs take ports) and a configuration of its own, so that several can run at
once; munged is shared.
`python -m tests.slurm.cluster FOLDER` starts one to try things by hand, prints what to export, and stops it at Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.ranks import free_port

PROGRAMS = ("slurmctld", "slurmd", "munged", "mungekey", "srun", "sbatch")
NODES = ("n1", "n2")
CPUS, GPUS = 4, 2
"""Of a node, for the scheduler; they need not exist."""

CONFIGURATION = """\
ClusterName=local
FirstJobId={first_job}
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
SlurmctldPort={port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
ReturnToService=2
AuthInfo=cred_expire=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
SlurmdTimeout=6
SlurmctldTimeout=10
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
GresTypes=gpu
{nodes}
PartitionName=debug Nodes={names} Default=YES MaxTime=INFINITE PriorityTier=5 PreemptMode=OFF State=UP
PartitionName=other Nodes={names} Default=NO MaxTime=60 PriorityTier=5 PreemptMode=OFF State=UP
PartitionName=low Nodes={names} Default=NO MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=40 State=UP
PartitionName=high Nodes={names} Default=NO MaxTime=60 PriorityTier=10 PreemptMode=OFF State=UP
"""


def missing() -> str | None:
    """Why no cluster can be started here; None where it can."""
    if absent := [name for name in PROGRAMS if _which(name) is None]:
        return f"{', '.join(absent)} not installed (apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "several slurmd on one machine need root"


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Cluster:
    """A running Slurm; `with Cluster(folder) as cluster`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._munged: int | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a shell on the login node has: this cluster's configuration, and nothing of an outer job."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        return env | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        for name in ("state", "log", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        ports = {name: free_port() for name in ("slurmctld", *NODES)}
        for index in range(GPUS):
            (self.folder / f"gpu{index}").touch()
        nodes = [f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[node]} CPUs={CPUS} "
                 f"RealMemory=4000 Gres=gpu:{GPUS}" for node in NODES]  # fmt: skip
        text = CONFIGURATION.format(
            folder=self.folder,
            first_job=random.randrange(1, 60000),
            port=ports["slurmctld"],
            nodes="\n".join(nodes),
            names=",".join(NODES),
        )
        (self.folder / "slurm.conf").write_text(text)
        gres = [f"NodeName={node} Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n" for node in NODES]
        (self.folder / "gres.conf").write_text("".join(gres))
        self._start_munge()
        self._daemon("slurmctld", "-D", "-i")
        for node in NODES:
            self.start_node(node)
        self.wait_for_nodes(len(NODES))

    def _start_munge(self) -> None:
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0:
            return
        subprocess.run(["install", "-d", "-o", "munge", "-g", "munge", "-m", "0711", "/run/munge"], check=True)
        if not Path("/etc/munge/munge.key").exists():
            subprocess.run(["runuser", "-u", "munge", "--", _which("mungekey") or "mungekey", "-c"], check=True)
        subprocess.run(["runuser", "-u", "munge", "--", _which("munged") or "munged"], check=True)
        self._munged = int(Path("/run/munge/munged.pid").read_text())

    def _daemon(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        # In a session of its own: a Ctrl-C at the tests must not reach it before they have stopped it.
        started = subprocess.Popen(
            [_which(name) or name, *arguments], env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.daemons[arguments[-1] if name == "slurmd" else name] = started
        return started

    def start_node(self, node: str) -> None:
        """Start a node's slurmd (again)."""
        self._daemon("slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """Let a node fail: its slurmd and all that runs on it are gone."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait()
        # The steps' processes are children of slurmstepd, which a dead machine would not go on running.
        for process in self._of_node(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _of_node(self, node: str) -> list[int]:
        """Processes of jobs on a node of this cluster, and the slurmstepds above them."""
        found, log = [], f"{self.folder}/log/slurmd-{node}.log".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                variables = (entry / "environ").read_bytes().split(b"\0")
                command = (entry / "cmdline").read_bytes()
                is_task = f"SLURMD_NODENAME={node}".encode() in variables
                is_ours = f"SLURM_CONF={self.folder}/slurm.conf".encode() in variables
                if (is_task and is_ours) or (command.startswith(b"slurmstepd") and self._holds(entry, log)):
                    found.append(int(entry.name))
        return found

    @staticmethod
    def _holds(process: Path, file: bytes) -> bool:
        """Whether a process has this file open."""
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(descriptor).encode() == file:
                    return True
        return False

    def wait_for_nodes(self, number: int, seconds: float = 60) -> None:
        """Wait until so many nodes can take jobs."""
        deadline = time.monotonic() + seconds
        while (idle := self.run("sinfo", "-h", "-N", "-p", "debug", "-t", "idle,mix,alloc", "-o", "%N")) is None or len(idle.split()) != number:  # fmt: skip
            if time.monotonic() > deadline:
                raise RuntimeError(f"{number} nodes expected, there are {idle!r}\n{self.logs()}")
            time.sleep(0.1)

    def run(self, *command: str) -> str | None:
        """What a command of Slurm prints; None when it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout if done.returncode == 0 else None

    def logs(self) -> str:
        """Ends of the daemons' logs."""
        parts = []
        for path in sorted((self.folder / "log").glob("*.log")):
            parts.append(f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:]))
        return "\n".join(parts)

    def __exit__(self, *_: object) -> None:
        """Cancel what runs, stop the daemons that were started here, and only those."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.run("scancel", "--signal=KILL", "--full", "--state=RUNNING", "--user=root")
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for node in NODES:
            for process in self._of_node(node):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        if self._munged is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._munged, signal.SIGTERM)


def main(folder: Path) -> None:
    """Run a cluster until Ctrl-C or SIGTERM."""
    if problem := missing():
        sys.exit(problem)
    with Cluster(folder.resolve()) as cluster:
        print(f"export SLURM_CONF={cluster.folder}/slurm.conf", flush=True)
        # A shell's background job ignores SIGINT.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
