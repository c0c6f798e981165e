"""Reading held-out documents."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evals.errors import EvalError
from evals.held_out.documents import draw_documents


def test_order_is_seeded_and_complete(jsonl: Callable[..., Path]) -> None:
    path = jsonl([f"text {i}" for i in range(20)])
    first, again, other = (draw_documents(path, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert {d.id for d in first} == {d.id for d in other} == {f"d{i}" for i in range(20)}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), limit=st.integers(4, 50))
def test_a_cut_keeps_whole_characters_within_the_limit(tmp_path: Path, text: str, limit: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"id": "a", "text": text}), encoding="utf-8")
    (doc,) = draw_documents(path, seed=0, max_bytes=limit)
    assert text.startswith(doc.text)
    assert min(len(text.encode()), limit) - 3 <= len(doc.text.encode()) <= limit


def test_gz_missing_ids_blank_lines_and_empty_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write('{"text": "one"}\n\n{"text": ""}\n{"text": "two", "id": 7}\n')
    assert {(d.id, d.text) for d in draw_documents(path, seed=0)} == {("1", "one"), ("7", "two")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": ', r"a\.jsonl:2: not JSON"),
        ('{"id": 1}', r"a\.jsonl:1: no text string"),
        ('["text"]', r"a\.jsonl:1: no text string"),
        ('{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}', r"a\.jsonl:2: the id '1' is used twice"),
        ('{"text": "\\ud800"}', r"a\.jsonl:1: text is not valid Unicode"),
        ("\n", "no documents with text"),
    ],
)
def test_every_broken_file_is_explained(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(EvalError, match=message):
        draw_documents(tmp_path / "a.jsonl", seed=0)


def test_a_missing_or_binary_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="cannot be read as JSONL"):
        draw_documents(tmp_path / "missing.jsonl", seed=0)
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EvalError, match="cannot be read as JSONL"):
        draw_documents(tmp_path / "binary.jsonl", seed=0)
