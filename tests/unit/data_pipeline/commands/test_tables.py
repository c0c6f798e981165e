from __future__ import annotations

import pytest

from data_pipeline.commands.tables import print_table, short_location, table


def test_tables_are_whole_and_take_brackets_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    made = table(["[source]", "file"], ["count"], title="of [all]")
    made.add_row("[bold]a[/bold]", "x" * 90, "1,234")
    print_table(made)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "of [all]"
    assert any(line.split() == ["[bold]a[/bold]", "x" * 90, "1,234"] for line in lines)


def test_locations_are_shown_inside_their_folder() -> None:
    assert short_location("/data/code/a.jsonl", "/data/code") == "a.jsonl"
    assert short_location("/data/code/sub/a.txt", "/data/code/") == "sub/a.txt"
    assert short_location("/data/a.jsonl", "/data/a.jsonl") == "a.jsonl"
    assert short_location("s3://b/code/a.jsonl", "s3://b/code") == "a.jsonl"
    assert short_location("/other/a.jsonl", "/data/code") == "/other/a.jsonl"
