"""The benchmark of resuming: from which positions, in which turns, and a state before the first row."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peers
from benchmarks.data_corpus import numbered_texts, tokenizer_files, write_jsonl
from benchmarks.data_resume import Contender, compare, measure

FAR = 1_000_000


def contender(name: str, *positions: int) -> Contender:
    return Contender(
        name, "python", "script.py", Path("data"), Path("tokenizer"), Path("kept"), f"{name} 1.0", positions
    )


def test_the_far_position_is_compared_with_the_start() -> None:
    ours, peer = contender("ours", 0, FAR), contender("mosaicml", FAR)
    ours.seconds, peer.seconds = {0: [2.0, 4.0], FAR: [3.0, 6.0]}, {FAR: [6.0, 12.0]}
    same = {"repeated": 0, "lost": 0, "same_order": True, "same_state": True}
    claims = compare([ours, peer], FAR, {"ours": {"0": same, str(FAR): same}})
    assert {line["claim"]: line["ratio"] for line in claims} == {
        "data_resume_rows_repeated_or_lost": 0.0, "data_resume_row_1000000_over_row_0": 1.5,
        "data_resume_1000000_over_mosaicml": 0.5,
    }  # fmt: skip


def test_contenders_take_turns_at_their_own_positions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    order: list[tuple[str, int]] = []

    def run(self: Contender, action: str, positions: tuple[int, ...], window: int, scratch: Path) -> dict[str, Any]:
        order.append((self.name, *positions))
        return {"seconds": 1.0}

    monkeypatch.setattr(Contender, "run", run)
    entered = [contender("ours", 0, FAR), contender("mosaicml", FAR)]
    measure(entered, 2, tmp_path)
    assert order == [
        ("ours", FAR), ("ours", 0), ("mosaicml", FAR), ("mosaicml", FAR), ("ours", 0), ("ours", FAR)
    ]  # fmt: skip
    assert entered[1].seconds == {FAR: [1.0, 1.0]}


def test_ours_goes_on_from_before_the_first_row(tmp_path: Path) -> None:
    write_jsonl(numbered_texts(3000), tmp_path / "documents", 2)
    tokenizer, _ = tokenizer_files(tmp_path)
    kept = tmp_path / "kept"
    kept.mkdir()
    common = (
        "--data",
        tmp_path / "documents",
        "--kept",
        kept,
        "--tokenizer",
        tokenizer,
        "--seq-len",
        64,
        "--window",
        600,
    )

    def run(action: str, *positions: int) -> dict[str, Any]:
        more = ("--positions", *positions, "--batch", 2)
        return peers.run(sys.executable, "ours_resume.py", action, *common, *more, scratch=tmp_path, timeout=120)

    assert run("walk", 0, 100) == {"items": 700}
    assert json.loads((kept / "state-0.json").read_text()) != json.loads((kept / "state-100.json").read_text())
    assert run("exact", 0) == {
        "compared": 600, "repeated": 0, "of_those_seen_before": 0, "lost": 0, "same_order": True, "same_state": True
    }  # fmt: skip
