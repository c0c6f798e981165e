"""What every result says about itself, and when a goal is met."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import claims


@pytest.mark.parametrize(
    ("ratio", "goal", "expected"),
    [
        (2.0, ">=2", True), (1.999, ">=2", False), (2.0, "<=2", True), (2.001, "<=2", False), (0.0, "<=0", True),
        (1.1e-4, "<=1e-4", False), (16000.0, ">=16000", True), (5.0, "none", None),
    ],
)  # fmt: skip
def test_when_a_goal_is_met(ratio: float, goal: str, expected: bool | None) -> None:
    assert claims.is_met(ratio, goal) is expected


def test_a_goal_that_is_none() -> None:
    with pytest.raises(ValueError, match="the goal '==2' begins with neither <= nor >="):
        claims.is_met(2.0, "==2")


def test_a_result_says_how_where_and_with_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/anywhere/benchmarks/thing.py", "--bench", "--json", "x.json", "--rounds", "3"])
    monkeypatch.setattr(claims, "commit", lambda: ("abc", True))
    line = claims.claim("speed", [2.0], [1.0], ">=2", "peer 1.0")
    claims.write_json(tmp_path / "x.json", "bench", {"claims": [line], "settings": {"a": 1}})
    result = json.loads((tmp_path / "x.json").read_text())
    assert result["script"] == "thing"
    assert result["size"] == "bench"
    assert result["command"] == ["python", "benchmarks/thing.py", "--bench", "--rounds", "3"]
    assert (result["commit"], result["is_tree_clean"]) == ("abc", True)
    assert result["seconds"] > 0
    assert result["date"].endswith("+00:00")
    assert result["machine"]["cpus"] >= 1
    assert result["machine"]["memory_gib"] > 0
    assert result["versions"]["numpy"]
    assert result["claims"] == [line]
    assert result["settings"] == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_script_can_not_overwrite_what_every_result_has(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seconds, versions: names that every result has"):
        claims.write_json(tmp_path / "x.json", "full", {"claims": [], "versions": {}, "seconds": 1})


def test_a_package_that_is_missing_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "PACKAGES", ("numpy", "no-such-package"))
    assert claims.versions()["no-such-package"] is None


def test_the_commit_and_whether_the_tree_is_as_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        own = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *own, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    monkeypatch.setattr(claims, "ROOT", tmp_path)
    monkeypatch.setattr(claims, "RESULTS", tmp_path / "benchmarks" / "results")
    monkeypatch.setattr(claims, "TABLE", tmp_path / "benchmarks" / "RESULTS.md")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert claims.commit() == (None, None)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "code.py").write_text("1")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    assert claims.commit() == (git("rev-parse", "HEAD"), True)
    (tmp_path / "benchmarks" / "results" / "a.json").write_text("{}")
    (tmp_path / "benchmarks" / "RESULTS.md").write_text("table")
    assert claims.commit()[1] is True
    (tmp_path / "new.py").write_text("2")
    assert claims.commit()[1] is False


@pytest.mark.parametrize(
    ("contenders", "least", "count"), [("abc", 2, 3), ("abc", 3, 3), ("abc", 4, 6), ("ab", 5, 6), ("a", 7, 7)]
)
def test_each_contender_comes_equally_often_in_each_place(contenders: str, least: int, count: int) -> None:
    orders = claims.turns(contenders, least)
    assert len(orders) == count
    assert all(sorted(order) == list(contenders) for order in orders)
    for place in range(len(contenders)):
        assert {name: [order[place] for order in orders].count(name) for name in contenders} == dict.fromkeys(
            contenders, count // len(contenders)
        )


def test_a_round_that_shows_that_all_works_stays_one() -> None:
    assert claims.turns("abc", 1) == [["a", "b", "c"]]


def test_a_file_that_can_not_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert claims.new_file(str(tmp_path / "a.json")) == tmp_path / "a.json"
    assert claims.new_file("a.json") == Path("a.json")
    with pytest.raises(argparse.ArgumentTypeError, match="is a folder"):
        claims.new_file(str(tmp_path))
    with pytest.raises(SystemExit):
        claims.options("", quick="less", bench="some").parse_args(["--json", str(tmp_path / "none" / "a.json")])
    assert f"argument --json: there is no folder {tmp_path}/none" in capsys.readouterr().err
    monkeypatch.setattr(claims.os, "access", lambda path, mode: False)
    with pytest.raises(argparse.ArgumentTypeError, match="nothing can be written in"):
        claims.new_file(str(tmp_path / "a.json"))


def test_sizes_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    parser = claims.options("what it measures", quick="less", bench="some")
    assert parser.parse_args([]).size == "full"
    assert parser.parse_args(["--quick"]).size == "quick"
    assert parser.parse_args(["--bench", "--json", "x"]).size == "bench"
    with pytest.raises(SystemExit):
        parser.parse_args(["--quick", "--bench"])
    assert "not allowed with argument" in capsys.readouterr().err
