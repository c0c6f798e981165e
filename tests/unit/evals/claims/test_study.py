"""What is read of run folders: which runs count, what they are measured on, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evals.arithmetic.forgetting import forgotten, learned
from evals.claims.study import FORGOTTEN, LEARNED, LEARNED_ACCURACY, read_study
from evals.errors import EvalError
from evals.results import read_result
from tests.unit.evals.claims.synthetic import BUDGETS, STUDY, Method, make_run, make_study
from tests.unit.evals.conftest import task_result

TWO = {"full": STUDY["full"], "lora_r16": STUDY["lora_r16"]}


def test_scores_are_those_of_collects_arithmetic(tmp_path: Path) -> None:
    make_study(tmp_path, TWO, seeds=(1,), rates=(1e-3,))
    (panel,) = read_study([tmp_path]).panels
    for run in panel.runs:
        folder = tmp_path / run.id
        start, end = (read_result(folder / "evals" / f"{step}.json")["tasks"] for step in (0, BUDGETS[-1]))
        assert panel.score(run, LEARNED, 32_000) == pytest.approx(learned(start["code_text"], end["code_text"]).value)
        assert panel.score(run, FORGOTTEN, 32_000) == pytest.approx(forgotten(start["prose"], end["prose"]).value)
        assert panel.score(run, LEARNED, 31_000) is None


def test_panels_are_by_data_and_base(tmp_path: Path) -> None:
    make_study(tmp_path, TWO, seeds=(1,), rates=(1e-3,))
    make_study(tmp_path, TWO, source="pairs", source_kind="prompt", seeds=(1,), rates=(1e-3,))
    make_run(tmp_path / "other-base", STUDY["full"], lr=1e-3, seed=1, base_fingerprint="sha256:other")
    found = read_study([tmp_path])
    assert [(panel.name, panel.kind, panel.base) for panel in found.panels] == [
        ("code from tiny_base (1)", "continued pretraining", "tiny_base"),
        ("code from tiny_base (2)", "continued pretraining", "tiny_base"),
        ("pairs", "instruction finetuning", "tiny_base"),
    ]
    assert sorted(len(panel.runs) for panel in found.panels) == [1, 2, 2]


def test_the_halves_are_the_same_in_every_study_and_equal(tmp_path: Path) -> None:
    make_study(tmp_path, TWO, seeds=(1,), rates=(1e-3,), documents=41)
    (panel,) = read_study([tmp_path]).panels
    (half,) = panel.measures[LEARNED].halves
    assert int(half.sum()) == 20
    assert (
        np.flatnonzero(half)[:5].tolist()
        == np.flatnonzero(read_study([tmp_path]).panels[0].measures[LEARNED].halves[0])[:5].tolist()
    )


def test_runs_that_count_nowhere_are_named_with_the_reason(tmp_path: Path) -> None:
    good = STUDY["full"]
    make_run(tmp_path / "good", good, lr=1e-3, seed=1)
    make_run(tmp_path / "second", good, lr=5e-3, seed=1)
    make_run(tmp_path / "twin", good, lr=1e-3, seed=1, budgets=(4,))
    make_run(tmp_path / "unscored", good, lr=3e-3, seed=1)
    for step in BUDGETS:
        (tmp_path / "unscored" / "evals" / f"{step}.json").unlink()
    make_run(tmp_path / "waiting", good, lr=1e-2, seed=1, status="not started")
    make_run(tmp_path / "unknown", Method(kind="prefix"), lr=1e-3, seed=1)
    make_run(tmp_path / "broken", good, lr=1e-3, seed=1)
    (tmp_path / "broken" / "run.json").write_text("{")
    make_run(tmp_path / "elsewhere", good, lr=2e-3, seed=1, documents=30)
    for name, section, key, value in (
        ("scratch", "model", "base", None), ("branch", "run", "branch_from", "/somewhere/code/checkpoints/4"),
        ("seedless", "run", "seed", None),
    ):  # fmt: skip
        run = make_run(tmp_path / name, good, lr=4e-3, seed=1)
        content = json.loads((run / "run.json").read_text())
        content["config"][section][key] = value
        (run / "run.json").write_text(json.dumps(content))
    found = read_study([tmp_path])
    assert found.left_out == {
        "branch": "a continuation of another run",
        "broken": "without a readable run.json",
        "elsewhere": "scored on other held-out documents than most runs",
        "scratch": "trained from scratch: nothing to forget",
        "seedless": "without seed in run.json",
        "twin": "of the same settings as good",
        "unknown": "of an adapter that is not known here",
        "unscored": "done, and not scored both before and after training",
        "waiting": "not started",
    }
    assert [run.id for run in found.panels[0].runs] == ["good", "second"]


def test_budgets_go_to_the_largest_that_finished_runs_share(tmp_path: Path) -> None:
    make_study(tmp_path, {"full": STUDY["full"]}, seeds=(1, 2), rates=(1e-3,))
    make_run(tmp_path / "longer", STUDY["full"], lr=3e-3, seed=1, budgets=(*BUDGETS, 64), steps=64)
    make_run(tmp_path / "running", STUDY["full"], lr=3e-3, seed=2, budgets=BUDGETS[:2], status="running")
    make_run(tmp_path / "diverged", Method(decay=0.01, diverges_at=(1e-2,)), lr=1e-2, seed=1)
    (panel,) = read_study([tmp_path]).panels
    (arm,) = panel.arms
    assert panel.budgets(arm) == [1000 * step for step in BUDGETS]
    make_run(tmp_path / "short", STUDY["full"], lr=1e-4, seed=1, budgets=BUDGETS[:3])
    assert read_study([tmp_path]).panels[0].budgets(arm) == [1000 * step for step in BUDGETS[:3]]
    # Other budgets altogether are those of fewer runs.
    make_run(tmp_path / "odd", STUDY["full"], lr=1e-5, seed=1, budgets=(5, 10))
    assert read_study([tmp_path]).panels[0].budgets(arm) == [4_000, 5_000, 8_000, 10_000, 16_000]


def test_a_diverged_run_counts_as_far_as_it_was_scored(tmp_path: Path) -> None:
    make_run(tmp_path / "run", Method(diverges_at=(1e-2,)), lr=1e-2, seed=1)
    make_run(tmp_path / "other", Method(), lr=1e-3, seed=1)
    (panel,) = read_study([tmp_path]).panels
    run = next(run for run in panel.runs if run.is_diverged)
    assert run.budget == 8_000
    assert run.status == "failed"


def test_answers_that_are_no_numbers_are_missing(tmp_path: Path) -> None:
    make_study(tmp_path, TWO, seeds=(1,), rates=(1e-3,))
    path = tmp_path / "code-full-lr0.001-seed1" / "evals" / "32.json"
    content = json.loads(path.read_text())
    content["tasks"]["code_text"]["examples"][3]["nll"] = None
    path.write_text(json.dumps(content))
    (panel,) = read_study([tmp_path]).panels
    run = next(run for run in panel.runs if run.arm.role == "full")
    assert panel.score(run, LEARNED, 32_000) is None
    assert panel.score(run, LEARNED, 16_000) is not None
    assert panel.score(run, FORGOTTEN, 32_000) is not None


def test_accuracies_are_a_measure_of_their_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Method(), lr=1e-3, seed=1)
    for step, right in ((0, 20), (32, 28)):
        path = run / "evals" / f"{step}.json"
        content = json.loads(path.read_text())
        credit = np.arange(40) < right
        content["tasks"]["choice"] = task_result("accuracy", "new", credit.astype(float), np.ones(40))
        path.write_text(json.dumps(content))
    (panel,) = read_study([tmp_path]).panels
    assert panel.measures[LEARNED].tasks == ("code_text",)
    assert panel.measures[LEARNED_ACCURACY].tasks == ("choice",)
    assert panel.score(panel.runs[0], LEARNED_ACCURACY, 32_000) == pytest.approx(0.2)


def test_nothing_to_compare_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        EvalError, match=r"empty: no run was found, no folder there has a run.json; give the folder of a sweep"
    ):
        read_study([tmp_path / "empty"])
    make_run(tmp_path / "study" / "run", Method(), lr=1e-3, seed=1, status="not started")
    with pytest.raises(
        EvalError,
        match=r"study: none of 1 runs can be compared \(1 not started\); score runs before training \(eval.at_start\)",
    ):
        read_study([tmp_path / "study"])
    with pytest.raises(EvalError, match="no such folder"):
        read_study([tmp_path / "nowhere"])


def test_both_domains_are_needed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Method(), lr=1e-3, seed=1)
    for path in (run / "evals").iterdir():
        content = json.loads(path.read_text())
        del content["tasks"]["prose"]
        path.write_text(json.dumps(content))
    with pytest.raises(EvalError, match="1 without held-out tasks of both domains, new and old"):
        read_study([tmp_path])
