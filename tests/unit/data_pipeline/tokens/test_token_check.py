from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import SourceConfig
from data_pipeline.encoding.examples import Example
from data_pipeline.tokens.token_check import damaged_tokens, token_files, token_folders
from data_pipeline.tokens.token_files import write_token_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "key" / "0-3.tokens"
    path.parent.mkdir()
    documents = [
        Example(np.arange(5, dtype=np.int32)),
        Example(np.empty(0, np.int32)),
        Example(np.arange(9, dtype=np.int32)),
    ]
    write_token_file(path, documents, {"shard": "abc"}, vocab_size=300, has_targets=False)
    return path


def found(path: Path) -> list[str]:
    told: list[tuple[int, int]] = []
    damages = list(damaged_tokens(token_files(path.parents[1]), lambda done, total: told.append((done, total))))
    assert told == [(path.stat().st_size,) * 2]
    return [damage.removeprefix(f"{path} ") for damage in damages]


def test_whole_files_and_damaged_ones(path: Path) -> None:
    content = path.read_bytes()
    assert found(path) == []
    # A bit of the third document, whose two bytes per token come after those of the first.
    path.write_bytes(content[:12] + bytes([content[12] ^ 4]) + content[13:])
    assert found(path) == ["is not as it was written (document 2 in it); the next run makes it again"]
    path.write_bytes(content[:-1])
    assert found(path) == ["is not as it was written; the next run makes it again"]
    path.with_suffix(".json").write_text("{")
    assert found(path) == ["has no description that can be read beside it; the next run makes it again"]


def test_only_tokens_of_the_shards_that_are_asked_for(path: Path) -> None:
    other = path.parents[1] / "other" / "0-1.tokens"
    other.parent.mkdir()
    write_token_file(other, [Example(np.arange(2, dtype=np.int32))], {"shard": "xyz"}, vocab_size=9, has_targets=False)
    folder = path.parents[1]
    assert token_files(folder) == [path, other]
    assert token_files(folder, {"abc", "more"}) == [path]
    assert token_files(folder, {"none"}) == []
    second = path.with_name("3-4.tokens")
    write_token_file(second, [], {"shard": "abc"}, vocab_size=9, has_targets=False)
    path.with_suffix(".json").write_text("{")
    assert token_files(folder, {"abc"}) == [path, second]


def test_a_file_that_is_being_written_is_not_looked_at(path: Path) -> None:
    path.with_name("3-4.tokens").write_bytes(b"par")
    assert token_files(path.parents[1], {"abc"}) == [path]


def test_a_file_of_another_version_is_no_damage(path: Path) -> None:
    description = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(description | {"schema": 0}))
    assert found(path) == []


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    local = SourceConfig(path=str(tmp_path / "a.jsonl"))
    assert token_folders(local, None)[0] == tmp_path / ".index" / "tokens"
    assert token_folders(local, tmp_path / "cache")[0] == tmp_path / "cache" / "tokens"
    assert token_folders(SourceConfig(dataset="a/b"), tmp_path / "cache") == [tmp_path / "cache" / "tokens"]


def test_a_description_that_is_nested_too_deep(path: Path) -> None:
    path.with_suffix(".json").write_text("[" * 100_000)
    (damage,) = found(path)
    assert "has no description that can be read beside it" in damage
    assert token_files(path.parent.parent, ["a"]) == []


def test_tokens_that_are_a_link_to_nowhere_are_damaged(path: Path) -> None:
    for target in (path.with_name("nothing"), path):
        path.unlink()
        path.symlink_to(target)
        (damage,) = damaged_tokens(token_files(path.parents[1]), lambda done, total: None)
        assert damage == f"{path} is not as it was written; the next run makes it again"
