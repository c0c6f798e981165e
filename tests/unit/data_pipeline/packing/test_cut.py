from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.packing.cut import cut_row
from data_pipeline.packing.rows import IGNORED, Ids

lengths = st.lists(st.integers(1, 20), min_size=1, max_size=12)


def documents_of(lengths: list[int]) -> list[Ids]:
    """Documents whose tokens are all different: token = 100 * document + place in it."""
    return [100 * number + np.arange(length) for number, length in enumerate(lengths, start=1)]


def rows_of(documents: list[Ids], seq_len: int) -> list[tuple[list[int], list[int], list[int], list[int]]]:
    """Every whole row that the documents fill, with the starts of its parts."""
    waiting = iter(documents)
    document, offset = np.empty(0, np.int64), 0
    rows = []
    for _ in range(sum(map(len, documents)) // seq_len):
        row, starts, document, offset = cut_row(document, offset, lambda: next(waiting), seq_len)
        assert all(array.dtype == np.int64 and array.shape == (seq_len,) for array in row)
        rows.append((*(array.tolist() for array in row), starts))
    return rows


@given(lengths, st.integers(1, 16))
def test_rows_against_the_definition(lengths: list[int], seq_len: int) -> None:
    documents = documents_of(lengths)
    stream = [int(token) for document in documents for token in document]
    rows = rows_of(documents, seq_len)
    assert len(rows) == len(stream) // seq_len
    for number, (inputs, labels, positions, starts) in enumerate(rows):
        for place in range(seq_len):
            at = number * seq_len + place
            token = stream[at]
            same_document = at + 1 < len(stream) and stream[at + 1] // 100 == token // 100
            assert inputs[place] == token
            assert labels[place] == (stream[at + 1] if same_document else IGNORED)
            is_start = place == 0 or stream[at - 1] // 100 != token // 100
            assert positions[place] == (0 if is_start else positions[place - 1] + 1)
            assert (place in starts) == is_start


@given(lengths, st.integers(1, 16))
def test_every_token_with_a_predecessor_is_a_label_once(lengths: list[int], seq_len: int) -> None:
    padding = np.full(seq_len, 9900) + np.arange(seq_len)  # so that the last row of the documents is whole
    rows = rows_of([*documents_of(lengths), padding], seq_len)
    labels = [label for _, row, _, _ in rows for label in row if label != IGNORED and label < 9900]
    assert labels == [100 * number + place for number, length in enumerate(lengths, 1) for place in range(1, length)]


def test_a_row_end_at_a_document_end() -> None:
    rows = rows_of(documents_of([3, 3]), 3)
    assert rows == [
        ([100, 101, 102], [101, 102, IGNORED], [0, 1, 2], [0]),
        ([200, 201, 202], [201, 202, IGNORED], [0, 1, 2], [0]),
    ]


def test_a_document_cut_by_a_row_end() -> None:
    assert rows_of(documents_of([4]), 2) == [
        ([100, 101], [101, 102], [0, 1], [0]),
        ([102, 103], [103, IGNORED], [0, 1], [0]),
    ]
