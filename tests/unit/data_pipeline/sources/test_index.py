from __future__ import annotations

import json
import logging
import os
import pickle
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.sources.errors import DataError
from data_pipeline.sources.extents import EXTENT, EXTENT_OF_MANY, Extents, extents_array
from data_pipeline.sources.formats import Stat
from data_pipeline.sources.index import (
    Index,
    Place,
    can_write,
    index_places,
    keep_folders,
    kept_index,
    last_index,
    write_index,
)

STAT = Stat(100, "1")


def keep(folder: Path, stat: Stat = STAT, count: int = 3) -> Index:
    batches = iter([extents_array([(number, 1, 7) for number in range(count)], EXTENT)])
    return write_index(Place(folder, "a.jsonl"), stat, batches, lambda: "ab" * 32)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([EXTENT, EXTENT_OF_MANY]), st.lists(st.integers(0, 30), max_size=5))
def test_batches_become_one_array(tmp_path_factory: pytest.TempPathFactory, dtype: np.dtype, sizes: list[int]) -> None:
    folder = tmp_path_factory.mktemp("index")
    generator = np.random.default_rng(0)

    def batches() -> Iterator[Extents]:
        for size in sizes:
            yield np.array(
                [tuple(row) for row in generator.integers(1, 2**31, (size, len(dtype.names or ())))], dtype=dtype
            )

    index = write_index(Place(folder, "a"), STAT, batches(), lambda: "x")
    generator = np.random.default_rng(0)
    expected = np.concatenate([*batches(), np.array([], dtype=dtype)])
    kept = kept_index([Place(folder, "a")], STAT)
    assert kept == index
    assert kept is not None
    assert kept.extents.tolist() == expected.tolist()
    assert kept.num_documents == (len(expected) if dtype == EXTENT else expected["documents"].sum())
    assert isinstance(kept.extents, np.memmap) or not len(expected)


def test_an_index_is_for_one_version_and_a_new_one_replaces_it(tmp_path: Path) -> None:
    place = Place(tmp_path, "a.jsonl")
    first = keep(tmp_path)
    for other in (Stat(101, "1"), Stat(100, "2")):
        assert kept_index([place], other) is None
        assert last_index([place]) == first
    assert kept_index([Place(tmp_path, "b.jsonl")], STAT) is None
    second = keep(tmp_path, Stat(101, "1"), 4)
    assert kept_index([place], Stat(101, "1")) == second
    # A run that began with the first may map it only now.
    assert len(first.extents) == 3
    third = keep(tmp_path, Stat(102, "1"), 5)
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.jsonl.json",
        *(index.extents_path.name for index in (first, second, third)),
    }


def test_the_newest_replaced_arrays_are_kept(tmp_path: Path) -> None:
    other = write_index(Place(tmp_path, "a"), STAT, iter([]), lambda: "x")
    copy = Place(tmp_path, "a.jsonl").copy(STAT)
    copy.touch()
    kept = []
    for size in range(8):
        index = keep(tmp_path, Stat(size, "1"))
        os.utime(index.extents_path, (size, size))
        kept.append(index)
    assert [index.size_on_disk > 0 for index in kept] == [False] * 4 + [True] * 4
    assert other.size_on_disk > 0
    assert not copy.exists()


def test_a_damaged_index_is_told_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = Place(tmp_path, "a.jsonl")
    description, extents = place.description, keep(tmp_path).extents_path
    whole, arrays = description.read_bytes(), extents.read_bytes()
    flipped = bytearray(arrays)
    flipped[-1] ^= 1
    damages: list[tuple[Path, bytes]] = [(description, damage) for damage in (b"", b"[1]", b'{"schema": 1', b"\xff")]
    damages += [
        (description, whole.replace(b'"documents": 3', b'"documents": ' + wrong)) for wrong in (b'"x"', b"4", b"1e999")
    ]
    damages += [
        (description, whole.replace(b'"size": 100', b'"size": ' + wrong)) for wrong in (b"1e999", b"NaN", b"[]")
    ]
    damages += [(description, b"[" * 100_000)]
    damages += [(extents, damage) for damage in (b"", b"half", arrays[:-1], bytes(flipped))]
    for path, damage in damages:
        description.write_bytes(whole)
        extents.write_bytes(arrays)
        assert kept_index([place], STAT) is not None
        path.write_bytes(damage)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert kept_index([place], STAT) is None
        assert f"the index {description} cannot be used and is made again" in caplog.text, damage
    description.write_bytes(whole)
    extents.unlink()
    assert kept_index([place], STAT) is None


