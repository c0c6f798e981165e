"""Preflight on two nodes of a real Slurm, one of which is not like the other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.dist, pytest.mark.slurm]
ROOT = Path(__file__).resolve().parents[2]


class Nodes:
    """Runs preflight on n1 and n2, where n2 does something first."""

    def __init__(self, cluster: Cluster, folder: Path, recipe: Path) -> None:
        self.cluster, self.folder, self.recipe = cluster, folder, recipe
        self.run_dir, self.failing, self.report = folder / "run", folder / "failing", folder / "report.json"
        self.run_dir.mkdir()

    def preflight(self, on_n2: str = "", *more: str) -> subprocess.CompletedProcess[str]:
        """What srun did; `on_n2` are lines of shell in a mount namespace of its own, before python starts there."""
        python = self.folder / "python"
        setup = self.folder / "on_n2"
        setup.write_text(f'set -e\n{on_n2}\nexec {sys.executable} "$@"\n')
        python.write_text(
            "#!/bin/bash\n"
            f'[ "$SLURMD_NODENAME" != n2 ] || exec unshare --mount bash {setup} "$@"\n'
            f'exec {sys.executable} "$@"\n'
        )
        python.chmod(0o755)
        arguments = ["-m", "launch", "preflight", str(self.recipe), "--train.placement", "replicated", "--run.dir", str(self.run_dir),
                     "--failing", str(self.failing), "--report", str(self.report), "--limit", "60", *more]  # fmt: skip
        return subprocess.run(
            ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=0", "--time=5", str(python), *arguments],
            cwd=ROOT, env=self.cluster.environment | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip


@pytest.fixture
def nodes(cluster: Cluster, tmp_path: Path, tiny_recipe: Path) -> Nodes:
    return Nodes(cluster, tmp_path, tiny_recipe)


def test_healthy_nodes(nodes: Nodes) -> None:
    done = nodes.preflight()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("preflight: healthy"), done.stdout
    assert "2 node(s) (n1, n2), 2 rank(s), " in done.stdout
    assert "GB/s between two nodes" in done.stdout
    assert nodes.failing.read_text() == ""
    assert json.loads(nodes.report.read_text())["nodes"] == ["n1", "n2"]
    assert list(nodes.run_dir.iterdir()) == []


def test_a_read_only_run_directory(nodes: Nodes) -> None:
    run = nodes.run_dir
    done = nodes.preflight(f"mount --bind {run} {run}; mount -o remount,bind,ro {run}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith("preflight: n2 fails; 2 node(s) (n1, n2)"), done.stdout
    assert f"FAIL  n2: {run} can't be written: Read-only file system" in done.stdout
    assert done.stdout.count("FAIL") == 1
    assert nodes.failing.read_text() == "n2\n"


def test_a_run_directory_on_a_disk_of_the_node(nodes: Nodes) -> None:
    done = nodes.preflight(f"mount -t tmpfs none {nodes.run_dir}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert (
        f"FAIL  n2: it doesn't see what n1 wrote in {nodes.run_dir}: it is on a disk of the node; choose a run.dir on shared storage"
        in done.stdout
    )
    assert done.stdout.count("FAIL") == 1
    assert nodes.failing.read_text() == "n2\n"
    assert list(nodes.run_dir.iterdir()) == []


def test_another_version_of_a_package(nodes: Nodes) -> None:
    metadata = nodes.folder / "packages" / "safetensors-9.9.9.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: safetensors\nVersion: 9.9.9\n")
    done = nodes.preflight(f"export PYTHONPATH={metadata.parents[1]}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL  n2: safetensors 9.9.9, n1 " in done.stdout
    assert nodes.failing.read_text() == "n2\n"


def test_a_node_that_does_not_come(nodes: Nodes) -> None:
    done = nodes.preflight("exit 0", "--limit", "15")
    assert done.returncode == 1, done.stdout + done.stderr
    # Of two nodes none is the odd one.
    assert "FAIL  n2: rank 1: no report within 15 s; nobody came but n1 itself" in done.stdout
    assert nodes.failing.read_text() == ""
