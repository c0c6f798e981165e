"""The benchmark of collect on a few runs, and its claims."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.collect import Look, claims_of, look, measure


def test_looks_are_taken_and_leave_the_files(tmp_path: Path) -> None:
    looks = measure(tmp_path, 3, 1)
    assert {name: len(each) for name, each in looks.items()} == {"first": 1, "later": 1}
    assert all(one.seconds > 0 and one.cpu_seconds > 0 and one.peak_mib > 10 for each in looks.values() for one in each)
    assert (tmp_path / "collected" / "index.html").exists()


def test_a_failed_look_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="collect ended with 2"):
        look(tmp_path / "none", tmp_path)


def test_claims() -> None:
    looks = {
        "first": [Look(8.0, 12.0, 300.0), Look(6.0, 12.0, 310.0)],
        "later": [Look(2.0, 2.0, 200.0), Look(3.0, 2.0, 1.0)],
    }
    found = {line["claim"]: (line["ratio"], line["goal"]) for line in claims_of(looks, 1000)}
    assert found == {
        "collect_1000_seconds": (7.0, "<=10"),
        "collect_later_over_first": (0.375, "<=0.5"),
        "collect_1000_peak_mib": (305.0, "<=1000"),
    }
