"""What the loop does about steps that are not as they should be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import ROOT, base_environment, free_port, run_ranks

pytestmark = pytest.mark.dist


def arguments(recipe: Path, folder: Path, *more: str) -> list[str]:
    return [
        "--recipe", str(recipe), "--run.dir", str(folder / "run"), "--train.placement", "replicated",
        "--checkpoint.every_steps", "5", *more,
    ]  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_loss_spike_takes_the_run_back_and_on_with_other_data(tiny_recipe: Path, tmp_path: Path) -> None:
    guard = ("--train.spike_guard", "6", "--train.spike_window", "4")
    common = arguments(tiny_recipe, tmp_path, *guard)
    # The 4th call comes too early; the 13th is step 12, two steps after the checkpoint of step 10.
    found, _ = run_ranks("tests.distributed.loop_scenarios:spiking", 2, arguments=common, calls=[3, 12])
    run = tmp_path / "run"
    record, anomalies = json.loads((run / "run.json").read_text()), lines(run / "anomalies.jsonl")
    assert found["code"] == 0, found["said"]
    assert (record["status"], record["step"], record["rewinds"]) == ("done", 20, 1)
    assert len(found["taken"]) == 20 + 3, "three steps were undone"
    metrics = lines(run / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, 21))
    assert record["tokens_seen"] == 20 * 8 * 64
    (spike,) = anomalies
    assert (spike["kind"], spike["step"], spike["loss"]) == ("spike", 13, 99.0)
    assert len(spike["documents"]) >= 8, "all rows of both ranks have documents"
    assert {document["source"] for document in spike["documents"]} == {"text"}
    # The weights are those of step 10 again, the rows are not.
    undone, again = found["taken"][10:13], found["taken"][13:16]
    assert undone != again
    assert metrics[10]["loss"] == pytest.approx(again[0])


def test_a_run_that_keeps_spiking_ends(tiny_recipe: Path, tmp_path: Path) -> None:
    common = arguments(
        tiny_recipe, tmp_path, "--train.spike_guard", "6", "--train.spike_window", "2", "--train.max_skipped_steps", "2"
    )
    (found,) = run_ranks("tests.distributed.loop_scenarios:spiking", 1, arguments=common, calls=list(range(7, 40)))
    assert found["code"] == 1
    assert "the loss spiked 3 times since the checkpoint of step 5, last at step 6 with 99.000" in found["said"]
    assert "a lower optim.lr" in found["said"]


def test_losses_that_are_not_numbers_end_the_run_with_a_checkpoint(tiny_recipe: Path, tmp_path: Path) -> None:
    common = arguments(tiny_recipe, tmp_path, "--train.max_skipped_steps", "3", "--checkpoint.keep", "1")
    # Four micro-batches a step: steps 7, 8 and 9 are skipped.
    (found,) = run_ranks("tests.distributed.loop_scenarios:spoiled", 1, arguments=common, first=24, last=10**9)
    run = tmp_path / "run"
    assert found["code"] == 1
    assert "loss or gradients were not finite for 3 steps in a row, up to step 9" in found["said"]
    assert str(run / "anomalies.jsonl") in found["said"]
    assert [(line["kind"], line["step"]) for line in lines(run / "anomalies.jsonl")] == [
        ("skipped", 7), ("skipped", 8), ("skipped", 9)
    ]  # fmt: skip
    assert all(line["loss"] is None and line["documents"] for line in lines(run / "anomalies.jsonl"))
    # The checkpoint of step 5 is still there: what led here may be in the weights of step 9.
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"5", "9"}
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["step"], record["skipped_steps"]) == ("failed", 9, 3)
    (again,) = run_ranks("tests.distributed.loop_scenarios:spoiled", 1, arguments=common, first=0, last=4)
    assert again["code"] == 0, again["said"]
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["step"], record["skipped_steps"]) == ("done", 20, 4)


def test_ranks_that_disagree_all_end(tiny_recipe: Path, tmp_path: Path) -> None:
    common = arguments(tiny_recipe, tmp_path)
    found = run_ranks("tests.distributed.loop_scenarios:disagreeing", 2, arguments=common)
    assert [each["code"] for each in found] == [2, 2]
    assert "optim.lr: 0.25 on rank 1, 0.005 on rank 0" in found[0]["said"]
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("refused_on_rank_1", "rank 1: --optim.lrr (command line): unknown setting; did you mean optim.lr?"),
        ("missing_on_rank_1", "rank 1: heldout.jsonl: no such file"),
    ],
)
def test_what_one_rank_cannot_do_ends_all(scenario: str, message: str, tiny_recipe: Path, tmp_path: Path) -> None:
    common = arguments(tiny_recipe, tmp_path)
    found = run_ranks(f"tests.distributed.loop_scenarios:{scenario}", 2, arguments=common, timeout=120)
    assert [each["code"] for each in found] == [2, 2]
    assert message in found[0]["said"]
    assert found[1]["said"] == ""


def test_a_rank_that_reaches_nobody_says_its_problem_itself(tiny_recipe: Path, tmp_path: Path) -> None:
    from training.ranks import agreement

    environment = base_environment() | {
        "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "training.main", *arguments(tiny_recipe, tmp_path), "--optim.lrr", "1"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=agreement.PATIENCE.total_seconds() + 90,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "rank 1: " in done.stderr
    assert "--optim.lrr (command line): unknown setting" in done.stderr
    assert "Traceback" not in done.stderr
