from __future__ import annotations

from pathlib import Path

import pytest

from evals.code.program import Verdict
from evals.code.verdicts import append_verdict, read_verdicts

FIRST = Verdict(passed=True, reason="passed", seconds=0.25)
SECOND = Verdict(passed=False, reason="raised NameError", seconds=1.5, detail="NameError: name 'ä' is not defined\n")


def test_verdicts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    assert read_verdicts(path) == {}
    append_verdict(path, "a", FIRST)
    append_verdict(path, "b", SECOND)
    assert read_verdicts(path) == {"a": FIRST, "b": SECOND}
    assert len(path.read_text().splitlines()) == 2


def test_a_file_cut_anywhere_loses_only_what_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    append_verdict(path, "a", FIRST)
    first = path.stat().st_size
    append_verdict(path, "b", SECOND)
    whole = path.read_bytes()
    for size in range(first, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert read_verdicts(path) == {"a": FIRST}
        append_verdict(path, "c", SECOND)
        assert read_verdicts(path) == {"a": FIRST, "c": SECOND}


@pytest.mark.parametrize("line", ["1", "[]", "{}", '{"key": "x"}', '{"key": "x", "odd": 1}', "\x00", '{"key": []}'])
def test_lines_that_are_no_verdicts_are_passed_over(tmp_path: Path, line: str) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_text(line + "\n")
    append_verdict(path, "a", FIRST)
    assert read_verdicts(path) == {"a": FIRST}
