"""Files of tokens: what is read is what was written, or an error."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.encoding.examples import BadRecordError, Example
from data_pipeline.sources.errors import DamagedRecordError
from data_pipeline.sources.local_files import LocalFiles
from data_pipeline.tokens.token_files import BAD, DamagedTokensError, Encoded, open_token_file, write_token_file

MADE_FROM = {"shard": "abc", "encoding": {"bos": True}}


def example(ids: list[int], targets: list[bool] | None = None) -> Example:
    return Example(np.array(ids, dtype=np.int32), None if targets is None else np.array(targets, dtype=bool))


def write(path: Path, documents: list[Encoded], vocab_size: int = 300, has_targets: bool = True) -> None:
    write_token_file(path, documents, MADE_FROM, vocab_size=vocab_size, has_targets=has_targets)


def read_all(path: Path) -> list[tuple[list[int], list[bool] | None]]:
    file = open_token_file(path, MADE_FROM)
    assert file is not None
    found = [file.example(number, LocalFiles()) for number in range(len(file.lengths))]
    return [(ids.tolist(), None if targets is None else targets.tolist()) for ids, targets in found]


tokens = st.lists(st.tuples(st.integers(0, 299), st.booleans()), max_size=20)


@settings(max_examples=50, deadline=None)
@given(st.lists(tokens | st.none(), max_size=8), st.sampled_from([300, 65_536, 65_537]), st.booleans())
def test_reads_what_was_written(documents: list[Any], vocab_size: int, has_targets: bool) -> None:
    written: list[Encoded] = [
        BadRecordError("bad")
        if each is None
        else example([i for i, _ in each], [target for _, target in each] if has_targets else None)
        for each in documents
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tokens"
        write(path, written, vocab_size, has_targets)
        file = open_token_file(path, MADE_FROM)
        assert file is not None
        assert file.lengths.tolist() == [BAD if each is None else len(each) for each in documents]
        assert file.dtype == ("<u2" if vocab_size <= 65_536 else "<u4")
        for number, each in enumerate(documents):
            ids, targets = file.example(number, LocalFiles())
            assert ids.dtype == np.int32
            assert ids.tolist() == [i for i, _ in each or []]
            expected = [target for _, target in each] if each and has_targets else None
            assert (None if targets is None else targets.tolist()) == expected


def test_largest_ids(tmp_path: Path) -> None:
    for vocab_size in (65_536, 128_256):
        path = tmp_path / f"{vocab_size}.tokens"
        write(path, [example([0, vocab_size - 1])], vocab_size, has_targets=False)
        assert read_all(path) == [([0, vocab_size - 1], None)]


def test_an_id_beyond_the_vocabulary_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="beyond the vocabulary"):
        write(tmp_path / "a.tokens", [example([65_536])], 65_536, has_targets=False)
    assert list(tmp_path.iterdir()) == []


def test_examples_without_a_mask_are_all_targets(tmp_path: Path) -> None:
    write(tmp_path / "a.tokens", [example([7, 8, 9])])
    assert read_all(tmp_path / "a.tokens") == [([7, 8, 9], [True, True, True])]


def test_where_targets_begin_is_known_without_reading_documents(tmp_path: Path) -> None:
    documents: list[Encoded] = [
        example([1, 2, 3], [False, False, True]),
        example([1, 2, 3], [True, True, True]),
        example([1, 2, 3], [True, False, False]),
        example([1], [True]),
        example([1, 2]),
        example([]),
        BadRecordError("bad"),
    ]
    write(tmp_path / "a.tokens", documents)
    file = open_token_file(tmp_path / "a.tokens", MADE_FROM)
    assert file is not None
    assert file.first_targets is not None
    assert file.first_targets.tolist() == [2, 1, 3, 1, 1, 0, 0]
    write(tmp_path / "b.tokens", [example([1, 2])], has_targets=False)
    file = open_token_file(tmp_path / "b.tokens", MADE_FROM)
    assert file is not None
    assert file.first_targets is None


def test_tokens_of_an_older_version_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "a.tokens"
    write(path, [example([1])])
    kept = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(kept | {"schema": 1}))
    assert open_token_file(path, MADE_FROM) is None


def test_the_description_tells_what_is_there(tmp_path: Path) -> None:
    bad = [DamagedRecordError(f"reason {i}") for i in range(150)]
    write(tmp_path / "a.tokens", [example([1, 2, 3]), example([]), *bad])
    kept = json.loads((tmp_path / "a.json").read_text())
    assert (kept["schema"], kept["made_from"]) == (2, MADE_FROM)
    assert (kept["documents"], kept["tokens"], kept["bad_records"]) == (152, 3, 150)
    assert kept["first_bad_records"] == [[i + 2, f"reason {i}"] for i in range(100)]


def test_a_file_made_from_something_else_is_not_opened(tmp_path: Path) -> None:
    assert open_token_file(tmp_path / "a.tokens", MADE_FROM) is None
    write(tmp_path / "a.tokens", [example([1])])
    assert open_token_file(tmp_path / "a.tokens", MADE_FROM | {"shard": "abd"}) is None


def test_a_file_that_was_cut_or_lost_is_not_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.tokens"
    damages: list[Callable[[], object]] = [
        lambda: path.write_bytes(path.read_bytes()[:-1]),
        path.unlink,
        lambda: (tmp_path / "a.json").write_bytes(b"{"),
        lambda: (tmp_path / "a.json").write_bytes(b"[1]"),
    ]
    for damage in damages:
        write(path, [example([1, 2]), example([3])])
        damage()
        caplog.clear()
        assert open_token_file(path, MADE_FROM) is None
        assert "a.tokens cannot be used and are made again" in caplog.text


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.tokens"
    write(path, [example([1, 2], [False, True]), example([3, 4, 5])])
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        file = open_token_file(path, MADE_FROM)
        if file is None:
            continue
        damaged = 0
        for number in range(2):
            try:
                file.example(number, LocalFiles())
            except DamagedTokensError:
                damaged += 1
        assert damaged == 1


def test_a_file_that_goes_away_or_changes_while_open(tmp_path: Path) -> None:
    path = tmp_path / "a.tokens"
    write(path, [example([1, 2], [False, True])])
    file = open_token_file(path, MADE_FROM)
    assert file is not None
    write(path, [example([1, 2, 3])])
    with pytest.raises(DamagedTokensError):
        file.example(0, LocalFiles())
    path.unlink()
    with pytest.raises(DamagedTokensError, match="cannot be read: No such file"):
        file.example(0, LocalFiles())


@pytest.mark.parametrize(
    "changes",
    [{"entries_start": 10**400}, {"entries_start": float("inf")}, {"documents": float("inf")}, {"dtype": "nonsense"}],
)
def test_a_description_that_makes_no_sense(
    tmp_path: Path, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.tokens"
    write(path, [example([1, 2, 3], [True] * 3)])
    description = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(description | changes))
    assert open_token_file(path, MADE_FROM) is None
    assert "cannot be used and are made again" in caplog.text
    path.with_suffix(".json").write_text("[" * 100_000)
    assert open_token_file(path, MADE_FROM) is None
