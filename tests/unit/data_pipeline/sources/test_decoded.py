from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from data_pipeline.config import SourceConfig
from data_pipeline.sources.decoded import DecodedExtents, bytes_in_memory
from data_pipeline.sources.shard import Shard
from data_pipeline.sources.source import open_source


def test_bytes_are_those_of_the_parts() -> None:
    texts = ["x" * 1000, "\u4e00" * 1000]
    size = bytes_in_memory([{"text": text, "tags": ["a" * 500]} for text in texts])
    assert 1000 + 2000 + 2 * 500 < size < 1000 + 2000 + 2 * 500 + 2000
    assert bytes_in_memory("why") == sys.getsizeof("why")


def test_the_last_used_are_kept_as_far_as_memory_goes() -> None:
    one = bytes_in_memory([{"text": "x" * 1000}])
    decoded = DecodedExtents(3 * one + one // 2)
    made: list[int] = []

    def get(number: int, length: int = 1000) -> None:
        records = decoded.get(number, lambda: made.append(number) or [{"text": "x" * length}])
        assert records == [{"text": "x" * length}]
        assert decoded.num_bytes <= max(3 * one + one // 2, bytes_in_memory(records))

    for number in (1, 2, 3, 1, 4, 1, 3, 2):
        get(number)
    assert made == [1, 2, 3, 4, 2]
    get(5, 10**6)
    get(5, 10**6)
    assert made[5:] == [5], "one is kept, however large"
    get(1)
    assert decoded.num_bytes == one
    decoded.clear()
    assert decoded.num_bytes == 0
    get(1)
    assert made[6:] == [1, 1]


def test_parts_of_an_extent_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [{"text": f"{number}", "tags": [str(number)]} for number in range(20)]
    parquet.write_table(pa.Table.from_pylist(expected), tmp_path / "a.parquet", row_group_size=10)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(record) + "\n" for record in expected))
    source = open_source("a", SourceConfig(path=str(tmp_path)), cache_dir=None, cache_bytes=0)
    decode, made = Shard.decode, []
    monkeypatch.setattr(Shard, "decode", lambda self, number, data: made.append(number) or decode(self, number, data))
    decoded = DecodedExtents(1 << 20)
    for part in ((0, 3), (3, 9), (2, 3), (10, 11)):
        for _ in range(2):
            records = source.records(*part, decoded)
            assert records == expected[slice(*part)]
            # A caller may do with them as it likes.
            records[0]["tags"].append("changed")
            records[0]["text"] = "changed"
    assert made == [0, 1]
    kept = decoded.num_bytes
    # Nothing is kept of whole extents, of which a line is one, nor of what goes across several.
    assert source.records(0, 10, decoded) == expected[:10]
    assert source.records(5, 15, decoded) == expected[5:15]
    assert source.records(21, 22, decoded) == expected[1:2]
    assert decoded.num_bytes == kept
    again = pickle.loads(pickle.dumps(source))
    assert again.records(0, 2, decoded) == expected[:2]
