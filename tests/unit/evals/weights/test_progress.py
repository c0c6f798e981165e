"""Progress, where nobody watches and on a terminal."""

from __future__ import annotations

import io

import pytest

from evals.weights import progress
from evals.weights.progress import showing_progress


def test_lines_tell_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now, file = [100.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with showing_progress("rank of x", file) as report:
        for done in (1, 2, 3, 4):
            now[0] += 20
            report(done, 4, f"m{done}")
    assert file.getvalue().splitlines() == [
        "rank of x: 25 % done, about 60 s left (m1)",
        "rank of x: 75 % done, about 20 s left (m3)",
        "rank of x: 100 % done, about 0 s left (m4)",
    ]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "160")
    file = Terminal()
    with showing_progress("rank of [x]", file) as report:
        report(1, 4, "layers.0.q_proj.weight")
    assert "rank of [x]" in file.getvalue()
    assert "25%" in file.getvalue()
    assert "layers.0.q_proj.weight" in file.getvalue()
