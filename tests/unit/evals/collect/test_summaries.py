"""What is read, and what is not read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.synthetic_runs import make_runs
from evals.collect import summaries
from evals.collect.summaries import parts, read_items, to_keep
from evals.collect.walk import walk


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read from now on."""
    names: list[str] = []
    for name in ("read_record", "read_curve", "read_rank"):
        real = getattr(summaries, name)
        monkeypatch.setattr(summaries, name, lambda path, real=real: (names.append(path.name), real(path))[1])
    real_evaluation = summaries.read_evaluation

    def read_evaluation(paths: list[Path]) -> Any:
        names.extend(path.name for path in paths)
        return real_evaluation(paths)

    monkeypatch.setattr(summaries, "read_evaluation", read_evaluation)
    return names


def test_only_what_changed_is_read_again(tmp_path: Path, make_run: Callable[..., Path], opened: list[str]) -> None:
    one, _ = make_run(tmp_path, "a"), make_run(tmp_path, "b")
    (one / "weights").mkdir()
    (one / "weights" / "rank-100.json").write_text('{"modules": [], "layers": [], "rank": []}')
    runs, *_ = walk([tmp_path])
    first = read_items(runs, {})
    assert sorted(opened) == sorted(["run.json", "metrics.jsonl", "0.json", "100.json"] * 2 + ["rank-100.json"])
    known = to_keep(runs, first)
    for change, expected in (
        (None, []),
        (one / "metrics.jsonl", ["metrics.jsonl"]),
        (one / "evals" / "100.json", ["0.json", "100.json"]),
        # Every later step is a difference to step 0.
        (one / "evals" / "0.json", ["0.json", "100.json"]),
        (one / "weights" / "rank-100.json", ["rank-100.json"]),
    ):
        opened.clear()
        if change is not None:
            change.write_bytes(change.read_bytes() + b"\n")
        runs, *_ = walk([tmp_path])
        again = read_items(runs, known)
        assert opened == expected
        assert again == first
        known = to_keep(runs, again)


def test_another_file_of_a_step_changes_that_step(
    tmp_path: Path, make_run: Callable[..., Path], opened: list[str]
) -> None:
    path = make_run(tmp_path, "a")
    runs, *_ = walk([tmp_path])
    known = to_keep(runs, read_items(runs, {}))
    task = {"kind": "harness", "metric": "accuracy", "domain": "old", "score": 0.5, "n": 1}
    (path / "evals" / "100.extra.json").write_text(json.dumps({"schema": 1, "tasks": {"extra": task}}))
    opened.clear()
    found = read_items(walk([tmp_path])[0], known)
    assert opened == ["0.json", "100.json", "100.extra.json"]
    assert found["a"]["point 100"]["tasks"]["extra"]["score"] == 0.5


def test_several_processes_read_the_same(tmp_path: Path) -> None:
    make_runs(tmp_path, 26, examples=10, points=3)
    runs, *_ = walk([tmp_path])
    assert read_items(runs, {}, processes=2) == read_items(runs, {}, processes=1)


def test_a_file_out_of_reach_is_read_again_the_next_time(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    path = make_run(tmp_path, "a")
    runs, *_ = walk([tmp_path])
    (path / "metrics.jsonl").unlink()
    (path / "evals" / "100.json").unlink()
    items = read_items(runs, {})
    assert items["a"]["curve"]["problem"] == "cannot be read (No such file or directory)"
    assert {key.split("|")[1] for key in to_keep(runs, items)} == {"record", "point 0"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", "no rank of a weight change"),
        ('{"modules": [], "layers": []}', "no rank of a weight change"),
    ],
)
def test_a_broken_rank_says_why(tmp_path: Path, make_run: Callable[..., Path], text: str, problem: str) -> None:
    path = make_run(tmp_path, "a")
    (path / "weights").mkdir()
    (path / "weights" / "rank-7.json").write_text(text)
    (run,) = walk([tmp_path])[0]
    assert problem in read_items([run], {})["a"]["rank 7"]["problem"]
    assert [part.name for part in parts(run)] == ["record", "curve", "point 0", "point 100", "rank 7"]


def test_ranks_are_kept_without_rows(tmp_path: Path) -> None:
    make_runs(tmp_path, 1, examples=5, points=2)
    ((_, items),) = read_items(walk([tmp_path])[0], {}).items()
    assert set(items["rank 400"]) == {*summaries.RANK_KEYS, "problem"}
    assert len(items["rank 400"]["rank"]) == 32
    assert items["rank 400"]["full_rank"][31] == [4096] * 7
