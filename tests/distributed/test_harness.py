"""Suites of the harness on two ranks: the same entries as on one, and neither waits for the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.harness_scenarios import make_data
from tests.ranks import run_ranks

pytestmark = pytest.mark.dist


def test_two_ranks_evaluate_like_one(tmp_path: Path) -> None:
    make_data(tmp_path)
    scenario = "tests.distributed.harness_scenarios:evaluate"
    first, second = run_ranks(scenario, 2, folder=str(tmp_path))
    (one,) = run_ranks(scenario, 1, folder=str(tmp_path))

    shares = first.pop("judged"), second.pop("judged")
    assert first == second
    # Stopped in the middle of ten rows, four at a time; all ranks know what the first one kept.
    assert first["stopped"]
    assert 0 < first["found"] < 10
    # Where one rank cannot judge, all say so.
    assert first["failed"] == "rank 1: OSError: [Errno 12] no sandbox on this rank"
    assert one["failed"] == "[Errno 12] no sandbox on this rank"
    assert first["found_again"] == one["found_again"] == 10 + 2, "rows and texts; no verdicts"
    assert all(shares), "both ranks judge"
    assert not set(shares[0]) & set(shares[1])
    assert sorted(shares[0] + shares[1]) == sorted(one.pop("judged"))

    for name, entry in one["result"].items():
        other = first["result"][name]
        for key in ("score", "n", "fingerprint", "truncated", "not_finite", "harness"):
            assert other[key] == entry[key], (name, key)
        for example, reference in zip(other["examples"], entry["examples"], strict=True):
            assert example["correct"] == reference["correct"]
            assert example.get("nll", 0.0) == pytest.approx(reference.get("nll", 0.0), abs=1e-5)
    assert first["result"]["humaneval"]["unique"]["all"] > 10
