from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.sources.suffixes import data_files, ignored_files

FOLDERS: list[tuple[list[str], list[str]]] = [
    (["a.txt", "b/c.txt"], []),
    (["c.jsonl"], ["LICENSE.txt", "b/notes.txt", "d.json", "e.ndjson", "f.csv", "g.tsv", "h.tar.gz", "i.json.zst"]),
    (["a.txt"], ["d.json"]),
    (["index.json"], ["a.jsonl", "b.txt"]),
    (["train/index.json", "val/index.json"], ["LICENSE.txt"]),
    ([], ["a.csv"]),
]


@pytest.mark.parametrize(("documents", "ignored"), FOLDERS)
def test_what_is_read_of_a_folder_and_what_is_ignored(documents: list[str], ignored: list[str], tmp_path: Path) -> None:
    for name in [*documents, *ignored, "README.md", ".hidden.json", "tokenizer.model"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert data_files(tmp_path) == [tmp_path / name for name in documents]
    assert ignored_files(tmp_path) == [tmp_path / name for name in ignored]
