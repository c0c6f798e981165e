"""Branches of a run, and runs that go back to an earlier checkpoint, are the runs that they would have been from the start."""

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

from tests.integration.test_stopping import MAIN, end, metrics, start
from tests.ranks import ROOT
from training.config import OptimConfig
from training.schedule import lr_factor

pytestmark = pytest.mark.dist

STEPS, POINT, BRANCH_STEPS = 40, 8, 60
LR = 5e-3
TRAPEZOID = ["--optim.schedule", "trapezoid"]
PARENT = ["--train.steps", str(STEPS), "--optim.cooldown_steps", "4", "--checkpoint.every_steps", "6",
          "--checkpoint.keep_at", f"{POINT} steps", *TRAPEZOID]  # fmt: skip
# At its peak for three steps more than up to the branch.
COOLDOWN = [
    "--train.steps",
    str(BRANCH_STEPS),
    "--optim.cooldown_steps",
    "50",
    "--checkpoint.every_steps",
    "6",
    *TRAPEZOID,
]


def command(recipe: Path, out: Path, settings: list[str], *more: str) -> list[str]:
    json_file = str(ROOT / "ds_configs" / "zero3_cpu.json")
    fixed = ["--run.dir", str(out), "--adapter.kind", "none", "--train.precision", "fp32"]
    return [sys.executable, MAIN, "--ds_config", json_file, "--recipe", str(recipe), *fixed, *settings, *more]


def run(arguments: list[str], code: int = 0) -> str:
    process = start(arguments)
    output = end(process)
    assert process.returncode == code, output
    return output


def kill_after(arguments: list[str], checkpoint: Path) -> str:
    """Start, and kill (SIGKILL) once this checkpoint is there."""
    process = start(arguments)
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    output = end(process)
    assert process.returncode == -signal.SIGKILL, f"it was over before it was killed: {output}"
    return output


def numbers(out: Path) -> list[tuple[Any, ...]]:
    """What a step is, by step, without its learning rate."""
    return [(line["step"], line["loss"], line["grad_norm"], line["data_hash"]) for line in metrics(out)]


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("[0-9]*"))


def digest(checkpoint: Path) -> str:
    return str(json.loads((checkpoint / "MANIFEST.json").read_text())["sha256"])