def test_extents_of_another_kind_are_refused(tmp_path: Path) -> None:
    index = keep(tmp_path)
    np.save(index.extents_path, np.arange(3))
    kept = json.loads((tmp_path / "a.jsonl.json").read_bytes())
    kept["extents_crc32"] = zlib.crc32(index.extents_path.read_bytes())
    (tmp_path / "a.jsonl.json").write_text(json.dumps(kept))
    assert kept_index([Place(tmp_path, "a.jsonl")], STAT) is None


def test_an_index_of_an_older_schema_is_made_again(tmp_path: Path) -> None:
    keep(tmp_path)
    (tmp_path / "a.jsonl.json").write_text(json.dumps({"schema": 1, "size": 100, "mtime_ns": 1, "offsets": "a.npy"}))
    assert kept_index([Place(tmp_path, "a.jsonl")], STAT) is None


def test_an_index_is_pickled_without_its_arrays(tmp_path: Path) -> None:
    index = keep(tmp_path, count=10_000)
    assert len(index.extents) == 10_000
    assert index.first_documents is None
    pickled = pickle.dumps(index)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).extents.tolist() == index.extents.tolist()
    index.extents_path.unlink()
    with pytest.raises(DataError, match=r"the index .*npy is gone or damaged .*; start again to make it anew"):
        _ = pickle.loads(pickled).extents


def test_first_documents(tmp_path: Path) -> None:
    batch = extents_array([(0, 5, 1, 3), (5, 5, 1, 1), (10, 5, 1, 2)])
    index = write_index(Place(tmp_path, "a"), STAT, iter([batch]), lambda: "x")
    assert index.first_documents is not None
    assert index.first_documents.tolist() == [0, 3, 4, 6]


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = tmp_path / "a.jsonl"
    file.touch()
    home = tmp_path / "home" / ".cache" / "palimpsest" / "index"
    assert keep_folders(str(file), None) == [tmp_path / ".index", home]
    assert keep_folders(str(tmp_path), None) == [tmp_path / ".index", home]
    assert keep_folders(str(file), tmp_path / "cache") == [tmp_path / "cache" / "index", tmp_path / ".index"]
    assert keep_folders("s3://bucket/a.jsonl", None) == [home]
    beside, far = index_places(str(file), "a.jsonl", None)
    assert beside == Place(tmp_path / ".index", "a.jsonl")
    assert far.stem.startswith("a.jsonl.")
    assert far != index_places(str(tmp_path / "b" / "a.jsonl"), "a.jsonl", None)[1]
    assert index_places("/\udcff/a.jsonl", "a.jsonl", tmp_path)[0].folder == tmp_path / "index"
    monkeypatch.chdir(tmp_path)
    assert index_places("a.jsonl", "a.jsonl", None)[1] == far


def test_can_write(tmp_path: Path) -> None:
    assert can_write(tmp_path / "new" / "folder") is None
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    for name in (".a.jsonl.0123.npy.x7", ".new.npy.x7", "a.npy"):
        (tmp_path / name).touch()
        if "new" not in name:
            os.utime(tmp_path / name, (time.time() - 90_000,) * 2)
    assert can_write(tmp_path) is None
    assert {path.name for path in tmp_path.iterdir()} == {".new.npy.x7", "a.npy", "new"}
    (tmp_path / "file").touch()
    assert can_write(tmp_path / "file" / "folder") == f"{tmp_path}/file/folder: Not a directory"
