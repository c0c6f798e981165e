"""Rows that are kept for a second start."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.weights.unfinished import UnfinishedRows

ROWS = [{"name": f"m{i}", "rank": i} for i in range(3)]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    with UnfinishedRows(tmp_path / "weights" / "rank-7.json", {"share": 0.9}) as unfinished:
        for row in ROWS:
            unfinished.add(row)
    return tmp_path / "weights" / "rank-7.json"


def kept(out: Path, share: float = 0.9) -> list[str]:
    return list(UnfinishedRows(out, {"share": share}).rows)


def test_rows_are_there_at_the_next_start(out: Path) -> None:
    assert kept(out) == ["m0", "m1", "m2"]
    with UnfinishedRows(out, {"share": 0.9}) as unfinished:
        unfinished.add({"name": "m3"})
    assert kept(out) == ["m0", "m1", "m2", "m3"]
    unfinished.remove()
    assert kept(out) == []
    assert list(out.parent.iterdir()) == []


def test_rows_of_another_comparison_are_dropped(out: Path) -> None:
    assert kept(out, share=0.8) == []
    with UnfinishedRows(out, {"share": 0.8}):
        pass
    assert kept(out) == []


@pytest.mark.parametrize(
    "tail", ['{"name": "m3", "ra', "\0\0\0", "[" * 100_000, "3\n", '"text"\n', "[]\n", '{"rank": 3}\n']
)
def test_half_a_line_is_dropped(out: Path, tail: str) -> None:
    (file,) = out.parent.iterdir()
    with file.open("a") as opened:
        opened.write(tail)
    with UnfinishedRows(out, {"share": 0.9}) as unfinished:
        unfinished.add({"name": "m3"})
    assert kept(out) == ["m0", "m1", "m2", "m3"]


def test_a_file_of_something_else(out: Path) -> None:
    (file,) = out.parent.iterdir()
    for content in (b"", b"\xff\xfe", b"{}\n"):
        file.write_bytes(content)
        assert kept(out) == []
