"""A sweep on one machine: a cell that fails, several at once, stopped by Ctrl-C and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import ROOT, base_environment

pytestmark = pytest.mark.dist

HEAD = """
recipe = "{recipe}"
ds_config = "{root}/ds_configs/zero3_cpu.json"
root = "study"

[settings]
"train.max_skipped_steps" = 1
"eval.at_start" = false
"data.workers" = 0
"""


def write_sweep(folder: Path, recipe: Path, text: str) -> Path:
    path = folder / "sweep.toml"
    path.write_text(HEAD.format(recipe=recipe, root=ROOT) + text)
    return path


def start(file: Path, *arguments: str) -> subprocess.Popen[str]:
    """`python -m launch sweep FILE --local …`."""
    return subprocess.Popen(
        [sys.executable, "-m", "launch", "sweep", str(file), "--local", *arguments],
        cwd=ROOT, env=base_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(queue: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = queue.communicate(timeout=400)
    return queue.returncode, output


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def test_a_cell_that_fails_and_the_others_at_the_same_time(tiny_recipe: Path, tmp_path: Path) -> None:
    text = """
"train.steps" = 12
"train.placement" = "replicated"
[methods.full]
"optim.lr" = [1e-3, 1e30]
[methods.lora]
"adapter.kind" = "lora"
"optim.lr" = [1e-3]
"""
    file, study = write_sweep(tmp_path, tiny_recipe, text), tmp_path / "study"
    code, output = finish(start(file, "--ranks", "1", "--at-once", "2"))
    assert code == 1, output
    lines = output.splitlines()
    assert [line for line in lines if line.startswith("full-lr1e30: started")] == ["full-lr1e30: started"], (
        "it would again"
    )
    assert any(line.startswith("full-lr1e30: failed with exit code 1: NonFiniteGradients: ") for line in lines)
    assert lines[-1] == "sweep: 3 cells: 2 done, 1 failed"
    assert record(study / "lora-lr1e-3")["config"]["adapter"]["kind"] == "lora"
    assert [cell["name"] for cell in json.loads((study / "sweep.json").read_text())["cells"]] == [
        "full-lr1e-3", "full-lr1e30", "lora-lr1e-3",
    ]  # fmt: skip

    code, output = finish(start(file, "--ranks", "1"))
    assert code == 1, output
    assert not any(line.endswith("started") for line in output.splitlines())
    assert "full-lr1e30" in output
    shutil.rmtree(study / "full-lr1e30")
    code, output = finish(start(file, "--ranks", "1", "--retries", "0"))
    assert code == 1, output
    assert [line for line in output.splitlines() if line.endswith("started")] == ["full-lr1e30: started"]

    # What is done is not what is asked for any more.
    file.write_text(file.read_text().replace('"train.steps" = 12', '"train.steps" = 13'))
    code, output = finish(start(file, "--ranks", "1"))
    assert code == 2, output
    assert f"lora-lr1e-3 (sweep.toml): is done in {study}/lora-lr1e-3 with other settings" in output
    assert "train.steps: 12 there, 13 here" in output


def test_ctrl_c_and_started_again(tiny_recipe: Path, tmp_path: Path) -> None:
    file = write_sweep(tmp_path, tiny_recipe, '"train.steps" = 60\n[grid]\n"run.seed" = [1, 2]\n')
    first, second = tmp_path / "study" / "seed1", tmp_path / "study" / "seed2"
    queue = start(file)
    until = time.monotonic() + 200
    while not (first / "metrics.jsonl").exists() or len((first / "metrics.jsonl").read_bytes().splitlines()) < 3:
        assert queue.poll() is None, queue.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(queue.pid, signal.SIGINT)
    code, output = finish(queue)
    assert code == 130, output
    assert output.endswith("Stopped; what was done is kept. Run the same command again to continue.\n")
    stopped = record(first)
    assert (stopped["status"], stopped["world"]["size"]) == ("preempted", 2)
    assert 3 <= stopped["step"] < 60
    assert not second.exists()

    code, output = finish(start(file))
    assert code == 0, output
    assert output.splitlines()[-1] == "sweep: 2 cells: 2 done"
    assert [line["step"] for line in map(json.loads, (first / "metrics.jsonl").read_text().splitlines())] == list(
        range(1, 61)
    )
    assert len(record(first)["starts"]) == 2
    assert f"resuming after step {stopped['step']} of 60" in (tmp_path / "study/logs/seed1.log").read_text()
