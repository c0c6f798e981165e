"""MosaicML's shards, by their layout; and against the package's own writer where it is installed."""

from __future__ import annotations

import io
import itertools
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.sources import mds
from data_pipeline.sources.errors import DataError
from data_pipeline.sources.extents import CHUNK
from data_pipeline.sources.formats import MustBeRewritten
from data_pipeline.sources.local_files import LocalFiles


def shard(columns: dict[str, tuple[str, int | None]], samples: Sequence[Sequence[bytes]], **config: Any) -> bytes:
    """A shard of already encoded values, in the layout that the format's description gives."""
    names, encodings, sizes = (
        list(columns),
        [kind for kind, _ in columns.values()],
        [size for _, size in columns.values()],
    )
    described = {
        "format": "mds",
        "version": 2,
        "column_names": names,
        "column_encodings": encodings,
        "column_sizes": sizes,
    }
    head = json.dumps(described | config).encode()
    packed = []
    for sample in samples:
        lengths = [len(value) for value, size in zip(sample, sizes, strict=True) if size is None]
        packed.append(struct.pack(f"<{len(lengths)}I", *lengths) + b"".join(sample))
    ends = itertools.accumulate(map(len, packed), initial=4 + 4 * (len(packed) + 1) + len(head))
    return struct.pack(f"<{len(packed) + 2}I", len(packed), *ends) + head + b"".join(packed)


def read(data: bytes, columns: Sequence[str] | None = None) -> list[Any]:
    reader = mds.reader(lambda: mds.head(io.BytesIO(data), "a.mds"), "a.mds", columns)
    extents = list(mds.scan(io.BytesIO(data), "a.mds"))
    assert all(extent.documents == 1 for extent in extents)
    return [
        record for number, extent in enumerate(extents) for record in reader(number, data[extent.start : extent.end])
    ]


TEXT = {"text": ("str", None)}


def test_encodings_of_text_and_numbers() -> None:
    columns: dict[str, tuple[str, int | None]] = {
        "f": ("float32", 4),
        "i": ("int", 8),
        "image": ("jpeg", None),
        "j": ("json", None),
        "raw": ("bytes", None),
        "si": ("str_int", None),
        "text": ("str", None),
        "u": ("uint16", 2),
    }
    values = [
        np.float32(0.5).tobytes(),
        struct.pack("<q", -7),
        b"\xff\xd8",
        b'{"a": [1]}',
        b"\0",
        b"123",
        "é".encode(),
        b"\1\2",
    ]
    assert read(shard(columns, [values])) == [
        {"f": 0.5, "i": -7, "j": {"a": [1]}, "raw": b"\0", "si": 123, "text": "é", "u": 513}
    ]
    assert read(shard(columns, [values]), ["text", "absent"]) == [{"text": "é"}]


def test_a_wanted_column_that_is_no_text_is_told() -> None:
    data = shard({"tokens": ("ndarray:int32", None), **TEXT}, [[b"\0" * 8, b"a"]])
    with pytest.raises(
        DataError, match=r"a.mds has its column 'tokens' as ndarray:int32, and not as text; name another"
    ):
        read(data, ["tokens"])


def test_a_pickled_column_is_never_opened() -> None:
    data = shard({"p": ("pkl", None), **TEXT}, [[b"cos\nsystem\n(S'false'\ntR.", b"a"]])
    assert read(data) == [{"text": "a"}]
    with pytest.raises(DataError, match=r"its column 'p' as pkl, and not as text"):
        read(data, ["p"])


@pytest.mark.parametrize("sample", [b"", b"\1\0\0\0", b"\1\0\0\0\xff", b"\1\0\0\0ab", b"\xff\xff\0\0a"])
def test_a_sample_that_cannot_be_decoded_is_a_damaged_record(sample: bytes) -> None:
    reader = mds.reader(lambda: shard(TEXT, []), "a.mds", None)
    (why,) = reader(0, sample)
    assert isinstance(why, str)
    assert "cannot be decoded" in why


