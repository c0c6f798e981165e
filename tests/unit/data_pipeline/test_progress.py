from __future__ import annotations

from io import StringIO

from data_pipeline.progress import ProgressReporter


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_where_there_is_no_terminal() -> None:
    file = StringIO()
    with ProgressReporter(file) as reporter:
        for done in range(1, 101):
            reporter.report("reading", done, 100)
    assert file.getvalue() == "reading: 1/100\nreading: 100/100\n"


def test_bars_on_a_terminal() -> None:
    file = Terminal()
    with ProgressReporter(file) as reporter:
        for done in range(1, 4):
            reporter.report("reading", done, 3)
    assert "3/3" in file.getvalue()
    assert "reading: 3/3" not in file.getvalue()
