"""What was read before: a cache that cannot be trusted is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.collect.cache import VERSION, read_cache, write_cache

ITEMS = {"a|record|run.json:1:2": {"x": [1, None]}, 'quo"te\n': {"y": "ü"}}


def test_items_come_back(tmp_path: Path) -> None:
    write_cache(tmp_path / "new" / "cache.jsonl", ITEMS)
    assert read_cache(tmp_path / "new" / "cache.jsonl") == ITEMS
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cache.jsonl"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}\n",
        "\x00\x01",
        json.dumps(["collect", VERSION + 1]) + '\n["a", {"x": 1}]\n',
        '["a", {"x": 1}]\n',
        "[" * 9999,
    ],
)
def test_another_version_or_no_cache_is_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "cache.jsonl").write_text(text)
    assert read_cache(tmp_path / "cache.jsonl") == {}
    assert read_cache(tmp_path / "missing") == {}
    (tmp_path / "bytes").write_bytes(b"\xff\xfe" + text.encode())
    assert read_cache(tmp_path / "bytes") == {}


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    write_cache(path, ITEMS)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-5], '["b", 3]', '{"c": 1}', lines[2], '["cut", {"x']))
    assert read_cache(path) == {'quo"te\n': {"y": "ü"}}
