from __future__ import annotations

import gzip
import io
import json
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.sources import framed
from data_pipeline.sources.errors import DataError
from data_pipeline.sources.extents import HashedFile
from data_pipeline.sources.formats import MustBeRewritten

LINES = [json.dumps({"text": f"document {number} " + "é" * (number % 50)}).encode() + b"\n" for number in range(500)]


def scan(data: bytes) -> list[tuple[int, int, int, int]]:
    with HashedFile(io.BytesIO(data), lambda size: None) as file:
        return [tuple(extent) for batch in framed.scan(file, "a.jsonl.zst") for extent in batch.tolist()]


def write(lines: list[bytes]) -> tuple[bytes, list[tuple[int, int, int, int]]]:
    file = io.BytesIO()
    written = [extent for batch in framed.write_frames(file, lines, lambda: None) for extent in batch.tolist()]
    return file.getvalue(), written


def frames_of(data: bytes, size: int) -> bytes:
    return b"".join(zstandard.ZstdCompressor().compress(data[at : at + size]) for at in range(0, len(data), size))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([b"\n", b" \n", b"{}\n", b"x" * 300 + b"\n"]), max_size=60), st.integers(1, 1000))
def test_what_is_written_is_what_is_found(lines: list[bytes], size: int) -> None:
    before, framed.FRAME_BYTES = framed.FRAME_BYTES, size
    try:
        data, written = write(lines)
    finally:
        framed.FRAME_BYTES = before
    assert scan(data) == written
    assert zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read() == b"".join(lines)
    assert sum(documents for *_, documents in written) == sum(1 for line in lines if line.strip())
    for start, length, crc, documents in written:
        frame = data[start : start + length]
        assert zlib.crc32(frame) == crc
        assert len(framed.reader(lambda: io.BytesIO(data), "", None)(0, frame)) == documents


def test_skippable_frames_are_skipped_and_incompressible_blocks_are_followed() -> None:
    noise = json.dumps({"text": bytes(range(256)).hex() * 2000}).encode() + b"\n"
    frames = [zstandard.ZstdCompressor(level=level, write_checksum=level > 3).compress(noise) for level in (-5, 3, 9)]
    zeros = zstandard.ZstdCompressor().compress(b" " * 300_000 + b"{}\n")
    skippable = b"\x5a\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    data = skippable + b"".join(frames) + skippable + zeros
    assert [documents for *_, documents in scan(data)] == [1, 1, 1, 1]
    assert list(framed.lines(io.BytesIO(data), "a.jsonl.zst")) == [noise] * 3 + [b" " * 300_000 + b"{}\n"]


def test_an_empty_frame_holds_no_document() -> None:
    empty = zstandard.ZstdCompressor().compress(b"")
    first, last = (zstandard.ZstdCompressor().compress(content) for content in (LINES[0], LINES[1].rstrip(b"\n")))
    data = empty + first + empty + last + empty
    assert [documents for *_, documents in scan(data)] == [1, 1]
    assert list(framed.lines(io.BytesIO(data), "a.jsonl.zst")) == [LINES[0], LINES[1].rstrip(b"\n")]
    with pytest.raises(MustBeRewritten):
        scan(last + empty + first)


def test_files_that_must_be_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"".join(LINES)
    stream = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(stream, closefd=False) as writer:
        writer.write(content)
    for data in (frames_of(content, 1000), stream.getvalue()):
        with pytest.raises(MustBeRewritten):
            scan(data)
    whole = zstandard.ZstdCompressor().compress(content)
    assert [documents for *_, documents in scan(whole)] == [len(LINES)]
    monkeypatch.setattr(framed, "MAX_EXTENT_BYTES", len(content) - 1)
    with pytest.raises(MustBeRewritten):
        scan(whole)


COMPRESS = {
    "a.jsonl.gz": gzip.compress,
    "b.jsonl.gz": lambda data: gzip.compress(data[:5000]) + gzip.compress(data[5000:]) + bytes(512),
    "c.jsonl.zst": zstandard.ZstdCompressor().compress,
    "d.jsonl.zst": lambda data: frames_of(data, 777),
}


@pytest.mark.parametrize("name", COMPRESS)
@pytest.mark.parametrize("piece", [1 << 18, 100])
def test_lines_of_any_compressed_file(name: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framed, "_PIECE", piece)
    lines = [*LINES, b"\n", b"a\rb\x0bc\n", b"the last, without an end"]
    data = COMPRESS[name](b"".join(lines))
    assert list(framed.lines(io.BytesIO(data), name)) == lines
    assert framed.lines_of(io.BytesIO(data), name, [3, 500, 501]) == [3, 501, 502]


@pytest.mark.parametrize("name", COMPRESS)
def test_a_truncated_file_says_where_it_ends(name: str) -> None:
    data = COMPRESS[name](b"".join(LINES)).rstrip(b"\0")
    cut = len(data) - 20
    found: list[bytes] = []
    with pytest.raises(
        DataError, match=rf"{name} ends at byte {cut}, before its compressed stream does, inside line \d+; fetch"
    ):
        found.extend(framed.lines(io.BytesIO(data[:cut]), name))
    assert found == LINES[: len(found)]


@pytest.mark.parametrize("name", COMPRESS)
def test_a_flipped_bit_never_gives_other_text(name: str) -> None:
    content = b"".join(LINES)
    data = bytearray(COMPRESS[name](content).rstrip(b"\0"))
    for place in range(3, len(data), 97):
        data[place] ^= 4
        found: list[bytes] = []
        failure = None
        try:
            found.extend(framed.lines(io.BytesIO(data), name))
        except DataError as error:
            failure = str(error)
        # Frames of Zstandard without a checksum cannot tell; gzip always can.
        assert name.endswith("zst") or failure is not None or found == LINES
        assert failure is None or (name in failure and "inside line" in failure)
        data[place] ^= 4


def test_damaged_frames_say_where_they_are() -> None:
    data, written = write([b"x" * 70_000 + b"\n", b"y" * 70_000 + b"\n", *LINES])
    second = written[1][0]
    with pytest.raises(
        DataError, match=rf"a.jsonl.zst ends at byte {second + 20}, inside the frame .* byte {second}; fetch"
    ):
        scan(data[: second + 20])
    flipped = bytearray(data)
    flipped[written[-1][0] + 300] ^= 1
    with pytest.raises(DataError, match=rf"is damaged in the frame at byte {written[-1][0]} \(.*\); fetch it again"):
        scan(bytes(flipped))
    with pytest.raises(DataError, match=rf"has at byte {second} something that is not Zstandard; fetch or compress"):
        scan(data[:second] + b"GARBAGE GARBAGE GARBAGE")


def test_values_that_json_has_not_never_look_like_text() -> None:
    assert json.loads(framed.json_line({"text": "é", "raw": b"abc"})) == {"text": "é", "raw": {"not JSON": "bytes"}}
