"""Scoring with a live model on real ranks, whose weights are whole only inside a module's own forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_ranks

pytestmark = pytest.mark.dist


def test_two_ranks_answer_like_one(tiny_recipe: Path) -> None:
    scenario = "tests.distributed.scoring_scenarios:score"
    # Every parameter is partitioned, none persistent.
    first, second = run_ranks(scenario, 2, recipe=str(tiny_recipe), threshold=0)
    (one,) = run_ranks(scenario, 1, recipe=str(tiny_recipe))

    assert first == second, "answers and numbers of forwards"
    assert first["partitioned"] > 0
    assert first["forwards"] < one["forwards"]
    for name, count in (("many", 31), ("few", 1)):
        assert len(first[name]) == count
        assert values(first[name]) == pytest.approx(values(one[name]), abs=1e-5, rel=1e-6)
        assert [is_greedy for _, is_greedy in first[name]] == [is_greedy for _, is_greedy in one[name]]
    # One answer of one rank stops both at the same forward.
    assert first["stopped_after"] == 2
    assert first["is_training"]


def values(answers: list[Any]) -> list[float]:
    return [value for value, _ in answers]
