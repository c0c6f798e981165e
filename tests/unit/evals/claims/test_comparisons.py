"""Differences with known truth, paired; and what was forgotten at equal learning."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evals.claims.comparisons import at_equal_learning, difference, forgetting_least, interpolate
from evals.claims.estimates import FAILS, HOLDS, UNDECIDED
from evals.claims.findings import Finding
from evals.claims.roles import Arm
from evals.claims.study import FORGOTTEN, LEARNED, Panel, read_study
from tests.unit.evals.claims.synthetic import BUDGETS, Method, make_run, make_study

FULL, LORA = Arm("full"), Arm("lora", 16)


def panel_of(root: Path, lora: Method, full: Method | None = None, **settings: object) -> Panel:
    make_study(root, {"full": full or Method(), "lora": lora}, **settings)  # type: ignore[arg-type]
    (panel,) = read_study([root]).panels
    return panel


def found(result: Finding | str) -> Finding:
    assert isinstance(result, Finding), result
    return result


def test_the_difference_of_the_best_rates_has_the_true_size_at_every_budget(tmp_path: Path) -> None:
    panel = panel_of(tmp_path, Method(kind="lora", learned=0.4, best=1e-3, width=1.0), rates=(3e-4, 1e-3))
    got = found(difference(panel, 1, LORA, FULL, LEARNED, -1))
    assert got.measured.low < 0.1 < got.measured.high
    assert got.measured.verdict == HOLDS
    assert (got.details["lr"], got.details["lr_reference"]) == (1e-3, 3e-4)
    assert got.tokens == 32_000
    for tokens, measured in got.curve.items():
        truth = 0.1 * (tokens / 32_000) ** 0.5
        assert measured.low - 0.005 < truth < measured.high + 0.005
    assert list(got.curve) == [1000 * step for step in BUDGETS]
    assert found(difference(panel, 1, LORA, FULL, LEARNED, 1)).measured.value == pytest.approx(-got.measured.value)


def test_equal_methods_are_undecided(tmp_path: Path) -> None:
    panel = panel_of(tmp_path, Method(kind="lora"))
    for effect in (LEARNED, FORGOTTEN):
        got = found(difference(panel, 1, LORA, FULL, effect, -1))
        assert got.measured.verdict == UNDECIDED
        assert got.plain is not None
        assert got.plain.verdict == UNDECIDED


def test_what_seeds_share_cancels(tmp_path: Path) -> None:
    panel = panel_of(tmp_path, Method(kind="lora", learned=0.48), seed_noise=0.002)
    got = found(difference(panel, 1, LORA, FULL, LEARNED, -1)).measured
    seeds = [panel.score(run, LEARNED, 32_000) for run in panel.cells(FULL).values() if run.lr == 3e-4]
    # Seeds differ in what both methods have in common by more than the methods differ.
    assert got.high - got.low < 4 * np.std(seeds)  # type: ignore[arg-type]
    assert got.verdict == HOLDS


def test_only_common_seeds_and_budgets_are_compared(tmp_path: Path) -> None:
    make_study(tmp_path, {"full": Method()}, seeds=(1, 2, 3), rates=(3e-4,))
    make_study(tmp_path, {"lora": Method(kind="lora", learned=0.4)}, seeds=(2, 3, 4), rates=(3e-4,), budgets=(4, 8, 32))
    (panel,) = read_study([tmp_path]).panels
    got = found(difference(panel, 1, LORA, FULL, LEARNED, -1))
    assert got.measured.seeds == 2
    assert list(got.curve) == [4_000, 8_000, 32_000]


def test_without_a_common_seed_or_a_scored_run_there_is_a_reason(tmp_path: Path) -> None:
    make_study(tmp_path, {"full": Method()}, seeds=(1,), rates=(3e-4,))
    make_study(tmp_path, {"lora": Method(kind="lora")}, seeds=(2,), rates=(3e-4,))
    make_run(tmp_path / "mc", Method(kind="monteclora", diverges_at=(3e-4,)), lr=3e-4, seed=1, budgets=(1,))
    (panel,) = read_study([tmp_path]).panels
    assert difference(panel, 1, LORA, FULL, LEARNED, -1) == (
        "code: LoRA r16 and full finetuning have no seed and budget in common"
    )
    assert at_equal_learning(panel, 1, LORA, FULL) == (
        "code: LoRA r16 and full finetuning have no seed in common at every learning rate, scored at a budget"
    )
    diverged = Arm("monteclora", 16)
    assert panel.cells(diverged)
    for answer in (difference(panel, 1, LORA, diverged, LEARNED, -1), at_equal_learning(panel, 1, diverged, FULL)):
        assert answer == "code: no run of MonteCLoRA r16 was scored"


def test_forgetting_is_compared_at_the_most_that_both_have_learned(tmp_path: Path) -> None:
    panel = panel_of(tmp_path, Method(kind="lora", learned=0.4, forgotten=0.1), Method(learned=0.6, forgotten=0.4))
    got = found(at_equal_learning(panel, 2, LORA, FULL))
    # Both effects grow alike with tokens, so that curves are straight: full has forgotten 0.4 * 0.4 / 0.6 at 0.4.
    assert got.details["level"] == pytest.approx(0.4, abs=0.02)
    truth = 0.4 * 0.4 / 0.6 - 0.1
    assert got.measured.low < truth < got.measured.high
    assert got.measured.verdict == HOLDS
    # Straight curves: where both have learned half as much, the difference is half as large.
    assert list(got.levels) == [1.0, 0.75, 0.5, 0.25]
    assert got.levels[1.0] == got.measured
    for share, measured in got.levels.items():
        assert measured.low < share * truth < measured.high
    # LoRA at its end, full finetuning when 0.6 * sqrt(tokens / 32,000) was 0.4.
    assert got.details["tokens_at_level"] == 32_000
    assert got.details["tokens_at_level_reference"] == pytest.approx(32_000 * (0.4 / 0.6) ** 2, rel=0.1)


def test_at_equal_learning_each_method_has_the_rate_that_forgets_least_there(tmp_path: Path) -> None:
    make_study(tmp_path, {"full": Method(learned=0.6, forgotten=0.5, best=1e-3)}, rates=(1e-3,))
    make_study(tmp_path, {"full": Method(learned=0.55, forgotten=0.05, best=3e-4)}, rates=(3e-4,))
    make_study(tmp_path, {"full": Method(learned=0.2, forgotten=0.0, best=1e-4)}, rates=(1e-4,))
    make_study(tmp_path, {"lora": Method(kind="lora", learned=0.4, forgotten=0.1, best=1e-3, width=0.5)})
    (panel,) = read_study([tmp_path]).panels
    got = found(at_equal_learning(panel, 2, LORA, FULL))
    # The lowest rate forgot nothing, but it did not learn as much.
    assert (got.details["lr"], got.details["lr_reference"]) == ([1e-3], [3e-4])
    assert got.measured.value == pytest.approx(0.05 * 0.4 / 0.55 - 0.1, abs=0.02)
    assert got.measured.verdict == FAILS
    # Where half as much was learned, the rate that forgot nothing has learned enough.
    assert got.levels[0.5].value == pytest.approx(0.0 - 0.05, abs=0.02)
    assert got.plain is not None
    assert got.plain.value == pytest.approx(0.5 * 0.4 / 0.6 - 0.1, abs=0.02)
    assert got.plain.verdict == HOLDS


def test_the_rate_at_equal_learning_is_chosen_on_the_other_seeds() -> None:
    def curves(learned: list[float], forgotten: list[float]) -> np.ndarray:
        return np.array([learned, forgotten])[:, None, :, None].repeat(2, axis=1)

    rates = {1e-3: curves([0.5, 0.5, 0.5], [0.2, 0.2, 0.2]), 3e-3: curves([0.5, 0.5, 0.5], [0.0, 0.3, 0.3])}
    # The first seed's own luck with the second rate does not choose it.
    assert forgetting_least(rates, 0.4) == [1e-3, 3e-3, 3e-3]
    # Too little learned on the others' mean: a rate that forgot nothing is none.
    rates[1e-4] = curves([0.5, 0.3, 0.3], [0.0, 0.0, 0.0])
    assert forgetting_least(rates, 0.4) == [1e-3, 1e-4, 1e-4]
    assert forgetting_least({1e-4: rates[1e-4], 1e-5: rates[1e-4] / 2}, 0.45) == [1e-4, 1e-4, 1e-4]
    assert forgetting_least({lr: each[:, :, :1] for lr, each in rates.items() if lr > 1e-4}, 0.4) == [3e-3]


def test_one_run_of_another_length_is_not_what_all_is_compared_at(tmp_path: Path) -> None:
    panel = panel_of(tmp_path, Method(kind="lora", learned=0.4), rates=(3e-4,))
    before = found(difference(panel, 1, LORA, FULL, LEARNED, -1))
    for name, method in (("full", Method()), ("lora", Method(kind="lora", learned=0.4))):
        make_run(tmp_path / f"longer-{name}", method, lr=3e-4, seed=2, budgets=(*BUDGETS, 64), steps=64)
    study = read_study([tmp_path])
    after = found(difference(study.panels[0], 1, LORA, FULL, LEARNED, -1))
    assert after.as_dict() == before.as_dict()
    assert study.left_out == {
        f"longer-{name}": f"of the same settings as code-{name}-lr0.0003-seed2, but 64 steps long and not 32"
        for name in ("full", "lora")
    }


def test_interpolation_by_hand_and_by_numpy() -> None:
    learned = np.array([[0.1, 0.2, 0.4], [0.1, 0.3, 0.2], [0.2, 0.1, 0.4]])
    forgotten = np.array([[0.01, 0.03, 0.1], [0.0, 0.2, 0.4], [0.1, 0.5, 0.9]])
    level = np.array([0.3, 0.2, 0.15])
    got = interpolate(learned, forgotten, level)
    assert got[0] == pytest.approx(np.interp(0.3, learned[0], forgotten[0]))
    # The first stretch that reaches the level counts, also where a curve comes back.
    assert got[1] == pytest.approx(0.1)
    assert got[2] == pytest.approx(0.75 * 0.1)
    assert interpolate(np.array([[0.2]]), np.array([[0.4]]), np.array([0.1]))[0] == pytest.approx(0.2)


def test_nothing_learned_compares_with_nothing(tmp_path: Path) -> None:
    panel = panel_of(tmp_path, Method(kind="lora", learned=-0.2), rates=(3e-4,))
    assert at_equal_learning(panel, 2, LORA, FULL) == (
        "code: LoRA r16 or full finetuning has learned nothing, so nothing compares at equal learning"
    )


def test_a_missing_evaluation_is_no_zero(tmp_path: Path) -> None:
    panel = panel_of(tmp_path, Method(kind="lora", learned=0.4), rates=(3e-4,))
    whole = found(difference(panel, 1, LORA, FULL, LEARNED, -1))
    path = tmp_path / "code-lora-lr0.0003-seed2" / "evals" / "16.json"
    content = json.loads(path.read_text())
    content["tasks"]["code_text"]["examples"][0]["nll"] = None
    path.write_text(json.dumps(content))
    (panel,) = read_study([tmp_path]).panels
    got = found(difference(panel, 1, LORA, FULL, LEARNED, -1))
    assert got.curve[16_000].seeds == 2
    assert got.curve[32_000].value == pytest.approx(whole.curve[32_000].value)
