"""A bounded cache on disk, that several processes share and anything may happen to."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.sources import range_cache
from data_pipeline.sources.range_cache import RangeCache

PARTS = 4
"""Bytes with which a part is kept, beside its own."""


def kept_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/*"))


def test_a_kept_part_is_read_in_pieces(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 1000)
    cache.keep("file", 100, 110, b"0123456789")
    assert cache.read("file", 100, 110, 102, 105) == b"234"
    assert cache.read("file", 100, 110, 100, 110, check=True) == b"0123456789"
    assert cache.read("file", 90, 100, 90, 91) is None
    assert cache.read("other", 100, 110, 100, 110) is None


def test_the_part_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 3 * (10 + PARTS))
    for number in range(3):
        cache.keep("file", number, number + 10, bytes(10))
        os.utime(tmp_path / "file" / f"{number}-{number + 10}", (number, number))
    assert cache.read("file", 0, 10, 0, 1) is not None
    cache.keep("other", 5, 15, bytes(10))
    assert cache.read("file", 1, 11, 1, 2) is None
    assert cache.read("file", 0, 10, 0, 1) is not None
    assert cache.read("other", 5, 15, 5, 6) is not None


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 60)), max_size=20), bound=st.integers(0, 200))
def test_the_bound_is_never_exceeded_and_what_is_read_is_what_was_kept(
    parts: list[tuple[int, int]], bound: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = RangeCache(folder, bound)
    for start, length in parts:
        data = bytes([start]) * length
        cache.keep("file", start, start + length, data)
        assert kept_bytes(folder) <= bound
        assert cache.read("file", start, start + length, start, start + length, check=True) in (
            [data] if length + PARTS <= bound else [None]
        )


def test_a_damaged_part_is_a_miss(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 1000)
    cache.keep("file", 0, 10, b"0123456789")
    (part,) = (tmp_path / "file").iterdir()
    part.write_bytes(part.read_bytes().replace(b"4", b"5"))
    assert cache.read("file", 0, 10, 3, 6, check=True) is None
    part.write_bytes(part.read_bytes()[:-1])
    assert cache.read("file", 0, 10, 3, 6) is None
    cache.keep("file", 0, 10, b"0123456789")
    assert cache.read("file", 0, 10, 3, 6, check=True) == b"345"
    cache.drop("file", 0, 10)
    cache.drop("file", 0, 10)
    assert cache.read("file", 0, 10, 3, 6) is None


def test_leftovers_of_killed_writers_and_a_lost_or_wrong_count_are_mended(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 100)
    cache.keep("file", 0, 10, bytes(10))
    (tmp_path / "file" / ".0-10.left").write_bytes(bytes(500))
    (tmp_path / ".total").write_bytes(b"\0garbage")
    cache.keep("file", 10, 80, bytes(70))
    assert not (tmp_path / "file" / ".0-10.left").exists()
    assert (tmp_path / ".total").read_bytes() == b"88"
    # Counted too high, as by a writer that was killed before it wrote.
    (tmp_path / ".total").write_bytes(b"100")
    cache.keep("file", 90, 92, bytes(2))
    assert (tmp_path / ".total").read_bytes() == b"94"
    assert kept_bytes(tmp_path) == 94


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = RangeCache(tmp_path / "file" / "ranges", 100)
    cache.keep("file", 0, 10, bytes(10))
    assert cache.read("file", 0, 10, 0, 10) is None


def test_a_lock_that_is_held_for_too_long_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_cache, "_LOCK_SECONDS", 0.05)
    cache = RangeCache(tmp_path, 100)
    with (tmp_path / ".total").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        cache.keep("file", 0, 10, bytes(10))
        assert cache.read("file", 0, 10, 0, 10) is None
    cache.keep("file", 0, 10, bytes(10))
    assert cache.read("file", 0, 10, 0, 10) == bytes(10)


def test_two_processes_share_a_cache_within_its_bound(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from data_pipeline.sources.range_cache import RangeCache
folder, bound = Path(sys.argv[1]), int(sys.argv[2])
cache = RangeCache(folder, bound)
for number in range(150):
    start = number * 7 % 40
    data = bytes([start]) * 50
    found = cache.read("file", start, start + 50, start, start + 50, check=True)
    assert found in (None, data), found
    if found is None:
        cache.keep("file", start, start + 50, data)
    sizes = []
    for path in folder.glob("*/[!.]*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            pass
    # While this process looks, the other may replace parts it has counted: by one.
    assert sum(sizes) <= bound + 54, sum(sizes)
"""
    command = [sys.executable, "-c", program, str(tmp_path), "600"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert 0 < kept_bytes(tmp_path) <= 600
