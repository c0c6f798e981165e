from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import SourceConfig
from data_pipeline.sources import jsonl, shard
from data_pipeline.sources.positions import positions
from data_pipeline.sources.source import Source, open_source

Write = Callable[[Path, Sequence[str]], Path]


@pytest.fixture
def source(tmp_path: Path, write_jsonl: Write) -> Source:
    for name in "abc":
        write_jsonl(tmp_path / f"{name}.jsonl", ["x"] * 10)
    return open_source("s", SourceConfig(path=str(tmp_path)), cache_dir=None, cache_bytes=0)


def test_every_file_is_read_once(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [25, 3, 0, 29, 3, 20]
    expected = {number: source.where(number) for number in sorted(set(numbers))}
    calls: list[list[int]] = []
    lines_at = jsonl.lines_at

    def counted(file: Any, starts: Sequence[int]) -> list[int]:
        calls.append(list(starts))
        return lines_at(file, starts)

    monkeypatch.setattr(jsonl, "lines_at", counted)
    found = positions(source, numbers)
    assert found == expected
    assert list(found) == sorted(expected)
    assert [len(starts) for starts in calls] == [2, 3]
    assert positions(source, []) == {}


def test_a_large_file_is_not_read_to_name_a_line(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "MAX_READ_FOR_LINES", source.shards[0].num_bytes - 1)
    assert positions(source, [12]) == {12: f"{source.shards[1].location}, record 3 (byte 28)"}
