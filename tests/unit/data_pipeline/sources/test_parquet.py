"""Parquet: row groups as extents."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet as pyarrow_parquet

from data_pipeline.sources import formats, parquet
from data_pipeline.sources.errors import DataError
from data_pipeline.sources.formats import Extent, MustBeRewritten


def written(records: Sequence[dict[str, Any]] | pa.Table, **settings: Any) -> bytes:
    table = records if isinstance(records, pa.Table) else pa.Table.from_pylist(list(records))
    file = io.BytesIO()
    pyarrow_parquet.write_table(table, file, **settings)
    return file.getvalue()


def read(data: bytes, columns: Sequence[str] | None = None) -> list[Any]:
    reader = parquet.reader(lambda: parquet.head(io.BytesIO(data), "a.parquet"), "a.parquet", columns)
    extents = list(parquet.scan(io.BytesIO(data), "a.parquet"))
    return [
        record for number, extent in enumerate(extents) for record in reader(number, data[extent.start : extent.end])
    ]


RECORDS = [{"text": f"text {n}", "n": n, "tags": [{"k": n}] * (n % 3)} for n in range(25)]


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize(
    "pages", [{}, {"write_page_checksum": True}, {"data_page_version": "2.0", "write_page_index": True}]
)
def test_row_groups_are_read_from_their_bytes(compression: str, dictionary: bool, pages: dict[str, Any]) -> None:
    data = written(RECORDS, row_group_size=10, compression=compression, use_dictionary=dictionary, **pages)
    extents = list(parquet.scan(io.BytesIO(data), ""))
    assert [extent.documents for extent in extents] == [10, 10, 5]
    assert extents[0].start == 4
    assert all(before.end == after.start for before, after in itertools.pairwise(extents))
    assert read(data) == RECORDS
    assert read(data, ["n", "missing"]) == [{"n": record["n"]} for record in RECORDS]


def test_row_groups_without_rows_are_no_extents() -> None:
    file = io.BytesIO()
    table = pa.Table.from_pylist(RECORDS)
    with pyarrow_parquet.ParquetWriter(file, table.schema) as writer:
        for part in (table[:0], table[:5], table[:0], table[5:]):
            writer.write_table(part)
    assert read(file.getvalue()) == RECORDS
    assert read(written(table[:0])) == []


def test_a_large_row_group_is_rewritten_unless_it_is_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_EXTENT_BYTES", 1000)
    data = written([{"text": str(list(range(n, n + 300)))} for n in range(3)], compression="none")
    with pytest.raises(MustBeRewritten):
        list(parquet.scan(io.BytesIO(data), ""))
    assert [json.loads(line) for line in parquet.lines(io.BytesIO(data), "")] == read_all(data)
    one = written([{"text": str(list(range(300)))}], compression="none")
    assert [extent.documents for extent in parquet.scan(io.BytesIO(one), "")] == [1]
    assert formats.MAX_EXTENT_BYTES == 16 * 10**6


def read_all(data: bytes) -> list[Any]:
    return list(pyarrow_parquet.read_table(io.BytesIO(data)).to_pylist())


def test_text_that_is_not_utf8_damages_its_record_alone() -> None:
    column = pa.array([b"fine", b"not \xff fine", b"fine too"]).view(pa.string())
    data = written(pa.table({"text": column}))
    first, second, third = read(data)
    assert (first, third) == ({"text": "fine"}, {"text": "fine too"})
    assert "cannot be decoded" in second
    assert "UTF8" in second
    lines = [json.loads(line) for line in parquet.lines(io.BytesIO(data), "")]
    assert [type(line) for line in lines] == [dict, str, dict]


def test_a_damaged_row_group_damages_its_records_with_the_position() -> None:
    data = written(RECORDS, row_group_size=10, compression="zstd", write_page_checksum=True)
    extents = list(parquet.scan(io.BytesIO(data), ""))
    where = f"(1, 10 rows, bytes {extents[1].start} to {extents[1].end})"
    damaged = 0
    for at in range(extents[1].start, extents[1].end, 3):
        flipped = data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :]
        found = read(flipped)
        if found != RECORDS:
            damaged += 1
            assert found[:10] == RECORDS[:10]
            assert found[20:] == RECORDS[20:]
            assert all(where in why and "write the file again" in why for why in found[10:20])
            with pytest.raises(DataError, match=r"is damaged in its row group 1 \(10 rows, bytes .*fetch it again"):
                list(parquet.lines(io.BytesIO(flipped), "a.parquet"))
    # Some bytes are statistics that nobody reads.
    assert damaged > 30


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1PAR1", b"PAR1" + b"\xff\xff\xff\x7fPAR1", b"{}" * 100])
def test_what_is_no_parquet_file_is_told(data: bytes) -> None:
    with pytest.raises(DataError, match=r"a.parquet (does not end, at byte|is damaged in its last).*again"):
        list(parquet.scan(io.BytesIO(data), "a.parquet"))


def test_metadata_that_point_outside_of_the_file_are_told() -> None:
    data = written([{"text": str(list(range(3000)))}], compression="none")
    (extent,) = parquet.scan(io.BytesIO(data), "")
    shortened = data[:50] + data[extent.end :]
    with pytest.raises(
        DataError, match=rf"has {len(shortened)} bytes, and says that it has rows at bytes 4 to {extent.end}"
    ):
        list(parquet.scan(io.BytesIO(shortened), "a.parquet"))


def test_extents_ascend(monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(RECORDS, row_group_size=10)
    monkeypatch.setattr(parquet, "_extent", lambda metadata, number: Extent(10 - number, 20 - number, 3))
    with pytest.raises(MustBeRewritten):
        list(parquet.scan(io.BytesIO(data), ""))


def test_damaged_metadata_are_an_error_and_no_end_of_the_process() -> None:
    data = written(RECORDS, row_group_size=10)
    start = len(data) - len(parquet.head(io.BytesIO(data), "a.parquet"))
    problems = set()
    for place in range(start, len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (7 if place % 2 else 3)
        try:
            list(parquet.scan(io.BytesIO(damaged), "a.parquet"))
        except DataError as error:
            problems.add(str(error))
        except MustBeRewritten:
            pass
    assert any("is damaged in its metadata, column 0 of row group 0" in problem for problem in problems)
    assert any("its metadata ('utf-8' codec can't decode" in problem for problem in problems)
    assert all(problem.startswith("a.parquet ") for problem in problems)
