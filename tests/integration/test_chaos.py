"""A run that is killed at any moment, any number of times, is the undisturbed run: no step lost, no batch twice, equal weights."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.lives import Life, Run, compare, disturb, settings

pytestmark = pytest.mark.dist


def checked(life: Life) -> Life:
    print(life, flush=True)
    assert not life.lost
    assert not life.broken
    return life


CASES = {
    "replicated": (50, 150, (2,), ("--train.placement", "replicated", "--adapter.kind", "monteclora")),
    "zero3": (5, 24, (2,), ("--adapter.kind", "none")),
    "other_worlds": (5, 24, (1, 2), ("--train.placement", "replicated", "--adapter.kind", "lora")),
}
"""Kills, steps of the run, world sizes of its lives in turn, settings."""


@pytest.mark.parametrize("case", CASES)
def test_kills_change_nothing(case: str, tiny_recipe: Path, tmp_path: Path) -> None:
    num_kills, steps, worlds, more = CASES[case]
    arguments = settings(tiny_recipe, steps, *more)
    straight = Run(folder=tmp_path / "straight", arguments=arguments)
    assert checked(straight.live()).is_done

    run = Run(folder=tmp_path / "killed", arguments=arguments)
    lives = disturb(run, kills=num_kills, steps=steps, source=random.Random(20), worlds=worlds)
    kills = sum(checked(life).num_kills for life in lives)
    assert compare(run, straight, is_same_world=worlds == (2,)).texts == ()
    assert kills >= num_kills