def test_a_shard_without_samples_has_none() -> None:
    assert read(shard(TEXT, [])) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1\0\0",
        b"\xff\xff\xff\x00" + b"\0" * 40,
        struct.pack("<3I", 1, 500, 400) + b"{}",
        struct.pack("<3I", 1, 14, 14) + b"{}",
        struct.pack("<3I", 1, 14, 14) + b"??",
        shard(TEXT, [[b"a"]], version=3),
        shard(TEXT, [[b"a"]], format="csv"),
        shard(TEXT, [[b"a"]], column_sizes=[]),
    ],
)
def test_a_damaged_head_is_told(data: bytes) -> None:
    with pytest.raises(DataError, match=r"a.mds is damaged at its head.*fetch it again"):
        list(mds.scan(io.BytesIO(data), "a.mds"))


def test_a_damaged_number_of_samples_claims_no_memory() -> None:
    class File(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            assert size <= CHUNK
            return super().read(size)

    with pytest.raises(DataError, match=r"the table of its 4294967295 samples is not whole"):
        list(mds.scan(File(b"\xff" * 100), "a.mds"))


def test_a_shard_of_another_length_than_its_table_says_is_told() -> None:
    data = shard(TEXT, [[b"one"], [b"two"]])
    for wrong in (data[:-1], data + b"\0"):
        with pytest.raises(
            DataError, match=rf"ends at byte {len(wrong)}, and its samples at byte {len(data)}; fetch it again"
        ):
            list(mds.scan(io.BytesIO(wrong), "a.mds"))


def test_compressed_shards_are_rewritten() -> None:
    import zstandard

    data = shard(TEXT, [[b"one"], [b"zwei\n"], [b"\xff"]])
    packed = zstandard.compress(data[:50]) + zstandard.compress(data[50:])
    with pytest.raises(MustBeRewritten):
        list(mds.scan(io.BytesIO(packed), "a.mds.zstd"))
    lines = [json.loads(line) for line in mds.lines(io.BytesIO(packed), "a.mds.zstd")]
    assert lines[:2] == [{"text": "one"}, {"text": "zwei\n"}]
    assert "cannot be decoded" in lines[2]
    longer = zstandard.compress(data + b"more")
    with pytest.raises(DataError, match=r"before its sample 3, .*it goes on after its last sample.*fetch it again"):
        list(mds.lines(io.BytesIO(longer), "a.mds.zstd"))
    with pytest.raises(DataError, match=r"before its sample 0, .*fetch it again"):
        list(mds.lines(io.BytesIO(b"not compressed"), "a.mds.zstd"))
    with pytest.raises(DataError, match=r"compressed as br, which cannot be read; write the shards with zstd, gz, bz2"):
        list(mds.lines(io.BytesIO(b""), "a.mds.br"))


def write_index(folder: Path, shards: Any) -> str:
    folder.mkdir(parents=True)
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return str(folder / "index.json")


def described(name: str, packed: str | None = None, **other: Any) -> dict[str, Any]:
    zip_data = None if packed is None else {"basename": packed}
    return {"format": "mds", "version": 2, "raw_data": {"basename": name}, "zip_data": zip_data} | other


def test_the_index_names_the_shards_in_order(tmp_path: Path) -> None:
    index = write_index(tmp_path / "data", [described("b.mds"), described("a.mds", "a.mds.zstd")])
    for location in (tmp_path / "data", f"{tmp_path}/data/", index):
        found = mds.shard_locations(str(location), [index], "train", LocalFiles())
        assert found == [f"{tmp_path}/data/b.mds", f"{tmp_path}/data/a.mds.zstd"]


@pytest.mark.parametrize("name", ["", "..", "../other/a.mds", "/etc/a.mds", "a\0.mds"])
def test_a_name_that_leads_out_of_the_folder_is_told(name: str, tmp_path: Path) -> None:
    index = write_index(tmp_path / "data", [described(name)])
    with pytest.raises(
        DataError, match=r"index.json is no index of MDS shards .*is no name of a file beside it.*again"
    ):
        mds.shard_locations(str(tmp_path / "data"), [index], "train", LocalFiles())


def test_a_name_that_no_file_can_have_is_told(tmp_path: Path) -> None:
    index = write_index(tmp_path / "data", [described("a\ud800.mds")])
    with pytest.raises(DataError, match=r"index.json is no index of MDS shards .*surrogates not allowed.*again"):
        mds.shard_locations(str(tmp_path / "data"), [index], "train", LocalFiles())


def test_formats_of_several_kinds_are_told(tmp_path: Path) -> None:
    index = write_index(tmp_path / "data", [described("a", format=1.5), described("b", format="csv")])
    with pytest.raises(DataError, match=r"names shards of \[\('csv', 2\), \(1.5, 2\)\]; only mds of version 2"):
        mds.shard_locations(str(tmp_path / "data"), [index], "train", LocalFiles())


def test_splits(tmp_path: Path) -> None:
    indexes = [write_index(tmp_path / name, [described(f"{name}.mds")]) for name in ("val", "test")]
    files = LocalFiles()
    assert files.data_files(str(tmp_path)) == sorted(indexes)
    assert mds.shard_locations(str(tmp_path), indexes, "val", files) == [f"{tmp_path}/val/val.mds"]
    assert mds.shard_locations(str(tmp_path), indexes[:1], "val", files) == [f"{tmp_path}/val/val.mds"]
    for there, told in ((indexes, "'test', 'val'"), (indexes[:1], "'val'")):
        with pytest.raises(DataError, match=rf"{tmp_path} has no MDS split 'train'; it has {told}$"):
            mds.shard_locations(str(tmp_path), there, "train", files)


@pytest.mark.parametrize("text", ["", "[]", '{"shards": 1}', '{"shards": [{}]}'])
def test_a_damaged_index_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(DataError, match=r"index.json is no index of MDS shards .*again"):
        mds.shard_locations(str(tmp_path), [str(tmp_path / "index.json")], "train", LocalFiles())


def test_shards_of_another_format_are_told(tmp_path: Path) -> None:
    index = write_index(tmp_path / "data", [described("a.csv", format="csv")])
    with pytest.raises(DataError, match=r"names shards of \[\('csv', 2\)\]; only mds of version 2"):
        mds.shard_locations(str(tmp_path / "data"), [index], "train", LocalFiles())


@pytest.mark.parametrize("compression", [None, "zstd", "zstd:7", "gz", "bz2"])
def test_what_the_package_writes_is_read(compression: str | None, tmp_path: Path) -> None:
    streaming = pytest.importorskip(
        "streaming", reason="mosaicml-streaming is not installed; the layout is tested above"
    )
    columns = {
        "text": "str",
        "number": "int",
        "messages": "json",
        "image": "bytes",
        "score": "float32",
        "big": "str_int",
    }
    records = [
        {
            "text": f"text {n} é\n" * n,
            "number": -n,
            "messages": [{"n": n}],
            "image": bytes([n]),
            "score": n / 4,
            "big": 10**n,
        }
        for n in range(40)
    ]
    with streaming.MDSWriter(
        out=str(tmp_path / "data"), columns=columns, compression=compression, size_limit=2000
    ) as writer:
        for record in records:
            writer.write(record)
    files = LocalFiles()
    (index,) = files.data_files(str(tmp_path / "data"))
    shards = mds.shard_locations(str(tmp_path / "data"), [index], "train", files)
    assert len(shards) > 1
    found: list[Any] = []
    for location in shards:
        data = Path(location).read_bytes()
        if compression is None:
            found += read(data)
        else:
            found += [json.loads(line) for line in mds.lines(io.BytesIO(data), location)]
    for record in found:
        record.pop("image")
    assert found == [{key: value for key, value in record.items() if key != "image"} for record in records]


def test_an_index_and_a_head_that_are_nested_too_deep(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"index.json is no index of MDS shards"):
        mds.shard_locations(str(tmp_path), [str(tmp_path / "index.json")], "train", LocalFiles())
    deep = b"[" * 100_000
    with pytest.raises(DataError, match=r"a.mds is damaged at its head"):
        list(mds.scan(io.BytesIO(struct.pack("<2I", 0, 8 + len(deep)) + deep), "a.mds"))
