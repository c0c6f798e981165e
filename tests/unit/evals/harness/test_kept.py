"""Answers that survive the process."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from evals.errors import EvalError
from evals.harness.kept import Kept, key_of

IDENTITY = {"model": "abc", "max_length": 64}


def test_answers_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "kept.jsonl"
    kept = Kept(path, IDENTITY)
    kept.add({"a": [-1.25, True], "b": [["text\ud800 \n", 3, "eos"]]})
    kept.add({"c": [None, False]})
    again = Kept(path, IDENTITY)
    assert (again.num_found, again.moved_to) == (3, None)
    assert again["a"] == [-1.25, True]
    assert again["b"] == [["text\ud800 \n", 3, "eos"]]
    assert "c" in again
    assert "d" not in again


def test_without_a_file_they_stay_in_memory() -> None:
    kept = Kept()
    kept.add({"a": 1})
    assert kept["a"] == 1
    assert Kept().num_found == 0


@pytest.mark.parametrize("torn", [b'{"key": "b", "ans', b'{"key"', b"{}", b"[" * 100_000])
def test_a_torn_last_line_is_dropped_and_written_over(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    Kept(path, IDENTITY).add({"a": 1})
    with open(path, "ab") as file:
        file.write(torn)
    kept = Kept(path, IDENTITY)
    assert (kept.num_found, "a" in kept) == (1, True)
    kept.add({"b": 2})
    assert Kept(path, IDENTITY)["b"] == 2
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_torn_header_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    path.write_bytes(b'{"schema": 1, "mod')
    Kept(path, IDENTITY).add({"a": 1})
    assert Kept(path, IDENTITY).num_found == 1


def test_answers_of_another_model_are_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    Kept(path, IDENTITY).add({"a": 1})
    for number in (1, 2):
        kept = Kept(path, IDENTITY | {"model": str(number)})
        assert (kept.num_found, kept.moved_to) == (0, tmp_path / f"kept.other-{number}.jsonl")
    assert Kept(tmp_path / "kept.other-1.jsonl", IDENTITY)["a"] == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EvalError, match=r"kept.jsonl: answers cannot be kept there .*; make the folder writable"):
        Kept(tmp_path / "file" / "kept.jsonl", IDENTITY)


def test_answers_wait_in_memory_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.jsonl"
    kept = Kept(path, {"model": "a"})
    kept.add({"one": 1})

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        kept.add({"two": 2})
    assert kept.problem == f"{path}: answers are not kept (No space left on device); make room, or the folder writable"
    assert kept["two"] == 2
    # A part of a line, as a disk that fills up leaves it.
    with path.open("ab") as file:
        file.write(b'{"key": "tw')
    kept.add({"three": 3})
    assert kept.problem == ""
    again = Kept(path, {"model": "a"})
    assert [again[key] for key in ("one", "two", "three")] == [1, 2, 3]


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.jsonl", IDENTITY, rank=1)
    kept.add({"a": 1})
    assert kept["a"] == 1
    assert not list(tmp_path.iterdir())


def test_keys_differ_where_anything_asked_differs() -> None:
    asked = [((1, 2, 3), 1), ((1, 2, 3), 2), ((1, 2), 1), ((258,), 1), ((2, 1), 1), ((1, 2, 3), 1, 0.5)]
    assert len({key_of(ids, *settings) for ids, *settings in asked}) == len(asked)
    assert key_of([1, 2], "a", 0.5) == key_of((1, 2), "a", 0.5)


def test_a_whole_line_that_is_nested_too_deep_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    Kept(path, {"model": "m"}).add({"a": 1})
    with path.open("a") as file:
        file.write("[" * 100_000 + '\n{"key": {}, "answer": 1}\n"a\rb"\n{"key": "b", "answer": 2}\n{"torn')
    kept = Kept(path, {"model": "m"})
    assert (kept["a"], kept["b"], kept.num_found) == (1, 2, 2)
    kept.add({"c": 3})
    assert Kept(path, {"model": "m"})["c"] == 3
