"""Suites of the referee in real runs: the live model of two ranks, a stop in the middle, a job of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import ROOT, base_environment
from tests.ranks_started import Job
from tests.suite_data import make_suite_data

pytestmark = pytest.mark.dist


def results(path: Path) -> dict[str, Any]:
    tasks: dict[str, Any] = json.loads(path.read_text())["tasks"]
    return tasks


def score(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`python -m evals run`, in one process."""
    command = [sys.executable, "-m", "evals", "run", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=base_environment(), capture_output=True, text=True, timeout=400, check=False
    )


STOPPED_IN_SUITE = """
import evals.harness.kept as kept
from training.boundary import Boundary
own, crossed = Boundary.cross, []
def cross(self, what):
    crossed.append(what)
    asked = own(self, what)
    return asked or sum(each.startswith("suites after step 4") for each in crossed) > 3
Boundary.cross = cross
"""
"""A patch: asked to stop in the middle of the suites after step 4."""


TASK_FILE = """
task: additions
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
unsafe_code: true
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{test}}}}"
generation_kwargs: {{until: ["\\ndef"], max_gen_toks: 8}}
filter_list: [{{name: create_test, filter: [{{function: custom, filter_fn: !function utils.build_predictions}}]}}]
metadata: {{version: 2.0}}
"""


def test_suites_of_a_run(tiny_recipe: Path, tmp_path: Path) -> None:
    data, out = make_suite_data(tmp_path / "data"), tmp_path / "run"
    task = tmp_path / "additions.yaml"
    task.write_text(TASK_FILE.format(data=data / "humaneval.jsonl"))
    settings = [
        "--train.steps", "4", "--optim.warmup_steps", "1", "--train.precision", "fp32", "--eval.every", "50 %", "--eval.at_start", "true",
        "--eval.suites", "forgetting@3", "--eval.final_suites", f"winogrande,new={task}@2", "--eval.batch_tokens", "256",
        "--eval.data_dir", str(data),
    ]  # fmt: skip
    with Job(out, tiny_recipe, *settings, patches=dict.fromkeys(range(2), STOPPED_IN_SUITE)) as job:
        assert job.codes(300) == [85, 85], job.said()
    evals = out / "evals"
    subset = {"new", "old", "hellaswag@3", "arc_challenge@3", "winogrande@3"}
    assert set(results(evals / "0.json")) == subset | {"winogrande", "additions@2"}
    assert set(results(evals / "2.json")) == subset
    assert not (evals / "4.json").exists()
    answered = (evals / "kept" / "4.jsonl").read_text().splitlines()
    with Job(out, tiny_recipe, *settings) as job:
        assert job.codes(300) == [0, 0], job.said()
    # What was answered before the stop is still there, and was not asked again.
    assert (evals / "kept" / "4.jsonl").read_text().splitlines()[: len(answered)] == answered
    keys = [json.loads(line).get("key") for line in (evals / "kept" / "4.jsonl").read_text().splitlines()]
    assert len(set(keys)) == len(keys)
    live = results(evals / "4.json")
    assert live["hellaswag@3"]["n"] == 3
    assert live["winogrande"]["n"] == 12
    assert live["additions@2"]["samples_per_problem"] == 1
    assert live["additions@2"]["domain"] == "new"

    # A job of its own on the same weights finds the same; what is there is not computed, and the tokenizer must be the run's.
    alone = ("--run", out, "--step", "4", "--data", data, "--batch-tokens", "512")
    done = score(out, "--suite", "forgetting", *alone)
    assert done.returncode == 0, done.stderr
    (file,) = evals.glob("4.?*.json")
    found = results(file)
    assert {"hellaswag", "arc_challenge"} <= set(found)
    for example, again in zip(live["hellaswag@3"]["examples"], found["hellaswag"]["examples"], strict=False):
        assert example["id"] == again["id"]
        assert example["nll"] == pytest.approx(again["nll"], abs=1e-4)
    before = file.stat().st_mtime_ns
    again = score(out, "--suite", "forgetting", *alone)
    assert again.returncode == 0, again.stderr
    assert file.stat().st_mtime_ns == before
    assert "already" in again.stdout + again.stderr


def test_wrong_suites_are_refused_before_anything_starts(tiny_recipe: Path, tmp_path: Path) -> None:
    data, out = make_suite_data(tmp_path / "data"), tmp_path / "run"
    os.remove(data / "arc_challenge_test.jsonl")
    settings = ["--eval.suites", "forgetting,helaswag", "--eval.data_dir", str(data)]
    with Job(out, tiny_recipe, *settings, size=1) as job:
        assert job.codes(300) == [2], job.said()
        output = job.said()
    assert "arc_challenge_test.jsonl" in output
    assert "did you mean" in output
    assert "Traceback" not in output
