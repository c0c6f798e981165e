from __future__ import annotations

import stat
from pathlib import Path

import pytest

SINFO = """\
debug*|2|4|1-00:00:00|gpu:2
other|2|4|1:00:00|gpu:2
cpu|16|128|infinite|(null)
"""


class FakeSlurm:
    """sinfo, squeue and sbatch that say what they are told to, and remember what they were given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.says("sinfo", f"cat <<'END'\n{SINFO}END")
        self.queued("")
        # Numbers from 100 on; every script is kept.
        self.says("sbatch", f'n=$((100 + $(ls {folder} | grep -c "^job-"))); cat > {folder}/job-$n; echo $n')

    def says(self, command: str, body: str) -> None:
        path = self.folder / command
        path.write_text(f"#!/bin/bash\nPATH=/usr/bin:/bin\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def queued(self, lines: str) -> None:
        """What squeue prints: JOB|STATE|END|NODES|REASON."""
        self.says("squeue", f"cat <<'END'\n{lines}\nEND")

    @property
    def submitted(self) -> list[str]:
        return [path.read_text() for path in sorted(self.folder.glob("job-*"))]


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Nothing of Slurm but these is on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/nowhere")
    monkeypatch.delenv("SBATCH_PARTITION", raising=False)
    return FakeSlurm(folder)


@pytest.fixture
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Slurm."""
    monkeypatch.setenv("PATH", "/nowhere")
