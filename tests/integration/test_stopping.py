"""A run that is stopped leaves everything, and started again it is the uninterrupted run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.order import Permutation, source_seed
from tests.ranks import ROOT, base_environment, free_port

pytestmark = pytest.mark.dist

MAIN = str(ROOT / "training" / "main.py")
STEPS = 40


def command(recipe: Path, out: Path, *launcher: str) -> list[str]:
    settings = [
        "--run.dir",
        str(out),
        "--train.steps",
        str(STEPS),
        "--train.precision",
        "bf16",
        "--adapter.kind",
        "monteclora",
    ]
    json_file = str(ROOT / "ds_configs" / "zero3_cpu.json")
    return [*launcher, MAIN, "--ds_config", json_file, "--recipe", str(recipe), *settings]


def deepspeed() -> list[str]:
    binary = str(Path(sys.executable).parent / "deepspeed")
    return [binary, "--quiet", "--num_accelerators", "2", "--master_port", str(free_port())]


def start(arguments: list[str], **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        env=base_environment() | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str], seconds: float = 120) -> str:
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return output


def metrics(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_steps(out: Path, process: subprocess.Popen[str], steps: int) -> None:
    deadline = time.monotonic() + 120
    while len(metrics(out)) < steps:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.05)


def curve(out: Path) -> list[tuple[Any, ...]]:
    return [
        (line["step"], line["loss"], line["grad_norm"], line["penalty"], line["data_hash"]) for line in metrics(out)
    ]


@pytest.fixture(scope="module")
def uninterrupted(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    out = tmp_path_factory.mktemp("straight") / "run"
    process = start(command(tiny_recipe, out, *deepspeed()))
    output = end(process, 240)
    assert process.returncode == 0, output
    assert [line[0] for line in curve(out)] == list(range(1, STEPS + 1))
    return curve(out)


def test_ctrl_c_sigkill_and_preempt_file(
    tiny_recipe: Path, tmp_path: Path, uninterrupted: list[tuple[Any, ...]]
) -> None:
    out = tmp_path / "run"

    # Ctrl-C: a terminal sends SIGINT to the launcher and to every rank.
    process = start(command(tiny_recipe, out, *deepspeed()))
    wait_for_steps(out, process, 5)
    os.killpg(process.pid, signal.SIGINT)
    output = end(process)
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "preempted", output
    assert record["stopped_by"] in ("SIGINT", "SIGTERM")
    assert f"stopped after step {record['step']}, everything saved" in output
    stopped_at = record["step"]
    assert sorted(int(path.name) for path in (out / "checkpoints").glob("[0-9]*"))[-1] == stopped_at

    # Killed without a word, past a checkpoint.
    process = start(command(tiny_recipe, out, *deepspeed()))
    wait_for_steps(out, process, min(STEPS - 5, max(stopped_at + 3, 18)))
    os.killpg(process.pid, signal.SIGKILL)
    output = end(process)
    assert f"resuming after step {stopped_at} of {STEPS}" in output

    # A PREEMPT file from before a restart: it is heeded before anything is loaded, and is gone.
    (out / "PREEMPT").touch()
    process = start(command(tiny_recipe, out, *deepspeed()), SLURM_RESTART_COUNT="1")
    output = end(process)
    assert process.returncode == 85, output
    assert "stopped by PREEMPT file during start-up, nothing was lost; start it again to continue" in output
    assert not (out / "PREEMPT").exists()
    starts = len(json.loads((out / "run.json").read_text())["starts"])

    # From before a start of its own it is stale. In training everything is saved at the next boundary.
    (out / "PREEMPT").touch()
    process = start(command(tiny_recipe, out, *deepspeed()))
    reached = len(metrics(out))
    wait_for_steps(out, process, reached + 1)
    (out / "PREEMPT").touch()
    output = end(process)
    assert process.returncode == 85, output
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["stopped_by"], len(record["starts"])) == ("preempted", "PREEMPT file", starts + 1)
    (note,) = record["starts"][-1]["notes"]
    assert re.fullmatch(r"PREEMPT from \S+ \S+, before this start: removed; touch it again to stop", note)
    assert note in output
    assert not (out / "PREEMPT").exists()

    process = start(command(tiny_recipe, out, *deepspeed()))
    output = end(process)
    assert process.returncode == 0, output
    assert len(json.loads((out / "run.json").read_text())["starts"]) == starts + 2
    assert curve(out) == uninterrupted, "bit for bit"


def test_sigterm_on_one_rank_stops_all(tiny_recipe: Path, tmp_path: Path) -> None:
    """The flag of one rank is everybody's decision; a damaged checkpoint is passed over."""
    out = tmp_path / "run"
    torchrun = [
        str(Path(sys.executable).parent / "torchrun"),
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
    ]
    process = start(command(tiny_recipe, out, *torchrun))
    wait_for_steps(out, process, 10)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGUSR1)
    output = end(process)
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "preempted", output

    newest = out / "checkpoints" / str(record["step"])
    shard = newest / "rank-00001-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    process = start(command(tiny_recipe, out, sys.executable))
    output = end(process)
    assert process.returncode == 0, output
    assert f"damaged checkpoint ignored: {shard}: content differs from what was written" in output
    assert "resuming after step 8 of" in output


