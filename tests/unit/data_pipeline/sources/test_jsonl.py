from __future__ import annotations

import io
import json
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.sources import extents, jsonl
from data_pipeline.sources.errors import DataError
from data_pipeline.sources.extents import HashedFile


def scan(data: bytes) -> list[tuple[int, int, int]]:
    with HashedFile(io.BytesIO(data), lambda size: None) as file:
        return [tuple(extent) for batch in jsonl.scan(file, "a.jsonl") for extent in batch.tolist()]


def oracle(data: bytes) -> list[tuple[int, int, int]]:
    found, position = [], 0
    for line in io.BytesIO(data):
        if line.strip():
            found.append((position, len(line), zlib.crc32(line)))
        position += len(line)
    return found


LINES = st.lists(st.sampled_from([b"", b" ", b"\t\r", b"a", b"{}", b"longer line", b"\rb", b" c"]), max_size=20)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_lines_are_found_whatever_the_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "CHUNK", chunk)

    @settings(max_examples=50, deadline=None)
    @given(LINES, st.booleans())
    @example([b"  ", b" ", b"x"], False)
    def check(lines: list[bytes], ends: bool) -> None:
        data = b"\n".join(lines) + (b"\n" if ends else b"")
        assert scan(data) == oracle(data)

    check()


def test_a_line_too_long_for_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents, "MAX_LENGTH", 5)
    monkeypatch.setattr(jsonl, "CHUNK", 4)  # longer lines than a chunk alone can be too long
    for data in (b"ab\n123456\n", b"ab\n123456"):
        with pytest.raises(DataError, match=r"a\.jsonl has at byte 3 a record of \d bytes, above 5; split it"):
            scan(data)


@settings(max_examples=50)
@given(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.none())))
def test_what_json_writes_is_read(record: dict[str, object]) -> None:
    try:
        line = json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        line = json.dumps(record).encode()
    for ends in (b"", b"\n", b"\r\n"):
        assert jsonl.parse_line(line + ends) == record
    assert jsonl.parse_line(b"\xef\xbb\xbf" + line) == record


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a', "is not valid JSON (Unterminated string"),
        (b"[1]", "is not a JSON object but list"),
        (b'{"text": "\xff"}', "is not UTF-8 (invalid start byte at byte 10 of it)"),
        (b'{"text": "\xed\xa0\x80"}', "is not UTF-8 (invalid continuation byte at byte 10 of it)"),
        ('{"text": "a"}'.encode("utf-16"), "is not UTF-8 (invalid start byte at byte 0"),
        ('{"text": "a"}'.encode("utf-16-le"), "is not valid JSON"),
        (b'{"a":' * 100_000, "is nested too deep"),
    ],
)
def test_a_damaged_line_says_why(line: bytes, reason: str) -> None:
    found = jsonl.parse_line(line)
    assert isinstance(found, str)
    assert found.startswith(reason)
    assert found.endswith("write it again or remove it") or "object" in found


def test_a_number_of_more_digits_than_can_be_read() -> None:
    line = b'{"text": "a", "n": ' + b"7" * 5000 + b"}"
    assert jsonl.parse_line(line) == "has a number of more than 4,300 digits; correct it or remove it"


def test_lines_at() -> None:
    data = b"a\n\nb\nc"
    assert jsonl.lines_at(io.BytesIO(data), [0, 2, 3, 5]) == [0, 1, 2, 3]
