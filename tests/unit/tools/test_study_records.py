"""Records without weights say what the runs say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from evals.claims.command import run_claims
from tests.unit.evals.claims.synthetic import Method, make_study
from tools.study_records import main

METHODS = {
    "full": Method(learned=0.6, forgotten=0.4, k=50),
    "lora_r4": Method(kind="lora", rank=4, learned=0.4, forgotten=0.1),
}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study in a repository's folder of runs, with weights and the folder's own path in its records."""
    folder = tmp_path / "repository" / "runs" / "small"
    make_study(folder / "cells", METHODS, rates=(3e-4,), seeds=(1, 2), budgets=(16, 32), documents=20)
    (folder / "cells" / "sweep.json").write_text(json.dumps({"root": str(folder / "cells")}))
    for run in (folder / "cells").glob("*-seed*"):
        (run / "export").mkdir()
        (run / "export" / "model.safetensors").write_bytes(b"weights")
        (run / "evals" / "kept").mkdir()
        (run / "evals" / "kept" / "1.jsonl").touch()
        record = json.loads((run / "run.json").read_text())
        record["config"]["run"]["dir"] = str(run)
        (run / "run.json").write_text(json.dumps(record))
    return folder


def test_the_claims_come_out_the_same(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "records.tar.xz"
    assert main([str(study), str(archive)]) == 0
    with tarfile.open(archive) as packed:
        names = packed.getnames()
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(["tar", "xf", archive, "-C", tmp_path / "elsewhere"], check=True, timeout=60)
    assert capsys.readouterr().out == f"{archive}: {len(names)} files, {archive.stat().st_size:,} bytes\n"
    documents = {}
    for root in (study, tmp_path / "elsewhere" / "small"):
        out = tmp_path / root.parent.name / "study.md"
        out.parent.mkdir(exist_ok=True)
        run_claims([root], out)
        documents[root] = [
            line for line in out.read_text().splitlines() if not line.startswith("    python -m evals claims")
        ]
    assert documents[study] == documents[tmp_path / "elsewhere" / "small"]
    # What the records are for is in them, and nothing of the place where they were written.
    assert not any("export" in name or "kept" in name for name in names)
    assert {name.rpartition("/")[2] for name in names} >= {"run.json", "metrics.jsonl", "sweep.json", "32.json"}
    for name in names:
        assert str(tmp_path) not in (tmp_path / "elsewhere" / name).read_text()


def test_the_same_records_are_the_same_bytes(study: Path, tmp_path: Path) -> None:
    assert main([str(study), str(tmp_path / "one.tar.xz")]) == 0
    moved = tmp_path / "other" / "runs" / "small"
    shutil.copytree(study, moved)
    for path in moved.rglob("*.json"):
        path.write_text(path.read_text().replace(str(study.parents[1]), str(tmp_path / "other")))
        os.utime(path, (0, 0))
    assert main([str(moved), str(tmp_path / "two.tar.xz")]) == 0
    assert (tmp_path / "one.tar.xz").read_bytes() == (tmp_path / "two.tar.xz").read_bytes()


def test_a_folder_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path / "records.tar.xz")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}: there is no run below it\n"
    assert list(tmp_path.iterdir()) == []
