"""The choice of learning rates, its optimism, and cross-fitting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evals.claims.comparisons import optimism
from evals.claims.roles import Arm
from evals.claims.selection import Choice, choose, crossfitted, plain
from evals.claims.study import FORGOTTEN, LEARNED, Panel, read_study
from tests.unit.evals.claims.synthetic import Method, make_run, make_study

FULL = Arm("full")
LARGEST = 32_000


def panel_of(root: Path) -> Panel:
    (panel,) = read_study([root]).panels
    return panel


def chosen(panel: Panel, arm: Arm = FULL) -> Choice:
    choice = choose(panel, arm)
    assert choice is not None
    return choice


def test_the_rate_with_the_best_mean_over_seeds_is_chosen(tmp_path: Path) -> None:
    make_study(tmp_path, {"full": Method(best=3e-4, width=1.0)})
    choice = chosen(panel_of(tmp_path))
    assert choice.lr == 3e-4
    assert choice.seeds == (1, 2, 3)
    assert choice.tokens == LARGEST
    assert choice.edge(choice.lr) is None
    assert list(choice.barred(choice.lr)) == []
    assert max(choice.scores, key=lambda lr: choice.scores[lr]) == 3e-4
    assert set(choice.crossfit.values()) == {3e-4}


@pytest.mark.parametrize(("best", "edge"), [(1e-5, "lowest"), (1e-1, "highest")])
def test_a_best_rate_at_the_edge_is_known(tmp_path: Path, best: float, edge: str) -> None:
    make_study(tmp_path, {"full": Method(best=best, width=3.0)}, seeds=(1,))
    choice = chosen(panel_of(tmp_path))
    assert choice.edge(choice.lr) == edge


def test_rates_that_diverged_or_lack_seeds_are_not_chosen(tmp_path: Path) -> None:
    make_study(tmp_path, {"full": Method(best=1e-3, diverges_at=(1e-3,))})
    for seed in (1, 2):
        make_run(tmp_path / f"code-full-seed{seed}", Method(best=3e-3, learned=0.9), lr=3e-3, seed=seed)
    choice = chosen(panel_of(tmp_path))
    assert choice.lr == 3e-4
    assert choice.diverged == {1e-3: 3}
    assert set(choice.scores) == {1e-4, 3e-4}
    assert choice.edge(choice.lr) is None
    assert list(choice.barred(choice.lr)) == [("higher", 1e-3, "diverged with 3 of 3 seeds")]
    assert list(choice.barred(1e-3)) == [("higher", 3e-3, "was scored with 2 of 3 seeds")]


def test_where_all_rates_have_a_diverged_run_those_with_most_scores_are_left(tmp_path: Path) -> None:
    make_study(tmp_path, {"full": Method()}, rates=(3e-4,), seeds=(1, 2))
    make_run(tmp_path / "bad", Method(diverges_at=(3e-4,)), lr=3e-4, seed=3)
    choice = chosen(panel_of(tmp_path))
    assert (choice.lr, choice.seeds, choice.diverged) == (3e-4, (1, 2), {3e-4: 1})
    assert choice.edge(choice.lr) == "only"


def test_an_arm_without_scores_has_no_choice(tmp_path: Path) -> None:
    make_study(tmp_path, {"full": Method()}, rates=(3e-4,), seeds=(1,))
    assert choose(panel_of(tmp_path), Arm("lora", 16)) is None


def test_cross_fitting_mixes_halves_by_hand(tmp_path: Path) -> None:
    make_study(tmp_path, {"full": Method(width=1e6)}, rates=(1e-4, 3e-4), seeds=(1, 2))
    panel = panel_of(tmp_path)
    cells = panel.cells(FULL)
    choice = Choice(
        arm=FULL, lr=1e-4, tokens=LARGEST, scores={1e-4: 0.5, 3e-4: 0.4}, scored={1e-4: (1, 2), 3e-4: (1, 2)},
        runs={1e-4: 2, 3e-4: 2},
        crossfit={(1, False): 1e-4, (1, True): 3e-4}, diverged={},
    )  # fmt: skip
    found = crossfitted(panel, choice, 1, LEARNED, LARGEST)
    (half,), (weights,) = panel.measures[LEARNED].halves, panel.measures[LEARNED].weights
    one, other = (panel.values(cells[lr, 1], LEARNED, LARGEST) for lr in (1e-4, 3e-4))
    assert found is not None
    assert one is not None
    assert other is not None
    assert found[0] == pytest.approx((one[0][~half].sum() + other[0][half].sum()) / weights.sum())
    forgotten = crossfitted(panel, choice, 1, FORGOTTEN, LARGEST)
    runs = [panel.score(cells[lr, 1], FORGOTTEN, LARGEST) for lr in (1e-4, 3e-4)]
    assert forgotten is not None
    assert forgotten[0] == pytest.approx(np.mean(runs))  # type: ignore[arg-type]
    assert crossfitted(panel, choice, 2, LEARNED, LARGEST) is None
    assert plain(panel, choice, 9, LEARNED, LARGEST) is None


def test_rates_are_chosen_without_the_seed_and_the_half_that_they_are_reported_on(tmp_path: Path) -> None:
    make_study(tmp_path, {"full": Method(width=1e6)}, seed_noise=0.05)
    panel = panel_of(tmp_path)
    choice, cells = chosen(panel), panel.cells(FULL)
    (half,), (weights,) = panel.measures[LEARNED].halves, panel.measures[LEARNED].weights
    for (seed, which), lr in choice.crossfit.items():
        others = [s for s in (1, 2, 3) if s != seed]
        mask = half != which
        means = {
            rate: np.mean([panel.values(cells[rate, s], LEARNED, LARGEST)[0][mask].sum() for s in others])  # type: ignore[index]
            for rate in choice.scores
        }
        assert lr == max(means, key=lambda rate: means[rate] / weights[mask].sum())


def test_the_best_of_many_equal_rates_is_too_good_and_the_cross_fitted_one_is_not(tmp_path: Path) -> None:
    rates = tuple(1e-4 * 1.2**i for i in range(8))
    gaps, fitted = [], []
    for noise in range(8):
        root = tmp_path / str(noise)
        make_study(
            root, {"full": Method(width=1e6)}, rates=rates, seed_noise=0.03, budgets=(32,), documents=16, noise=noise
        )
        panel = panel_of(root)
        choice, cells = chosen(panel), panel.cells(FULL)
        found = optimism(panel, choice)
        assert found is not None
        # What all rates have in common of the seeds is no optimism.
        mean = np.mean([panel.score(run, LEARNED, LARGEST) for run in cells.values()])  # type: ignore[arg-type]
        gaps.append(choice.scores[choice.lr] - mean)
        fitted.append(choice.scores[choice.lr] - found - mean)
    assert np.mean(gaps) > 0.015
    assert abs(np.mean(fitted)) < 0.5 * np.mean(gaps)
