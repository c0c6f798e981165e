"""Files behind URLs: what fsspec's backends do, and what networks do."""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_pipeline.sources import storage
from data_pipeline.sources.errors import DataError
from data_pipeline.sources.storage import PART_BYTES, RemoteFiles
from data_pipeline.sources.suffixes import data_files

DATA = bytes(range(256)) * (PART_BYTES // 100)


class FlakyFileSystem(MemoryFileSystem):
    """memory://, whose reads first do what `troubles` say, one each."""

    protocol = "flaky"
    troubles: list[Callable[[], Any]] = []  # noqa: RUF012 - of the class, as fsspec keeps instances
    requests: list[tuple[int, int]] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        self.requests.append((start or 0, end or 0))
        if self.troubles and (answer := self.troubles.pop(0)()) is not None:
            return bytes(answer)
        return bytes(super().cat_file(path, start, end, **kwargs))


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FlakyFileSystem]]:
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.001)
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    filesystem = MemoryFileSystem()
    filesystem.pipe_file("/far/a.jsonl", DATA)
    FlakyFileSystem.troubles = []
    FlakyFileSystem.requests = []
    yield FlakyFileSystem
    filesystem.rm("/far", recursive=True)


def failing(error: Exception) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


URL = "flaky://far/a.jsonl"


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 10), (PART_BYTES - 5, PART_BYTES + 5), (0, len(DATA)), (7, 7), (len(DATA) - 3, len(DATA) + 9)],
)
def test_ranges_are_those_of_the_file_from_far_and_from_the_cache(
    start: int, end: int, flaky: type[FlakyFileSystem], tmp_path: Path
) -> None:
    files = RemoteFiles(tmp_path, 10**9)
    for _ in range(2):
        assert files.read_range(URL, start, end) == DATA[start:end]
    assert len(flaky.requests) == len(set(flaky.requests))
    assert RemoteFiles(None, 0).read_range(URL, start, end) == DATA[start:end]


def test_a_file_is_read_front_to_back_and_sought_in(flaky: type[FlakyFileSystem], tmp_path: Path) -> None:
    with RemoteFiles(tmp_path, 10**9).open(URL) as file:
        assert b"".join(iter(lambda: file.read(1 << 20), b"")) == DATA
        assert file.seek(-4, io.SEEK_END) == len(DATA) - 4
        assert file.read() == DATA[-4:]
        assert file.seek(3) == 3
        assert file.seek(2, io.SEEK_CUR) == 5
        assert file.read(2) == DATA[5:7]
    assert sorted(flaky.requests) == [
        (start, min(start + PART_BYTES, len(DATA))) for start in range(0, len(DATA), PART_BYTES)
    ]


def test_a_damaged_part_of_the_cache_is_fetched_again(flaky: type[FlakyFileSystem], tmp_path: Path) -> None:
    files = RemoteFiles(tmp_path, 10**9)
    files.read_range(URL, 0, 10)
    (part,) = tmp_path.glob("ranges/*/*")
    data = bytearray(part.read_bytes())
    data[5] ^= 1
    part.write_bytes(data)
    assert files.read_range(URL, 0, 10) != DATA[:10]  # The caller has a checksum …
    assert files.read_range(URL, 0, 10, afresh=True) == DATA[:10]
    assert files.read_range(URL, 0, 10) == DATA[:10]
    part.write_bytes(data)
    with files.open(URL) as file:  # … and here the cache looks itself.
        assert file.read(10) == DATA[:10]


def test_a_new_version_of_the_file_is_another_file_to_the_cache(flaky: type[FlakyFileSystem], tmp_path: Path) -> None:
    files = RemoteFiles(tmp_path, 10**9)
    first = files.stat(URL)
    files.read_range(URL, 0, 10)
    time.sleep(0.001)
    MemoryFileSystem().pipe_file("/far/a.jsonl", DATA[::-1])
    second = files.stat(URL)
    assert (first.size, second.size) == (len(DATA), len(DATA))
    assert first.version != second.version
    assert files.read_range(URL, 0, 10) == DATA[::-1][:10]


def test_failures_that_pass_are_borne(flaky: type[FlakyFileSystem]) -> None:
    flaky.troubles = [
        failing(ConnectionResetError("reset by peer")),
        failing(TimeoutError()),
        lambda: b"short",
        failing(RuntimeError("503 slow down")),
    ]
    assert RemoteFiles(None, 0).read_range(URL, 3, 9) == DATA[3:9]
    assert len(flaky.requests) == 5


def test_failures_that_last_are_told(flaky: type[FlakyFileSystem]) -> None:
    flaky.troubles = [failing(ConnectionResetError("reset by peer"))] * 9
    with pytest.raises(
        DataError, match=r"flaky://far/a.jsonl cannot be read in 5 attempts: reset by peer; check the network"
    ):
        RemoteFiles(None, 0).read_range(URL, 0, 1)
    flaky.troubles = [lambda: b"short"] * 9
    with pytest.raises(DataError, match=r"asked for and 5 came; the file changed, or is not served in parts"):
        RemoteFiles(None, 0).read_range(URL, 0, 1)


