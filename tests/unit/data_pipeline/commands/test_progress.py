from __future__ import annotations

from io import StringIO

import pytest

from data_pipeline.commands import progress
from data_pipeline.commands.progress import ProgressReporter


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_where_there_is_no_terminal() -> None:
    file = StringIO()
    with ProgressReporter(file) as reporter:
        for done in range(1, 101):
            reporter.report("reading", done, 100)
    assert file.getvalue() == "reading: 1/100\nreading: 100/100\n"


def test_plain_lines_say_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 7.0, 10.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    file = StringIO()
    with ProgressReporter(file, unit="bytes") as reporter:
        for done in (10_000_000, 20_000_000, 45_000_000, 60_000_000):
            reporter.report("indexing a", done, 60_000_000)
    assert file.getvalue().splitlines() == [
        "indexing a: 10.0/60.0 MB",
        # 10 MB were there at the start: what was done before says nothing about the speed.
        "indexing a: 45.0/60.0 MB, 5.0 MB/s, 0:03 left",
        "indexing a: 60.0/60.0 MB, 5.0 MB/s, took 0:10",
    ]


def test_bars_on_a_terminal() -> None:
    file = Terminal()
    with ProgressReporter(file, unit="documents") as reporter:
        for done in range(1, 4):
            reporter.report("reading [a]", done, 3)
    assert "reading [a]" in file.getvalue()
    assert "3/3 documents" in file.getvalue()
    assert "reading [a]: " not in file.getvalue()
