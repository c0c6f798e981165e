"""JSON is read as text that can be written again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.json_text import parse_json, valid_unicode

texts = st.text(st.characters(exclude_categories=()), max_size=8)
values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)


@given(values)
def test_what_is_read_can_be_written(value: Any) -> None:
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only)
        if ascii_only:
            assert parse_json(text.encode()) == parse_json(text)
            json.dumps(parse_json(text), ensure_ascii=False).encode()


@given(st.text(max_size=20))
def test_valid_text_stays_as_it_is(text: str) -> None:
    assert valid_unicode(text) == text
    assert parse_json(json.dumps([text])) == [text]
    assert parse_json(json.dumps([text], ensure_ascii=False)) == [text]


def test_halves_of_pairs() -> None:
    assert parse_json(b'{"a\\ud800": ["\\ud83d\\ude00", "\\uDE00x"]}') == {"a\ufffd": ["\U0001f600", "\ufffdx"]}
    assert valid_unicode("a\udcffb") == "a\ufffdb"


def test_what_is_none() -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json("[" * 100_000)
    with pytest.raises(ValueError, match="Expecting"):
        parse_json("{")
    with pytest.raises(ValueError, match="codec can't decode"):
        parse_json(b"\xff\xfe\x00")
