"""The ratio of ranks, its threshold, and growth."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.claims.estimates import FAILS, HOLDS
from evals.claims.findings import Finding
from evals.claims.rank_growth import by_module, rank_findings
from evals.claims.study import Panel, read_study
from tests.unit.evals.claims.synthetic import Method, make_study

LORA = {"lora_r4": Method(kind="lora", rank=4), "lora_r16": Method(kind="lora", rank=16)}


def panel_of(root: Path) -> Panel:
    (panel,) = read_study([root]).panels
    return panel


def findings(panel: Panel) -> list[Finding]:
    found = rank_findings(panel, 4)
    assert all(isinstance(each, Finding) for each in found), found
    return [each for each in found if isinstance(each, Finding)]


def test_the_ratio_is_to_every_rank_of_the_study(tmp_path: Path) -> None:
    make_study(tmp_path, LORA | {"full": Method(k=100)}, rates=(3e-4,))
    r4, r16, growth = findings(panel_of(tmp_path))
    # Layers and columns add 0 to 3, on average 1.5.
    assert r4.measured.value == pytest.approx(101.5 / 4)
    assert r16.measured.value == pytest.approx(101.5 / 16)
    assert (r4.measured.verdict, r16.measured.verdict) == (HOLDS, FAILS)
    assert (r4.rank, r16.rank) == (4, 16)
    assert r4.details["full_rank"] == 192
    assert r16.details["most_possible"] == 12
    assert r4.details["share"] == pytest.approx(101.5 / 192)
    assert r4.details["is_best_lr"]
    assert list(r4.curve) == [4_000, 8_000, 16_000, 32_000]
    assert growth.measured.value == pytest.approx(6)
    assert growth.measured.verdict == HOLDS


def test_the_best_rates_runs_count_where_they_have_ranks(tmp_path: Path) -> None:
    make_study(tmp_path, {"full": Method(best=1e-3, width=0.5), "lora_r4": LORA["lora_r4"]}, rates=(1e-3, 1e-4))
    make_study(tmp_path / "more", {"full": Method(k=40, learned=0.1)}, rates=(5e-5,))
    (r4, _) = findings(panel_of(tmp_path))
    assert (r4.details["lr"], r4.details["is_best_lr"]) == (5e-5, False)
    assert r4.measured.value == pytest.approx(41.5 / 4)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    make_study(tmp_path / "a", LORA | {"full": Method()}, rates=(3e-4,), seeds=(1,))
    assert rank_findings(panel_of(tmp_path / "a"), 4) == [
        "code: no run of full finetuning has weights/rank-<step>.json (python -m evals rank --run)"
    ]
    make_study(tmp_path / "b", {"full": Method(k=40)}, rates=(3e-4,), seeds=(1,))
    assert rank_findings(panel_of(tmp_path / "b"), 4) == [
        "code: no runs with LoRA, whose rank the change's is compared with"
    ]
    make_study(tmp_path / "c", LORA | {"full": Method(k=40)}, rates=(3e-4,), seeds=(1, 2))
    (tmp_path / "c" / "code-full-lr0.0003-seed1" / "weights" / "rank-4.json").unlink()
    for step in (8, 16, 32):
        (tmp_path / "c" / "code-full-lr0.0003-seed2" / "weights" / f"rank-{step}.json").write_text("{}")
    assert rank_findings(panel_of(tmp_path / "c"), 4) == [
        "code: the runs of full finetuning at 0.0003 have no step in common whose rank was measured"
    ]


def test_modules_means_leave_out_what_is_not_there() -> None:
    document = {"modules": ["q", "x"], "rank": [[2, None], [4, None]], "full_rank": [[8, None], [8, None]]}
    assert by_module(document) == {"q": (3.0, 8.0)}
