"""The table of one evaluation's scores."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from evals.score_table import COLUMNS, notes, rows, table

CHOICE = {"metric": "accuracy", "score": 0.5, "stderr": None, "chance": 0.25, "n": 1, "nll": 1.25, "ece": None}
HARNESS = {
    "metric": "accuracy",
    "score": 0.125,
    "stderr": 0.0625,
    "chance": 0.0,
    "n": 8,
    "harness": {"metric": "exact_match", "filter": "strict-match"},
    "truncated": 3,
    "not_finite": 2,
}


def test_a_row_has_what_its_task_has() -> None:
    bits = {"metric": "bits_per_byte", "score": 1.5, "stderr": 0.25, "chance": None, "n": 3}
    code = HARNESS | {
        "harness": {"metric": "pass@1", "filter": "none"}, "pass_at_k": {"1": 0.125, "8": 0.5}, "truncated": 0, "not_finite": 0
    }  # fmt: skip
    tasks = {"a": bits, "b": CHOICE, "c": HARNESS, "d": code}
    assert rows(tasks) == [
        ("a", "bits_per_byte", "1.5000 ± 0.2500", "", "3", "", ""),
        ("b", "accuracy", "0.5000", "0.2500", "1", "1.2500", "undefined"),
        ("c", "exact_match, strict-match", "0.1250 ± 0.0625", "0.0000", "8", "", ""),
        ("d", "pass@1", "0.1250 ± 0.0625", "0.0000", "8", "", ""),
    ]
    assert notes(tasks) == ["c: 3 contexts cut to the model's length, 2 answers not finite", "d: pass@8 0.5000"]


def test_an_entry_that_lacks_keys_is_shown_with_dashes() -> None:
    tasks = {"a": {}, "b": {"metric": "f1", "score": None, "pass_at_k": {"8": None}, "harness": {"task": "b"}}}
    assert rows(tasks) == [("a", "–", "–", "", "–", "", ""), ("b", "f1", "undefined", "", "–", "", "")]
    assert notes(tasks) == ["b: pass@8 undefined"]


@pytest.mark.parametrize("width", [76, 200])
def test_no_figure_is_cut_on_a_narrow_terminal(width: int) -> None:
    text = io.StringIO()
    name = "humaneval-n4-t0.2@4"
    Console(file=text, width=width).print(table({name: CHOICE | HARNESS}))
    assert "…" not in text.getvalue()
    for shown in (*COLUMNS, "0.1250 ± 0.0625", "1.2500", "undefined"):
        assert shown in text.getvalue()
