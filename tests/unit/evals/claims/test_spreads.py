"""Spreads over learning rates and seeds against the made-up truth, with runs that diverged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from evals.claims.estimates import DRAWS, HOLDS, UNDECIDED
from evals.claims.findings import Finding
from evals.claims.roles import Arm
from evals.claims.spreads import components, rate_spread, spread_findings
from evals.claims.study import LEARNED, Panel, read_study
from tests.unit.evals.claims.synthetic import Method, make_study
from tests.unit.evals.conftest import task_result

OURS, THEIRS = Arm("monteclora", 16), Arm("lora", 16)
NARROW = Method(kind="lora", best=1e-3, width=1.2)
WIDE = Method(kind="monteclora", best=1e-3, width=5.0)


def panel_of(root: Path) -> Panel:
    (panel,) = read_study([root]).panels
    return panel


def by_what(panel: Panel) -> dict[str, Finding]:
    found = list(spread_findings(panel, 5, OURS, THEIRS))
    assert all(isinstance(each, Finding) for each in found), found
    return {each.what: each for each in found if isinstance(each, Finding)}


def test_a_narrower_peak_spreads_more(tmp_path: Path) -> None:
    make_study(tmp_path, {"lora": NARROW, "mc": WIDE})
    panel = panel_of(tmp_path)
    found = by_what(panel)
    means = {
        arm: [
            np.mean([panel.score(panel.cells(arm)[lr, s], LEARNED, 32_000) for s in (1, 2, 3)])
            for lr in (1e-4, 3e-4, 1e-3)
        ]  # type: ignore[arg-type]
        for arm in (OURS, THEIRS)
    }
    deviation = found["standard deviation over learning rates, learned"]
    details = deviation.details
    for arm, whose in ((OURS, "method"), (THEIRS, "reference")):
        seeds = details[f"seed_deviation_of_{whose}"] ** 2 / 3
        assert details[f"rate_deviation_of_{whose}"] == pytest.approx((np.var(means[arm], ddof=1) - seeds) ** 0.5)
        assert details[f"range_of_{whose}"] == pytest.approx(np.ptp(means[arm]))
    truth = details["rate_deviation_of_reference"] - details["rate_deviation_of_method"]
    assert deviation.measured.value == pytest.approx(truth)
    assert deviation.measured.verdict == HOLDS
    assert len(found) == 2
    assert found["ratio of standard deviations over seeds, learned"].measured.threshold == 1.0


def test_equal_peaks_are_undecided_but_for_chance(tmp_path: Path) -> None:
    verdicts = []
    for noise in range(6):
        root = tmp_path / str(noise)
        make_study(root, {"lora": Method(kind="lora"), "mc": Method(kind="monteclora")}, noise=noise, budgets=(32,))
        verdicts += [each.measured.verdict for each in by_what(panel_of(root)).values()]
    # Of 12, at 95 %, 1 in 1,000 times there are more than 3.
    assert len([each for each in verdicts if each != UNDECIDED]) <= 3


@pytest.mark.parametrize("noisier", [1, 3, 10])
def test_noisier_seeds_are_no_spread_over_rates(noisier: float) -> None:
    rng = np.random.default_rng(7)
    verdicts = []
    for _ in range(150):
        ours, theirs = (
            np.broadcast_to(rng.normal(0, size, (3, 3)), (1 + DRAWS, 3, 3)) for size in (1.0, float(noisier))
        )
        verdicts.append(rate_spread(ours, theirs, units=40).verdict)
    # At 5 %, 1 in 1,000 times there are more than 17 of 150.
    assert len([each for each in verdicts if each != UNDECIDED]) <= 17


def test_a_diverged_run_is_the_worst_score_of_both_or_nothing_learned(tmp_path: Path) -> None:
    make_study(
        tmp_path,
        {"lora": Method(kind="lora", width=1e6, diverges_at=(1e-3,)), "mc": Method(kind="monteclora", width=1e6)},
    )
    found, missing = spread_findings(panel_of(tmp_path), 5, OURS, THEIRS)
    assert isinstance(found, Finding)
    assert found.tokens == 32_000
    assert found.details["range_of_reference"] == pytest.approx(0.5, abs=0.05)
    assert found.details["diverged_reference"] == 3
    assert found.details["diverged"] == 0
    assert found.measured.verdict == HOLDS
    assert missing == (
        "code: MonteCLoRA r16 and LoRA r16: no ratio of standard deviations over seeds, learned: a run diverged"
    )


def test_accuracies_have_a_spread_of_their_own(tmp_path: Path) -> None:
    make_study(tmp_path, {"lora": NARROW, "mc": WIDE}, seeds=(1, 2))
    for run in tmp_path.iterdir():
        gains = {"0": 0, "32": 5 if "-mc-" in run.name or "lr0.001" in run.name else 1}
        for step, gain in gains.items():
            path = run / "evals" / f"{step}.json"
            content = json.loads(path.read_text())
            content["tasks"]["choice"] = task_result(
                "accuracy", "new", (np.arange(40) < 20 + gain).astype(float), np.ones(40)
            )
            path.write_text(json.dumps(content))
    found = [each for each in spread_findings(panel_of(tmp_path), 5, OURS, THEIRS) if isinstance(each, Finding)]
    (found_in_accuracy,) = [each for each in found if "accuracy" in each.what]
    details = found_in_accuracy.details
    assert details["range_of_reference"] - details["range_of_method"] == pytest.approx(0.1)
    assert found_in_accuracy.unit == "accuracy"
    missing = [each for each in spread_findings(panel_of(tmp_path), 5, OURS, THEIRS) if isinstance(each, str)]
    (sentence,) = missing
    assert sentence.endswith("over seeds, learned in accuracy: the runs of a learning rate are all equal")


def test_variance_is_taken_apart_as_in_an_analysis_of_variance() -> None:
    rng = np.random.default_rng(0)
    rates = rng.normal(0, 0.3, 400)
    found = components(rates + rng.normal(0, 0.4, (3, 400)))
    assert found["rate_deviation"] == pytest.approx(0.3, abs=0.03)
    assert found["seed_deviation"] == pytest.approx(0.4, abs=0.03)
    assert components(np.array([[1.0, 2.0]]))["rate_deviation"] == pytest.approx(math.sqrt(0.5))
    assert math.isnan(components(np.array([[1.0, 2.0]]))["seed_deviation"])
    assert components(np.array([[0.0, 0.0], [1.0, 1.0]]))["rate_deviation"] == 0
    assert components(np.array([[0.0, 2.0], [1.0, 2.0]]))["range"] == 1.5


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    make_study(tmp_path / "a", {"lora": NARROW}, rates=(1e-4, 3e-4))
    make_study(tmp_path / "a", {"mc": WIDE}, rates=(3e-4, 1e-3))
    assert list(spread_findings(panel_of(tmp_path / "a"), 5, OURS, THEIRS)) == [
        "code: MonteCLoRA r16 and LoRA r16 have fewer than two learning rates in common"
    ]
    make_study(tmp_path / "b", {"lora": NARROW}, seeds=(1,))
    make_study(tmp_path / "b", {"mc": WIDE}, seeds=(2,))
    assert list(spread_findings(panel_of(tmp_path / "b"), 5, OURS, THEIRS)) == [
        "code: MonteCLoRA r16 and LoRA r16 have no seed with runs at all common learning rates"
    ]
    make_study(tmp_path / "c", {"lora": NARROW}, seeds=(1,), budgets=(4,))
    make_study(tmp_path / "c", {"mc": WIDE}, seeds=(1,), budgets=(8,))
    assert list(spread_findings(panel_of(tmp_path / "c"), 5, OURS, THEIRS)) == [
        "code: MonteCLoRA r16 and LoRA r16 have no budget at which every run has learned or has diverged"
    ]


def test_one_seed_gives_spreads_without_verdict(tmp_path: Path) -> None:
    make_study(tmp_path, {"lora": NARROW, "mc": WIDE}, seeds=(1,))
    found, missing = spread_findings(panel_of(tmp_path), 5, OURS, THEIRS)
    assert isinstance(found, Finding)
    assert found.what == "standard deviation over learning rates, learned"
    assert found.measured.verdict == UNDECIDED
    assert isinstance(missing, str)
    assert missing.endswith("no ratio of standard deviations over seeds, learned: there is one seed")
