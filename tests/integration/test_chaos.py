"""A run that is killed at any moment, any number of times, is the undisturbed run: no step lost, no batch twice, equal weights."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.lives import Run, differences, draw
from tests.ranks import ROOT

pytestmark = pytest.mark.dist


def arguments(recipe: Path, steps: int, *more: str) -> tuple[str, ...]:
    return (
        "--ds_config", str(ROOT / "ds_configs" / "zero3_cpu.json"), "--recipe", str(recipe), "--train.steps", str(steps),
        "--eval.at_start", "false", "--monitor.tensorboard", "false", "--checkpoint.every_steps", "2",
        "--checkpoint.keep", "2", "--checkpoint.retry_after", "1s", *more,
    )  # fmt: skip


def disturb(run: Run, lives: int, seed: int, *, worlds: tuple[int, ...] = (2,), seconds_to_start: float) -> int:
    """Live so often under blows, and then to the end; return how often something was killed."""
    source, kills, is_done = random.Random(seed), 0, False
    for number in range(lives):
        world_size = worlds[number % len(worlds)]
        life = run.live(draw(source, world_size, seconds_to_start), world_size)
        print(life, flush=True)
        assert not life.problems
        kills, is_done = kills + life.num_kills, life.is_done
        if is_done:
            break
    if not is_done:
        life = run.live(world_size=worlds[0])
        print(life, flush=True)
        assert not life.problems
        assert life.is_done
    return kills


CASES = {
    "replicated": (60, 150, 50, (2,), ("--train.placement", "replicated", "--adapter.kind", "monteclora")),
    "zero3": (6, 24, 4, (2,), ("--adapter.kind", "none")),
    "other worlds": (6, 24, 4, (1, 2), ("--train.placement", "replicated", "--adapter.kind", "lora")),
}


@pytest.mark.parametrize("case", CASES)
def test_kills_change_nothing(case: str, tiny_recipe: Path, tmp_path: Path) -> None:
    lives, steps, least_kills, worlds, more = CASES[case]
    settings = arguments(tiny_recipe, steps, *more)
    straight = Run(folder=tmp_path / "straight", arguments=settings)
    life = straight.live()
    print(life)
    assert not life.problems
    assert life.is_done
    run = Run(folder=tmp_path / "killed", arguments=settings)
    kills = disturb(run, lives, seed=20, worlds=worlds, seconds_to_start=3)
    print(f"{kills} kills")
    assert differences(run, straight, is_same_world=worlds == (2,)) == []
    assert kills >= least_kills
