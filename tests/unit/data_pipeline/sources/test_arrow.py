"""Arrow: record batches of both formats as extents, found by our own look at the messages."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.sources import arrow
from data_pipeline.sources.errors import DataError
from data_pipeline.sources.formats import MustBeRewritten

NEW: dict[str, Callable[..., Any]] = {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file}


def written(table: pa.Table, kind: str = "stream", rows: int = 10, **options: Any) -> bytes:
    file = io.BytesIO()
    with NEW[kind](file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return file.getvalue()


def read(data: bytes, columns: Sequence[str] | None = None) -> list[Any]:
    reader = arrow.reader(lambda: arrow.head(io.BytesIO(data), "a.arrow"), "a.arrow", columns)
    extents = list(arrow.scan(io.BytesIO(data), "a.arrow"))
    return [
        record for number, extent in enumerate(extents) for record in reader(number, data[extent.start : extent.end])
    ]


RECORDS = [{"text": f"text {n}", "n": n, "tags": [{"k": n}] * (n % 3)} for n in range(25)]
TABLE = pa.Table.from_pylist(RECORDS)


@pytest.mark.parametrize("kind", NEW)
@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_batches_are_read_from_their_bytes(kind: str, compression: str | None) -> None:
    data = written(TABLE, kind, compression=compression)
    assert [extent.documents for extent in arrow.scan(io.BytesIO(data), "")] == [10, 10, 5]
    assert read(data) == RECORDS
    assert read(data, ["n", "missing"]) == [{"n": record["n"]} for record in RECORDS]


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text()), rows=st.integers(1, 7), kind=st.sampled_from(sorted(NEW)))
def test_whatever_is_written_is_read(texts: list[str], rows: int, kind: str) -> None:
    data = written(pa.table({"text": pa.array(texts, pa.string())}), kind, rows)
    assert [record["text"] for record in read(data)] == texts


def test_batches_without_rows_are_no_extents() -> None:
    file = io.BytesIO()
    with pa.ipc.new_stream(file, TABLE.schema) as writer:
        for part in (TABLE[:0], TABLE[:5], TABLE[:0], TABLE[5:]):
            for batch in part.to_batches() or [pa.RecordBatch.from_pylist([], TABLE.schema)]:
                writer.write_batch(batch)
    assert read(file.getvalue()) == RECORDS


@pytest.mark.parametrize("kind", NEW)
def test_dictionaries_and_large_batches_are_rewritten(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a", "b", "a"]
    dictionary = written(pa.table({"text": pa.array(texts).dictionary_encode()}), kind)
    monkeypatch.setattr(arrow, "MAX_EXTENT_BYTES", 100)
    large = written(pa.table({"text": pa.array(texts)}), kind)
    for data in (dictionary, large):
        with pytest.raises(MustBeRewritten):
            list(arrow.scan(io.BytesIO(data), ""))
        assert [json.loads(line) for line in arrow.lines(io.BytesIO(data), "")] == [{"text": text} for text in texts]


def test_what_is_no_text_damages_its_record_alone() -> None:
    column = pa.array([b"fine", b"not \xff fine", b"fine too"]).view(pa.string())
    first, second, third = read(written(pa.table({"text": column})))
    assert (first, third) == ({"text": "fine"}, {"text": "fine too"})
    assert "cannot be decoded" in second
    assert "UTF8" in second


def test_offsets_that_point_anywhere_are_damage_and_not_followed() -> None:
    data = bytearray(written(pa.table({"text": ["first", "second", "third"]})))
    offsets = b"".join(n.to_bytes(4, "little") for n in (0, 5, 11, 16))
    at = bytes(data).index(offsets)
    data[at + 4 : at + 8] = (2**30).to_bytes(4, "little")
    found = read(bytes(data))
    assert all("cannot be decoded" in why for why in found[:2])
    assert found[2] == {"text": "third"}


def test_a_damaged_copy_source_is_told_with_the_batch() -> None:
    data = bytearray(
        written(pa.table({"text": pa.array(["a", "b"] * 500).dictionary_encode()}), rows=500, compression="zstd")
    )
    frame = bytes(data).rindex(b"\x28\xb5\x2f\xfd")
    data[frame + 4] ^= 0xFF
    with pytest.raises(DataError, match=r"a.arrow is damaged in its record batch 1, before byte \d+: .*fetch it again"):
        list(arrow.lines(io.BytesIO(bytes(data)), "a.arrow"))


@pytest.mark.parametrize("kind", NEW)
def test_a_file_cut_anywhere_is_told(kind: str) -> None:
    data = written(TABLE, kind)
    for length in range(0, len(data), 13):
        with pytest.raises(DataError, match=rf"a.arrow ends at byte {length}\b.*again"):
            list(arrow.scan(io.BytesIO(data[:length]), "a.arrow"))


@pytest.mark.parametrize("kind", NEW)
def test_flipped_bits_never_crash_the_scan(kind: str) -> None:
    data = written(TABLE, kind, rows=5)
    for at in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        try:
            extents = list(arrow.scan(io.BytesIO(bytes(damaged)), "a.arrow"))
        except (DataError, MustBeRewritten):
            continue
        assert all(0 < extent.start < extent.end <= len(data) for extent in extents)


def test_a_wrong_number_of_rows_is_noticed_before_anybody_makes_room_for_them() -> None:
    data = written(TABLE, rows=25)
    (extent,) = arrow.scan(io.BytesIO(data), "")
    rows = (25).to_bytes(8, "little")
    at = data.index(rows, extent.start)
    damaged = data[:at] + (2**50 + 25).to_bytes(8, "little") + data[at + 8 :]
    with pytest.raises(DataError, match=rf"damaged in the message at byte {extent.start}"):
        list(arrow.scan(io.BytesIO(damaged), "a.arrow"))


def test_what_is_no_arrow_file_is_told() -> None:
    with pytest.raises(DataError, match=r"at byte 0 something that is no Arrow message"):
        list(arrow.scan(io.BytesIO(b'{"text": "a"}\n'), "a.arrow"))
    data = written(TABLE)
    batches = data[next(arrow.scan(io.BytesIO(data), "")).start :]
    with pytest.raises(DataError, match=r"does not begin with a schema"):
        list(arrow.scan(io.BytesIO(batches), "a.arrow"))
    with pytest.raises(DataError, match=r"is damaged in its schema"):
        arrow.reader(lambda: data[:16], "a.arrow", None)(0, b"")


def test_a_name_of_a_column_that_is_no_unicode_is_told() -> None:
    data = written(TABLE).replace(b"text\0", b"\xf2ext\0")
    with pytest.raises(
        DataError, match=r"a.arrow is damaged in its schema \('utf-8' codec can't decode .*fetch it again"
    ):
        read(data)
