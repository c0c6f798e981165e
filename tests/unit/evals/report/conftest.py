"""Runs with results of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.results import write_result

FORGETTING = {"hellaswag": 0.25, "arc_challenge": 0.25, "winogrande": 0.5}
LOST = {"none": 0.16, "lora": 0.05, "monteclora": 0.04}
LEARNED = {"none": 0.20, "lora": 0.15, "monteclora": 0.16}


def harness_result(name: str, credit: np.ndarray, **overrides: Any) -> dict[str, Any]:
    """A result of a harness task, given the credit of each example."""
    task = name.partition("@")[0].partition(":")[0]
    metric = "acc" if task == "winogrande" else "acc_norm"
    losses = [0.4 if each else 2.0 for each in credit]
    return {
        "kind": "harness",
        "domain": "old",
        "suite": "forgetting",
        "metric": "accuracy",
        "higher_is_better": True,
        "score": float(credit.mean()),
        "stderr": float(credit.std(ddof=1) / len(credit) ** 0.5),
        "n": len(credit),
        "chance": FORGETTING.get(task),
        "fingerprint": f"sha256:{name}",
        "harness": {
            "task": task, "version": 1.0, "num_fewshot": 0, "metric": metric, "filter": "none", "lm_eval": "0.4.13"
        },
        "metrics": {metric: {"value": float(credit.mean()), "stderr": 0.01}},
        "truncated": 0,
        "not_finite": 0,
        "nll": float(np.mean(losses)),
        "ece": 0.06,
        "examples": [
            {"id": str(i), "correct": float(c), "nll": loss} for i, (c, loss) in enumerate(zip(credit, losses, strict=True))
        ],
    }  # fmt: skip


def program_result(passed: np.ndarray, samples: int = 50) -> dict[str, Any]:
    """A result of a test of programs, given each problem's share of programs that pass."""
    result = harness_result("humaneval", passed)
    for example in result["examples"]:
        del example["nll"]
    del result["nll"], result["ece"]
    return result | {
        "domain": "new",
        "suite": "learning-code",
        "chance": None,
        "harness": result["harness"] | {"metric": "pass@1", "filter": "none"},
        "samples_per_problem": samples,
        "pass_at_k": {"1": float(passed.mean()), "10": float(1 - (1 - passed).mean() ** 3)},
        "unique": {"all": 31.5, "passed": 4.25, "failed": None},
    }


def forgetting_results(lost: float, *, part: str = "", examples: int = 200) -> dict[str, dict[str, Any]]:
    """The forgetting suite on the same questions each time, a share of which the model has forgotten."""
    results = {}
    for index, task in enumerate(FORGETTING):
        draws = np.random.default_rng(index)
        known, is_kept = draws.random(examples) < 0.65, draws.random(examples) >= lost
        results[f"{task}{part}"] = harness_result(f"{task}{part}", (known & is_kept).astype(float))
    return results


def programs_passed(learned: float, problems: int = 164) -> np.ndarray:
    """Each problem's share of programs that pass."""
    draws = np.random.default_rng(7)
    return np.clip(draws.beta(0.3, 1.5, problems) + learned * draws.random(problems) * 2, 0, 1)


@pytest.fixture
def make_harness_run(make_run: Callable[..., Path]) -> Callable[..., Path]:
    """A run whose own tests are in <step>.json, and the suites beside them in <step>.suites.json."""

    def write(root: Path, kind: str, **overrides: Any) -> Path:
        run = make_run(root, kind, kind, **overrides)
        for step, lost, learned in ((0, 0.0, 0.0), (100, LOST[kind], LEARNED[kind])):
            tasks = forgetting_results(lost) | {"humaneval": program_result(programs_passed(learned))}
            write_result(run, step=step, tasks=tasks, seconds=3.0, name="suites")
        return run

    return write


@pytest.fixture
def harness_study(tmp_path: Path, make_harness_run: Callable[..., Path]) -> Path:
    """A run per method, with the forgetting suite and HumanEval."""
    for kind in LOST:
        make_harness_run(tmp_path / "study", kind)
    return tmp_path / "study"
