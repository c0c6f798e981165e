from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import index
from data_pipeline.config import SourceConfig
from data_pipeline.files import sha256_of
from data_pipeline.index import DamagedDocumentError, DataError, Source, damaged_documents, kept_index, open_shard

Write = Callable[[Path, Sequence[str]], Path]


def texts_of(source: Source) -> list[str]:
    return [source.document(number) for number in range(source.num_documents)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.text(), min_size=0, max_size=6), min_size=1, max_size=4))
def test_documents_are_those_of_the_lines(
    tmp_path_factory: pytest.TempPathFactory, write_jsonl: Write, shards: list[list[str]]
) -> None:
    folder = tmp_path_factory.mktemp("source")
    for number, texts in enumerate(shards):
        write_jsonl(folder / f"{number}.jsonl", texts)
    expected = [text for texts in shards for text in texts]
    if not expected:
        with pytest.raises(DataError, match=r"the source a at .* holds no documents"):
            Source("a", SourceConfig(path=folder))
        return
    for _ in ("made", "kept"):
        assert texts_of(Source("a", SourceConfig(path=folder))) == expected


def test_blank_lines_windows_line_ends_and_a_missing_last_line_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"body": "one"}\r\n\r\n  \n{"body": ""}\n{"body": "three"}')
    assert texts_of(Source("a", SourceConfig(path=path, text_field="body"))) == ["one", "", "three"]


def test_the_index_is_kept_and_made_again_when_the_file_changes(
    tmp_path: Path, write_jsonl: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    scans: list[Path] = []
    scan = index.scan_shard
    monkeypatch.setattr(index, "scan_shard", lambda path: scans.append(path) or scan(path))
    made, kept = open_shard(path), open_shard(path)
    assert len(scans) == 1
    assert isinstance(kept.offsets, np.memmap)
    assert kept.offsets.tolist() == made.offsets.tolist()
    assert kept.sha256 == made.sha256 == sha256_of(path)

    os.utime(path, ns=(0, 12345))
    open_shard(path)
    assert len(scans) == 2
    write_jsonl(path, ["one", "two", "three"])
    assert open_shard(path).num_documents == 3
    assert len(list((tmp_path / ".index").iterdir())) == 2  # the stale offsets are gone


def test_a_damaged_index_is_made_again(tmp_path: Path, write_jsonl: Write) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    for damage in (b"", b"[1]", b'{"schema": 1'):
        open_shard(path)
        (tmp_path / ".index" / "a.jsonl.json").write_bytes(damage)
        assert kept_index(path) is None
        assert open_shard(path).num_documents == 2
    for offsets in (tmp_path / ".index").glob("*.npy"):
        offsets.write_bytes(b"half")
    assert kept_index(path) is None
    assert open_shard(path).num_documents == 2


def test_a_folder_that_cannot_be_written_needs_no_index(tmp_path: Path, write_jsonl: Write) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["one"])
    (tmp_path / ".index").touch()
    assert texts_of(Source("a", SourceConfig(path=path))) == ["one"]


def test_several_may_index_at_once(tmp_path: Path, write_jsonl: Write) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [str(number) for number in range(500)])
    with ThreadPoolExecutor(8) as pool:
        shards = list(pool.map(lambda _: open_shard(path), range(16)))
    assert {tuple(shard.offsets.tolist()) for shard in shards} == {tuple(shards[0].offsets.tolist())}
    assert len(list((tmp_path / ".index").iterdir())) == 2


def test_fingerprint_is_of_content_not_of_names(tmp_path: Path, write_jsonl: Write) -> None:
    def fingerprint(folder: str, *shards: list[str]) -> str:
        for number, texts in enumerate(shards):
            write_jsonl(tmp_path / folder / f"{folder}{number}.jsonl", texts)
        return Source("a", SourceConfig(path=tmp_path / folder)).fingerprint

    first = fingerprint("a", ["one"], ["two"])
    assert first == fingerprint("b", ["one"], ["two"])
    assert len({first, fingerprint("c", ["two"], ["one"]), fingerprint("d", ["one"], ["twO"])}) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "ab', "is not valid JSON"),
        (b'\xff{"text": "ab"}', "is not valid JSON"),
        (b'["text"]', "is not a JSON object but list"),
        (b'{"body": "x", "id": 1}', "has no field 'text'; set text_field to one of its fields: body, id"),
        (b'{"text": null}', "has NoneType in the field 'text', where text is needed"),
    ],
)
def test_a_damaged_line_is_named_with_its_place(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "good too"}\n')
    source = Source("a", SourceConfig(path=path))
    assert (source.document(0), source.document(2)) == ("good", "good too")
    with pytest.raises(DamagedDocumentError) as caught:
        source.document(1)
    assert f"{path}, line 3 (byte 18): {message}" in str(caught.value)
    assert [str(error) for error in damaged_documents(source.shards[0], "text")] == [str(caught.value)]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.jsonl cannot be read: No such file"):
        Source("a", SourceConfig(path=tmp_path / "none.jsonl"))


def test_only_so_many_files_are_open(tmp_path: Path, write_jsonl: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_MAX_OPEN_FILES", 3)
    for number in range(10):
        write_jsonl(tmp_path / f"{number}.jsonl", [f"text {number}"])
    source = Source("a", SourceConfig(path=tmp_path))
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for _ in range(2):
        assert texts_of(source) == [f"text {number}" for number in range(10)]
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= 3


def test_index_description_has_a_schema(tmp_path: Path, write_jsonl: Write) -> None:
    open_shard(write_jsonl(tmp_path / "a.jsonl", ["one"]))
    kept = json.loads((tmp_path / ".index" / "a.jsonl.json").read_text())
    assert (kept["schema"], kept["documents"]) == (1, 1)