def test_a_request_that_is_never_answered_fails(flaky: type[FlakyFileSystem], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "TIMEOUT_SECONDS", 0.02)
    flaky.troubles = [lambda: time.sleep(0.2)]
    assert RemoteFiles(None, 0).read_range(URL, 0, 4) == DATA[:4]
    flaky.troubles = [lambda: time.sleep(0.2)] * 9
    with pytest.raises(DataError, match=r"in 5 attempts: no answer within 0.02 s"):
        RemoteFiles(None, 0).read_range(URL, 0, 4)
    time.sleep(0.25)


def test_failures_that_cannot_pass_are_told_at_once(flaky: type[FlakyFileSystem]) -> None:
    files = RemoteFiles(None, 0)
    with pytest.raises(FileNotFoundError) as missing:
        files.stat("flaky://far/b.jsonl")
    assert missing.value.strerror == "there is no such file"
    assert missing.value.filename == "flaky://far/b.jsonl"
    flaky.troubles = [failing(PermissionError("403 Forbidden"))]
    with pytest.raises(PermissionError, match=r"access is refused \(403 Forbidden\); check the credentials"):
        files.read_range(URL, 0, 1)
    flaky.troubles = [failing(NotImplementedError("no ranges"))]
    with pytest.raises(DataError, match=r"flaky://far/a.jsonl cannot be read: no ranges"):
        files.read_range(URL, 0, 1)


def test_a_missing_package_and_an_unknown_protocol_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation(
        "faraway", "no_such_package.Files", clobber=True, errtxt="Install far-fs to reach it"
    )
    with pytest.raises(
        DataError,
        match=r"faraway://a needs a package that is not installed: Install far-fs to reach it; install it with pip",
    ):
        RemoteFiles(None, 0).stat("faraway://a")
    monkeypatch.setitem(storage._PACKAGES, "faraway", "far-fs near-fs")
    with pytest.raises(DataError, match=r"to reach it; pip install far-fs near-fs"):
        RemoteFiles(None, 0).stat("faraway://a")
    with pytest.raises(DataError, match=r"nowhere://a is no URL that can be read .*fsspec knows .*s3"):
        RemoteFiles(None, 0).data_files("nowhere://a")


def test_a_place_that_does_not_tell_sizes_is_told(
    flaky: type[FlakyFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flaky, "info", lambda self, path: {"name": path, "type": "file", "size": None})
    with pytest.raises(DataError, match=r"does not tell how large it is.*copy it to a disk"):
        RemoteFiles(None, 0).stat(URL)


@pytest.mark.parametrize(
    ("info", "version"),
    [
        ({"ETag": '"abc"', "LastModified": "now"}, 'etag "abc"'),
        ({"mtime": 12.5, "created": 1}, "mtime 12.5"),
        ({"md5Hash": "q==", "updated": "today"}, "md5hash q=="),
        ({"size": 3}, ""),
    ],
)
def test_the_version_is_what_tells_most(info: dict[str, Any], version: str) -> None:
    assert storage._version(info) == version


FOLDERS = {
    "one level": ["b.jsonl", "a.parquet", "c.jsonl.zst", "notes.md", ".hidden.jsonl", "deeper/d.jsonl"],
    "texts": ["z.txt", "a/b.txt", "a.b/c.txt", "a/c/.x/d.txt", ".git/e.txt"],
    "text beside others": ["LICENSE.txt", "c.jsonl", "notes/a.txt"],
    "text beside mds splits": ["LICENSE.txt", "train/index.json", "train/shard.00000.mds"],
    "mds": ["index.json", "shard.00000.mds", "a.jsonl"],
    "mds splits": ["train/index.json", "val/index.json", "train/shard.00000.mds", ".cache/index.json"],
}


@pytest.mark.parametrize("names", FOLDERS.values(), ids=FOLDERS.keys())
def test_folders_are_listed_like_local_ones(names: list[str], tmp_path: Path) -> None:
    root = f"memory://listed{abs(hash(tuple(names)))}"
    filesystem, path = fsspec.core.url_to_fs(root)
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
        filesystem.pipe_file(f"{path}/{name}", b"x")
    local = [str(file.relative_to(tmp_path)) for file in data_files(tmp_path)]
    for location in (root, root + "/"):
        found = RemoteFiles(None, 0).data_files(location)
        assert [url.split(path + "/", 1)[1] for url in found] == local
        assert all(RemoteFiles(None, 0).read_range(url, 0, 9) == b"x" for url in found)


def test_a_file_is_itself_and_an_empty_folder_is_told(
    flaky: type[FlakyFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flaky, "isdir", lambda self, path: pytest.fail("reads whole files over HTTP"))
    files = RemoteFiles(None, 0)
    assert files.data_files(URL) == [URL]
    MemoryFileSystem().pipe_file("/far/docs/readme.md", b"x")
    with pytest.raises(DataError, match=r"memory://far/docs holds no .jsonl, .*; name a folder or a file that does"):
        files.data_files("memory://far/docs")


def test_it_may_be_sent_to_other_processes(flaky: type[FlakyFileSystem], tmp_path: Path) -> None:
    files = RemoteFiles(tmp_path, 10**9)
    files.stat(URL)
    assert pickle.loads(pickle.dumps(files)).read_range(URL, 1, 5) == DATA[1:5]
