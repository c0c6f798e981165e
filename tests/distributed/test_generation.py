"""Texts of a live model on real ranks, whose weights are whole only inside a module's own forward."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.scoring.generation import INTERVAL
from tests.distributed.generation_scenarios import UNEVEN
from tests.ranks import run_ranks

pytestmark = pytest.mark.dist


def test_two_ranks_write_like_one(tiny_recipe: Path) -> None:
    scenario = "tests.distributed.generation_scenarios:write"
    # Every parameter is partitioned, none persistent.
    first, second = run_ranks(scenario, 2, recipe=str(tiny_recipe), threshold=0)
    (one,) = run_ranks(scenario, 1, recipe=str(tiny_recipe))

    told = first.pop("told"), second.pop("told")
    assert first == second, "texts and numbers of forwards"
    assert first["partitioned"] > 0
    # Though one rank has all samples but those of the longest text to write.
    assert first["forwards"] % INTERVAL == 0
    assert 30 <= first["forwards"] < one["forwards"] + INTERVAL
    assert [len(texts) for texts in first["uneven"]] == [prompt.samples for prompt in UNEVEN]
    for name in ("uneven", "one", "none"):
        assert first[name] == one[name]
    assert {finish for texts in first["uneven"] for _, _, finish in texts} >= {"length"}
    assert told[0][0][0] == told[0][0][1] > 0
    assert told[1] == [], "the first rank tells"
    # One rank has logits that are not finite, one rank stops: neither waits for the other.
    assert (
        sorted(finish for texts in first["not_finite"] for _, _, finish in texts) == ["length"] * 2 + ["not_finite"] * 2
    )
    assert first["stopped_after"] == INTERVAL
    assert first["is_training"]
