from __future__ import annotations

from pathlib import Path

import pytest

SINFO = "debug*|2|8|1-00:00:00|gpu:2\n"


class FakeSlurm:
    """sbatch, squeue, sinfo and scontrol that say what they are told to, and keep what they were given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.says("sinfo", f"echo '{SINFO}'")
        self.says("squeue", "")
        self.says("sbatch", f"cat > {folder}/script; echo 100")
        self.says("scontrol", f'echo "$@" >> {folder}/scontrol-calls')

    def says(self, command: str, body: str) -> None:
        path = self.folder / command
        path.write_text(f"#!/bin/bash\nPATH=/usr/bin:/bin\n{body}\n")
        path.chmod(0o755)

    @property
    def script(self) -> str:
        """What was submitted."""
        return (self.folder / "script").read_text()

    @property
    def scontrol_calls(self) -> list[str]:
        return (self.folder / "scontrol-calls").read_text().splitlines()


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Nothing of Slurm but these is on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/nowhere")
    monkeypatch.delenv("SBATCH_PARTITION", raising=False)
    return FakeSlurm(tmp_path / "bin")


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Slurm."""
    monkeypatch.setenv("PATH", "/nowhere")
