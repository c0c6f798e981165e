"""Made-up runs: the same every time, and in the shape of the study."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.synthetic_runs import METHODS, grid, make_runs
from evals.arithmetic.forgetting import forgotten, learned


def tasks(run: Path, step: int) -> dict[str, dict[str, object]]:
    return json.loads((run / "evals" / f"{step}.json").read_text())["tasks"]


def test_runs_are_the_same_every_time_and_of_every_method(tmp_path: Path) -> None:
    made = make_runs(tmp_path / "a", 10, examples=20, points=2)
    again = make_runs(tmp_path / "b", 10, examples=20, points=2)
    assert len(set(made)) == 10
    assert {path.name.split("-")[0] for path in made} == set(METHODS)
    for one, other in zip(made, again, strict=True):
        for name in ("metrics.jsonl", "evals/0.json", "evals/400.json"):
            assert (one / name).read_bytes() == (other / name).read_bytes()


def test_full_finetuning_learns_and_forgets_more_than_a_low_rank(tmp_path: Path) -> None:
    full, low, *_ = make_runs(tmp_path, 4)
    changes = [
        (
            learned(tasks(run, 0)["humaneval"], tasks(run, 400)["humaneval"]).value,
            forgotten(tasks(run, 0)["hellaswag@200"], tasks(run, 400)["hellaswag@200"]).value,
        )
        for run in (full, low)
    ]
    assert changes[0][0] > changes[1][0] > 0
    assert changes[0][1] > changes[1][1] > 0


def test_the_grid_never_repeats() -> None:
    names = [recipe.name for _, recipe in zip(range(2000), grid(), strict=False)]
    assert len(set(names)) == 2000