@pytest.fixture(scope="module")
def parent(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with a checkpoint that it keeps at step 8; nobody may change it."""
    out = tmp_path_factory.mktemp("parent") / "run"
    run(command(tiny_recipe, out, PARENT))
    assert steps(out / "checkpoints") == [POINT, 36, STEPS]
    return out


@pytest.fixture(scope="module")
def branch(tiny_recipe: Path, parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an undisturbed cooldown from there."""
    out = tmp_path_factory.mktemp("branch") / "run"
    point = parent / "checkpoints" / str(POINT)
    output = run(command(tiny_recipe, out, COOLDOWN, "--run.branch_from", str(point)))
    for line in (
        f"branches from {point}", f"scores of step 0 of new, old are those of {parent}",
        f"resuming after step {POINT} of {BRANCH_STEPS}",
    ):  # fmt: skip
        assert line in " ".join(output.split()), output
    return out


def test_a_branch_is_its_parent_until_their_learning_rates_part(parent: Path, branch: Path) -> None:
    theirs, ours = metrics(parent), metrics(branch)
    assert [line["step"] for line in ours] == list(range(POINT + 1, BRANCH_STEPS + 1))
    # Three steps at the same learning rate; the fourth begins with the same weights.
    assert numbers(branch)[:4] == numbers(parent)[POINT : POINT + 4], "bit for bit"
    assert numbers(branch)[4][1] != numbers(parent)[POINT + 4][1]
    # The batches stay those that the parent takes.
    assert [line["data_hash"] for line in ours[: STEPS - POINT]] == [line["data_hash"] for line in theirs[POINT:]]
    tokens = theirs[0]["tokens_seen"]
    assert [line["tokens_seen"] for line in ours] == [tokens * step for step in range(POINT + 1, BRANCH_STEPS + 1)]

    schedule = OptimConfig(schedule="trapezoid", warmup_steps=2, cooldown_steps=50)
    expected = [LR * lr_factor(step, BRANCH_STEPS, schedule) for step in range(POINT, BRANCH_STEPS)]
    assert [line["lr"] for line in ours] == pytest.approx(expected)
    assert expected[2] == LR > expected[3]
    assert expected[-1] == pytest.approx(LR / 50)

    record = json.loads((branch / "run.json").read_text())
    assert record["status"] == "done"
    point = parent / "checkpoints" / str(POINT)
    assert record["branched_from"] == {"path": str(point), "step": POINT, "sha256": digest(point)}
    before = json.loads((parent / "evals" / "0.json").read_text())
    assert json.loads((branch / "evals" / "0.json").read_text()) == before
    assert (branch / "evals" / f"{BRANCH_STEPS}.json").exists()
    assert (branch / "export" / "config.json").exists()


def test_a_killed_branch_goes_on_by_itself(tiny_recipe: Path, parent: Path, branch: Path, tmp_path: Path) -> None:
    """Also when the checkpoint that it began with is gone by then."""
    out, copied = tmp_path / "run", tmp_path / "parent"
    shutil.copytree(parent, copied)
    arguments = command(tiny_recipe, out, COOLDOWN, "--run.branch_from", str(copied / "checkpoints" / str(POINT)))
    kill_after(arguments, out / "checkpoints" / "18")
    shutil.rmtree(copied)
    newest = steps(out / "checkpoints")[-1]
    assert f"resuming after step {newest} of {BRANCH_STEPS}" in " ".join(run(arguments).split())
    assert numbers(out) == numbers(branch), "bit for bit"
    assert json.loads((out / "run.json").read_text())["branched_from"]["step"] == POINT


def test_back_to_an_earlier_checkpoint(tiny_recipe: Path, parent: Path, tmp_path: Path) -> None:
    """Killed on the way, the repeated command line goes on; in the end it is the same run, also by another path."""
    out = tmp_path / "run"
    shutil.copytree(parent, out)
    root = out / "checkpoints"
    before = {step: digest(root / str(step)) for step in (POINT, 36, STEPS)}
    link = tmp_path / "link"
    link.symlink_to(out)
    arguments = command(tiny_recipe, out, PARENT, "--resume", str(link / "checkpoints" / str(POINT)))
    output = " ".join(kill_after(arguments, root / "12").split())
    assert f"goes on from step {POINT} of {link / 'checkpoints'}, as --resume says" in output
    assert f"were moved to {root / 'set-aside-1'}: 36, {STEPS}" in output
    assert f"resuming after step {POINT} of {STEPS}" in output
    assert steps(root / "set-aside-1") == [36, STEPS]
    assert {step: digest(root / "set-aside-1" / str(step)) for step in (36, STEPS)} == {
        step: before[step] for step in (36, STEPS)
    }
    assert not (out / "evals" / f"{STEPS}.json").exists(), "a score of later weights"
    assert [line["step"] for line in metrics(out)] == list(range(1, len(metrics(out)) + 1))
    assert len(metrics(out)) < STEPS

    newest = steps(root)[-1]
    output = " ".join(run(arguments).split())
    assert "this run has gone on from there before, and continues from its newest checkpoint" in output
    assert f"resuming after step {newest} of {STEPS}" in output
    assert numbers(out) == numbers(parent), "bit for bit"
    record = json.loads((out / "run.json").read_text())
    assert [(entry["step"], entry["sha256"]) for entry in record["origins"]] == [(POINT, before[POINT])]
    assert steps(root) == [POINT, 36, STEPS]
    assert "is done already" in run(arguments)


def test_a_checkpoint_of_another_run_of_the_recipe(tiny_recipe: Path, parent: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    output = run(command(tiny_recipe, out, PARENT, "--resume", str(parent / "checkpoints" / "36")))
    assert f"resuming after step 36 of {STEPS}" in " ".join(output.split())
    assert numbers(out) == numbers(parent)[36:]
    assert (out / "evals" / "0.json").read_bytes() == (parent / "evals" / "0.json").read_bytes()


def test_a_damaged_one_is_not_begun_with(tiny_recipe: Path, parent: Path, tmp_path: Path) -> None:
    """Not even with an older one: this one was asked for."""
    copied = tmp_path / "parent"
    shutil.copytree(parent, copied)
    shard = copied / "checkpoints" / "36" / "rank-00000-of-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    before = (copied / "run.json").read_bytes()
    output = run(command(tiny_recipe, copied, PARENT, "--resume", str(shard.parent)), code=2)
    older = copied / "checkpoints" / str(POINT)
    assert f"{shard}: content differs from what was written (SHA-256); name an older one: {older}" in output
    assert "Traceback" not in output
    assert (steps(copied / "checkpoints"), (copied / "run.json").read_bytes()) == ([POINT, 36, STEPS], before)


def test_a_run_whose_checkpoints_are_away_is_not_begun_anew(tiny_recipe: Path, parent: Path, tmp_path: Path) -> None:
    copied = tmp_path / "parent"
    shutil.copytree(parent, copied)
    (copied / "checkpoints").rename(tmp_path / "scratch")
    (copied / "checkpoints").symlink_to(tmp_path / "not_mounted")
    record = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps(record | {"status": "preempted"}))
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    output = run(command(tiny_recipe, copied, PARENT), code=2)
    assert f"run.json says that step {STEPS} was saved, and {copied / 'checkpoints'} has no checkpoint" in output
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--resume", "never", "--run.dir", "PARENT"], "has checkpoints already, the newest of step 40"),
        (["--resume", "PARENT", "--optim.lr", "1"], "was saved by a different recipe; to go on from it with this one"),
        (
            ["--run.branch_from", "PARENT", "--train.steps", "40"],
            "train.steps = 40: the run ends at step 40, and begins after",
        ),
        (["--run.branch_from", "PARENT", "--data.seq_len", "32"], "data.seq_len: 64 there, 32 here"),
        (["--run.branch_from", "PARENT", "--adapter.kind", "lora"], 'adapter.kind: "none" there, "lora" here'),
    ],
)
def test_refusals(tiny_recipe: Path, parent: Path, tmp_path: Path, more: list[str], message: str) -> None:
    asked = [str(parent) if word == "PARENT" else word for word in more]
    before = sorted(str(path) for path in parent.rglob("*"))
    done = subprocess.run(
        command(tiny_recipe, tmp_path / "run", PARENT, *asked), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done
    assert message in done.stderr
    assert not (tmp_path / "run").exists()
    assert sorted(str(path) for path in parent.rglob("*")) == before
