from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import SourceConfig
from data_pipeline.sources.local_files import LocalFiles
from data_pipeline.sources.source import Source, open_source
from data_pipeline.sources.text import TextFiles, parse_text


def write(folder: Path, contents: list[bytes]) -> TextFiles:
    files = []
    for number, content in enumerate(contents):
        path = folder / f"{number}.txt"
        path.write_bytes(content)
        files.append(str(path))
    return TextFiles(LocalFiles(), files)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=20), min_size=1, max_size=6), st.data())
def test_files_read_as_one(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], data: st.DataObject
) -> None:
    files = write(tmp_path_factory.mktemp("texts"), contents)
    whole = b"".join(len(content).to_bytes(8, "little") + content for content in contents)
    with files.open("") as file:
        assert file.read() == whole
    assert files.stat("").size == len(whole)
    assert [whole[start:end] for start, end, _ in files.extents()] == contents
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole) + 3))
    for copy in (files, pickle.loads(pickle.dumps(files))):
        assert copy.read_range("", start, end) == whole[start:end]


def test_a_file_that_became_shorter_ends_the_range(tmp_path: Path) -> None:
    files = write(tmp_path, [b"abcdef", b"ghi"])
    files.stat("")
    (tmp_path / "0.txt").write_bytes(b"ab")
    assert files.read_range("", 8, 25, afresh=True) == b"ab"


def test_the_version_changes_with_any_file(tmp_path: Path) -> None:
    versions = set()
    for contents in ([b"a", b"b"], [b"a", b"bb"], [b"a", b"b", b"c"]):
        files = write(tmp_path, contents)
        assert files.stat("") == files.stat("")
        versions.add(files.stat(""))
    assert len(versions) == 3
    assert files.data_files("") == [str(tmp_path / f"{number}.txt") for number in range(3)]


def test_text_is_utf8() -> None:
    assert parse_text("\ufefföl\r\n\0".encode()) == [{"text": "öl\r\n\0"}]
    assert parse_text(b"") == [{"text": ""}]
    assert parse_text(b"ab\xff") == ["is not UTF-8 (invalid start byte at byte 2 of it); convert it or remove it"]


def opened(path: Path, cache_dir: Path | None) -> Source:
    return open_source("test", SourceConfig(path=str(path)), cache_dir=cache_dir, cache_bytes=10**9)


def texts(path: Path, cache_dir: Path | None) -> list[object]:
    source = opened(path, cache_dir)
    return source.records(0, source.num_documents)


@pytest.mark.parametrize("has_cache", [False, True])
def test_files_and_their_folder_are_sources_apart(has_cache: bool, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    write(folder, [b"one", b"two"])
    cache = tmp_path / "cache" if has_cache else None
    paths = [folder / "0.txt", folder / "1.txt", folder]
    expected = [[{"text": "one"}], [{"text": "two"}], [{"text": "one"}, {"text": "two"}]]
    sources = [opened(path, cache) for path in paths]
    assert len({source.shards[0].index.extents_path for source in sources}) == 3
    # Processes map what the others have not replaced, and what is kept serves again.
    copies = pickle.loads(pickle.dumps(sources))
    assert [source.records(0, source.num_documents) for source in copies] == expected
    kept = {path: path.stat().st_mtime_ns for path in sources[0].shards[0].index.extents_path.parent.iterdir()}
    assert [texts(path, cache) for path in paths] == expected
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_parallel_openings_serve_each_other(tmp_path: Path) -> None:
    write(tmp_path, [b"one", b"two"])
    paths = [tmp_path / "0.txt", tmp_path, tmp_path / "1.txt", tmp_path]
    expected = {paths[0]: ["one"], tmp_path: ["one", "two"], paths[2]: ["two"]}
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        found = list(pool.map(texts, paths * 5, [None] * 20))
    assert found == [[{"text": text} for text in expected[path]] for path in paths * 5]
