"""The same documents, in every format and place, are the same records in the same order; damage is told, never read."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from data_pipeline.config import SourceConfig
from data_pipeline.encoding.records import BadRecordError, text_of
from data_pipeline.sources.errors import DamagedRecordError, DataError
from data_pipeline.sources.source import Source, open_source

TEXTS = [
    "",
    "a line\nand another\r\n\nand a last one\n",
    "Grüße, 世界, \U0001f600, e\u0301, \u2028 and \u0085 end no line",
    '{"text": "quoted \\"JSON\\""}',
    "long " * 40_000,
    "\ttabs, \x01 controls and \x7f",
    *(f"document {number} " + "lorem ipsum dolor " * (number % 7) for number in range(44)),
]
RECORDS = [
    {"text": text, "number": number, "messages": [{"role": "user", "content": text[:20]}]}
    for number, text in enumerate(TEXTS)
]


def write_jsonl(folder: Path, records: Sequence[dict[str, Any]]) -> Path:
    path = folder / "a.jsonl"
    path.write_bytes(_lines(records))
    return path


def write_gzip(folder: Path, records: Sequence[dict[str, Any]]) -> Path:
    path = folder / "a.jsonl.gz"
    path.write_bytes(gzip.compress(_lines(records)))
    return path


def write_zstandard(folder: Path, records: Sequence[dict[str, Any]]) -> Path:
    path = folder / "a.jsonl.zst"
    with path.open("wb") as file, zstandard.ZstdCompressor(write_checksum=True).stream_writer(file) as writer:
        writer.write(_lines(records))
    return path


def write_framed(folder: Path, records: Sequence[dict[str, Any]]) -> Path:
    path = folder / "a.jsonl.zst"
    compress = zstandard.ZstdCompressor(write_checksum=True).compress
    path.write_bytes(b"".join(compress(_lines(records[at : at + 7])) for at in range(0, len(records), 7)))
    return path


def write_parquet(folder: Path, records: Sequence[dict[str, Any]]) -> Path:
    path = folder / "a.parquet"
    parquet.write_table(pa.Table.from_pylist(list(records)), path, row_group_size=16)
    return path


def write_arrow_stream(folder: Path, records: Sequence[dict[str, Any]]) -> Path:
    path = folder / "a.arrow"
    table = pa.Table.from_pylist(list(records))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=16)
    return path


def write_arrow_file(folder: Path, records: Sequence[dict[str, Any]]) -> Path:
    path = folder / "a.arrow"
    table = pa.Table.from_pylist(list(records))
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=16)
    return path


def write_mds(folder: Path, records: Sequence[dict[str, Any]], compression: str | None = None) -> Path:
    """Two shards in the layout that the package writes; test_mds.py compares it with the package's own."""
    target = folder / "mds"
    target.mkdir()
    middle = len(records) // 2
    shards = []
    for part in (records[:middle], records[middle:]):
        data = mds_shard(part)
        raw = {"basename": f"shard.{len(shards):05}.mds", "bytes": len(data), "hashes": {}}
        packed = None
        if compression:
            data = MDS_COMPRESSION[compression](data)
            packed = {"basename": f"{raw['basename']}.{compression}", "bytes": len(data), "hashes": {}}
        (target / str((packed or raw)["basename"])).write_bytes(data)
        shards.append(
            {
                "format": "mds",
                "version": 2,
                "samples": len(part),
                "raw_data": raw,
                "zip_data": packed,
                "compression": compression,
            }
        )
    (target / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return target


MDS_COMPRESSION: dict[str, Callable[[bytes], bytes]] = {
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    "gz": gzip.compress,
    "bz2": bz2.compress,
}


def mds_shard(records: Sequence[dict[str, Any]]) -> bytes:
    names, encodings, sizes = ["messages", "number", "text"], ["json", "int", "str"], [None, 8, None]
    config = {"version": 2, "format": "mds", "compression": None, "hashes": [], "size_limit": 1 << 26}
    config |= {"column_names": names, "column_encodings": encodings, "column_sizes": sizes}
    head = json.dumps(config, sort_keys=True).encode()
    samples = []
    for record in records:
        messages, text = json.dumps(record["messages"]).encode(), record["text"].encode()
        sizes_of = struct.pack("<2I", len(messages), len(text))
        samples.append(sizes_of + messages + struct.pack("<q", record["number"]) + text)
    ends = list(itertools.accumulate(map(len, samples), initial=4 + 4 * (len(samples) + 1) + len(head)))
    return struct.pack(f"<{len(ends) + 1}I", len(samples), *ends) + head + b"".join(samples)


def write_saved_dataset(folder: Path, records: Sequence[dict[str, Any]]) -> Path:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(list(records)).save_to_disk(str(folder / "saved"), num_shards=3)
    return folder / "saved"


def write_texts(folder: Path, records: Sequence[dict[str, Any]]) -> Path:
    target = folder / "texts"
    for number, record in enumerate(records):
        path = target / f"{number // 10}" / f"{number:03}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record["text"].encode())
    return target


def _lines(records: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(
        json.dumps(record, ensure_ascii=number % 2 == 0).encode() + b"\n" for number, record in enumerate(records)
    )


Writer = Callable[[Path, Sequence[dict[str, Any]]], Path]
WRITERS: dict[str, Writer] = {
    "jsonl": write_jsonl,
    "jsonl.gz": write_gzip,
    "jsonl.zst": write_zstandard,
    "framed": write_framed,
    "parquet": write_parquet,
    "arrow stream": write_arrow_stream,
    "arrow file": write_arrow_file,
    "mds": write_mds,
    "mds.zstd": lambda folder, records: write_mds(folder, records, "zstd"),
    "mds.gz": lambda folder, records: write_mds(folder, records, "gz"),
    "mds.bz2": lambda folder, records: write_mds(folder, records, "bz2"),
    "texts": write_texts,
    "saved dataset": write_saved_dataset,
}
HEADED = ["parquet", "arrow stream", "mds"]
"""Formats with a part that says how the rest is to be read."""
CHECKED = ["jsonl.gz", "jsonl.zst", "framed", "mds.zstd", "mds.gz", "mds.bz2"]
"""Formats with checksums of their own, as written here."""
FILES = [name for name in WRITERS if name != "saved dataset"]


def opened(path: Path | str, cache: Path, **settings: Any) -> Source:
    config = SourceConfig(dataset=str(path)) if Path(path, "state.json").is_file() else SourceConfig(path=str(path))
    return open_source("test", config, cache_dir=cache, cache_bytes=10**9, **settings)


def documents(source: Source) -> list[Any]:
    bounds = source.block_starts.tolist()
    return [record for start, stop in itertools.pairwise(bounds) for record in source.records(start, stop)]


def expected(name: str) -> list[dict[str, Any]]:
    return [{"text": text} for text in TEXTS] if name == "texts" else RECORDS


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_records(name: str, tmp_path: Path) -> None:
    source = opened(WRITERS[name](tmp_path, RECORDS), tmp_path / "cache")
    assert source.num_documents == len(RECORDS)
    assert documents(source) == expected(name)
    # Again with the index that was kept, and in another place.
    again = opened(WRITERS[name](_folder(tmp_path / "copy"), RECORDS), tmp_path / "cache2")
    assert documents(opened(_location(name, tmp_path), tmp_path / "cache")) == expected(name)
    assert again.fingerprint == source.fingerprint


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_records_from_a_url(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path, RECORDS)
    url = uploaded(path, f"memory://{tmp_path.name}-{name.replace(' ', '-')}")
    source = opened(url, tmp_path / "cache")
    assert documents(source) == expected(name)
    assert source.fingerprint == opened(path, tmp_path / "cache").fingerprint


@pytest.mark.parametrize("name", ["parquet", "arrow stream", "arrow file", "mds", "saved dataset"])
def test_only_the_wanted_columns_are_decoded(name: str, tmp_path: Path) -> None:
    source = opened(WRITERS[name](tmp_path, RECORDS), tmp_path / "cache", columns=["text", "absent"])
    assert documents(source) == [{"text": text} for text in TEXTS]


@pytest.mark.parametrize("name", ["parquet", "arrow stream", "arrow file", "mds", "saved dataset"])
def test_a_missing_column_is_missed_in_the_records(name: str, tmp_path: Path) -> None:
    source = opened(WRITERS[name](tmp_path, RECORDS), tmp_path / "cache", columns=["content"])
    assert documents(source) == RECORDS
    with pytest.raises(BadRecordError, match=r"has no field 'content'; set text_field to one of its fields: .*text"):
        text_of(documents(source)[0], "content", "text_field")


@pytest.mark.parametrize("name", WRITERS)
def test_a_bit_flipped_after_indexing_is_told_with_its_position(name: str, tmp_path: Path) -> None:
    location = WRITERS[name](tmp_path, RECORDS)
    source = opened(location, tmp_path / "cache")
    _flip_bits(location)
    if source.shards[0].index.copy is not None:
        # The copy is read, which is sound: only opening it anew looks at the original.
        assert documents(source) == expected(name)
        _flip_bits(source.shards[0].index.copy)
    for start, stop in itertools.pairwise(source.block_starts.tolist()):
        try:
            assert source.records(start, stop) == expected(name)[start:stop]
        except DataError as error:
            told = str(error)
    assert any(mark in told for mark in ("record ", "line ", ".txt")), told
    assert "restore" in told or "remove that file" in told


@pytest.mark.parametrize("name", HEADED)
def test_a_bit_flipped_after_indexing_in_what_describes_the_records_is_told(name: str, tmp_path: Path) -> None:
    location = WRITERS[name](tmp_path, RECORDS[6:12])
    source = opened(location, tmp_path / "cache")
    extents = source.shards[0].index.extents
    first, last = int(extents["start"][0]), int(extents["start"][-1] + extents["length"][-1])
    file = Path(source.shards[0].location)
    data, stat = file.read_bytes(), file.stat()
    # The marks at both ends are no news to a reader.
    around = [*range(8, first - 8), *range(last + 8, len(data) - 8)]
    for at in around[:: max(1, len(around) // 40)]:
        file.write_bytes(data[:at] + bytes([data[at] ^ 2]) + data[at + 1 :])
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        with pytest.raises(DataError, match=r"restore the file|fetch"):
            documents(opened(location, tmp_path / "cache"))


@pytest.mark.parametrize("name", WRITERS)
def test_a_bit_flipped_before_indexing_is_told_where_the_format_has_checksums(name: str, tmp_path: Path) -> None:
    location = WRITERS[name](tmp_path, RECORDS)
    _flip_bits(location)
    if name in CHECKED:
        with pytest.raises(DataError, match=r"is damaged .*byte.*fetch"):
            opened(location, tmp_path / "cache")
    else:
        # No checksum is there to tell; the documents are as many as they were, and one of them at most is another.
        found = documents(opened(location, tmp_path / "cache"))
        assert sum(one != other for one, other in zip(found, expected(name), strict=True)) <= 16


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("texts", "jsonl")])
def test_a_truncated_file_is_told_with_where_it_ends(name: str, tmp_path: Path) -> None:
    location = WRITERS[name](tmp_path, RECORDS)
    file = _largest(location)
    data = file.read_bytes()
    for kept in (len(data) - 1, len(data) - 9, len(data) // 2):
        file.write_bytes(data[:kept])
        with pytest.raises(DataError, match=rf"{file.name} .*byte {kept}\b.*(fetch|write)"):
            opened(location, tmp_path / "cache")


def test_a_truncated_jsonl_has_a_damaged_last_record(tmp_path: Path) -> None:
    location = write_jsonl(tmp_path, RECORDS)
    data = location.read_bytes()
    location.write_bytes(data[:-9])
    source = opened(location, tmp_path / "cache")
    *whole, last = documents(source)
    assert whole == RECORDS[:-1]
    assert isinstance(last, DamagedRecordError)
    start = data[:-1].rindex(b"\n") + 1
    assert source.where(len(RECORDS) - 1) == f"{location}, line {len(RECORDS)} (byte {start})"


def uploaded(path: Path, url: str) -> str:
    """Copy a file or folder to the memory filesystem; returns its URL there."""
    if path.is_file():
        _put(f"{url}/{path.name}", path.read_bytes())
        return f"{url}/{path.name}"
    for file in path.rglob("*"):
        if file.is_file():
            _put(f"{url}/{file.relative_to(path)}", file.read_bytes())
    return url


def _put(url: str, data: bytes) -> None:
    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.pipe_file(path, data)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _location(name: str, folder: Path) -> Path:
    folders = {"texts": "texts", "saved dataset": "saved"} | {kind: "mds" for kind in WRITERS if kind.startswith("mds")}
    if name in folders:
        return folder / folders[name]
    return next(path for path in folder.iterdir() if path.name.startswith("a."))


def _largest(location: Path) -> Path:
    """The largest data file there."""
    if location.is_file():
        return location
    files = [path for path in location.rglob("*") if path.suffix in (".arrow", ".txt") or ".mds" in path.name]
    return max(files, key=lambda path: path.stat().st_size)


def _flip_bits(location: Path) -> None:
    """Flip a bit in the middle of the largest file, which keeps its time, as a bad disk would."""
    path = _largest(location)
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
