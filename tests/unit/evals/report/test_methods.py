"""A method's tasks: which are paired, which count in a mean, and what is said about the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.errors import EvalError
from evals.report.methods import averaged, forgetting_suite, measure
from evals.results import load_run, write_result

SUITE = ("hellaswag", "arc_challenge", "winogrande")


def result(task: str, suite: str | None = "forgetting", domain: str = "old") -> dict[str, Any]:
    return {"domain": domain, "metric": "accuracy", "suite": suite, "harness": {"task": task}}


RESULTS = {
    "winogrande": result("winogrande"),
    "hellaswag:10": result("hellaswag", None),
    "hellaswag": result("hellaswag"),
    "hellaswag@50": result("hellaswag"),
    "arc_challenge": result("arc_challenge"),
    "boolq": result("boolq", "commonsense"),
    "prose_choice": {"domain": "old", "metric": "accuracy"},
    "prose": {"domain": "old", "metric": "bits_per_byte"},
    "gsm8k": result("gsm8k", "learning-math", "new"),
}


def test_the_forgetting_suite_is_the_old_accuracy_where_it_is_whole() -> None:
    assert averaged(RESULTS, RESULTS, "old", "accuracy") == list(SUITE)
    assert averaged(RESULTS, RESULTS, "old", "bits_per_byte") == ["prose"]
    assert averaged(RESULTS, RESULTS, "new", "accuracy") == ["gsm8k"]
    assert averaged(RESULTS, RESULTS, "new", "bits_per_byte") == []
    part = [name for name in RESULTS if name != "winogrande"]
    assert averaged(RESULTS, part, "old", "accuracy") == [
        "hellaswag:10",
        "hellaswag",
        "arc_challenge",
        "boolq",
        "prose_choice",
    ]


def test_the_suites_own_task_counts_before_the_same_with_other_shots() -> None:
    assert forgetting_suite(RESULTS, RESULTS) == list(SUITE)
    others = [name for name in RESULTS if name not in ("hellaswag", "hellaswag@50")]
    assert forgetting_suite(RESULTS, others) == ["hellaswag:10", *SUITE[1:]]
    assert forgetting_suite(RESULTS, SUITE[:2]) == []


def test_files_of_a_step_are_paired_together(tmp_path: Path, make_harness_run: Callable[..., Path]) -> None:
    method = measure(load_run(make_harness_run(tmp_path, "lora")))
    assert method.tasks("old", "accuracy") == list(SUITE)
    assert method.tasks("new", "accuracy") == ["code_choice", "humaneval"]
    assert method.tasks("old", "bits_per_byte") == ["prose"]
    assert (method.left_out, method.damaged) == ({}, ())
    assert set(method.nll_changes) == {"code_choice", "prose_choice", *SUITE}
    before, after = (json.loads((tmp_path / f"lora/evals/{s}.suites.json").read_text())["tasks"] for s in (0, 100))
    lost = [before[task]["score"] - after[task]["score"] for task in SUITE]
    effect = method.effect("old", "accuracy")
    assert effect is not None
    assert effect.value == pytest.approx(np.mean(lost))
    assert effect.n == 600
    low, high = effect.interval
    assert (low, high) == (effect.bootstrap_low, effect.bootstrap_high)
    assert (low, high) == pytest.approx((effect.low, effect.high), abs=0.004)
    assert low < effect.value < high


def test_a_task_that_was_scored_once_is_left_out_and_named(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(tmp_path, "r", "lora")
    whole = json.loads((run / "evals" / "0.json").read_text())["tasks"]
    perplexity = {"domain": "old", "metric": "word_perplexity", "score": 20.0, "examples": [{"id": "0"}]}
    write_result(run, step=0, tasks={"early": whole["prose"], "wiki": perplexity}, seconds=1.0, name="a")
    write_result(run, step=100, tasks={"late": whole["prose"], "wiki": perplexity}, seconds=1.0, name="a")
    (run / "evals" / "100.b.json").write_text("{")
    method = measure(load_run(run))
    assert method.left_out == {
        "late": "not scored before training, only at step 100",
        "early": "not scored at step 100, only before training",
        "wiki": "its metric, word_perplexity, is no mean over examples",
    }
    assert len(method.damaged) == 1
    assert "100.b.json: not JSON" in method.damaged[0]
    assert method.tasks("old", "bits_per_byte") == ["prose"]


def test_nothing_in_common_says_what_there_is(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(tmp_path, "r", "lora")
    write_result(run, step=100, tasks={"late": {}}, seconds=1.0)
    with pytest.raises(
        EvalError, match=r"no task was scored both before training and at step 100: late: not scored be"
    ):
        measure(load_run(run))
    write_result(run, step=0, tasks={}, seconds=1.0)
    write_result(run, step=100, tasks={}, seconds=1.0)
    with pytest.raises(EvalError, match="at step 100: there are none"):
        measure(load_run(run))