def test_gradients_that_are_not_finite(tiny_recipe: Path, tmp_path: Path) -> None:
    """Skipped on all ranks, counted, and after some in a row the run ends with a checkpoint and the reason."""
    out = tmp_path / "run"
    arguments = command(tiny_recipe, out, *deepspeed())
    arguments += [
        "--adapter.kind",
        "none",
        "--optim.lr",
        "1e30",
        "--optim.warmup_steps",
        "3",
        "--train.max_skipped_steps",
        "4",
    ]
    process = start(arguments)
    output = end(process)
    assert process.returncode == 1, output
    lines = metrics(out)
    assert [line["skipped_steps"] for line in lines[-4:]] == [1, 2, 3, 4]
    assert lines[-1]["grad_norm"] is None
    message = f"gradients were not finite for 4 steps in a row, up to step {lines[-1]['step']}"
    assert message in output
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "failed"
    assert message in record["error"]
    assert "Traceback" not in output
    assert (out / "checkpoints" / str(lines[-1]["step"])).exists()


def test_a_stop_in_the_last_evaluation_only_delays_it(tiny_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = command(tiny_recipe, out, sys.executable)
    # The last --train.steps counts; many rows to score, one at a time, so that there is an evaluation to stop in.
    arguments += ["--train.steps", "4", "--eval.at_start", "false", "--eval.batch_tokens", "1",
                  "--eval.tasks.old.max_examples", "200", "--optim.warmup_steps", "1"]  # fmt: skip
    process = start(arguments)
    wait_for_steps(out, process, 4)
    os.kill(process.pid, signal.SIGTERM)
    output = end(process)
    assert process.returncode == 85, output
    assert not (out / "evals" / "4.json").exists(), "it was over before the stop; score more rows"
    output = end(start(arguments))
    assert json.loads((out / "run.json").read_text())["status"] == "done", output
    assert set(json.loads((out / "evals" / "4.json").read_text())["tasks"]) == {"new", "old"}
    assert [line["step"] for line in metrics(out)] == [1, 2, 3, 4]


def test_damaged_data_of_another_rank_is_named(tiny_recipe: Path, tmp_path: Path) -> None:
    lines = (tiny_recipe.parent / "train.jsonl").read_text().splitlines()
    # The first document of lane 5, which is one of rank 1's lanes 4 to 7.
    number = Permutation(len(lines), (source_seed(5, "text"), 0))[5]
    lines[number] = lines[number][: len(lines[number]) // 2]
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text("\n".join(lines) + "\n")
    out = tmp_path / "run"
    process = start([*command(tiny_recipe, out, *deepspeed()), "--data.sources.text.path", str(damaged)])
    output = end(process)
    assert process.returncode == 1, output
    assert output.count(f"damaged.jsonl, line {number + 1} (byte ") == 1, output
    assert "Traceback" not in output
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "failed"
    assert f"line {number + 1} " in record["error"]
