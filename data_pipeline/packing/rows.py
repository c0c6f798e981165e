"""A row of `seq_len` inputs with their labels, and how pieces of documents are put into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
"""The label of an input whose next token is not to be predicted, or belongs to another document."""

Ids = NDArray[np.int64]
"""Token ids of a row, int64 [seq_len]."""

DocumentIds = NDArray[np.int32] | NDArray[np.int64]
"""Token ids of a document."""


class PackedRow(NamedTuple):
    """One row; int64 arrays of [seq_len].

    Attributes:
        input_ids: token ids.
        labels: the token after each input, IGNORED where that is not to be predicted.
        position_ids: place in the document's part in this row, 0 where one starts.
    """

    input_ids: Ids
    labels: Ids
    position_ids: Ids


def unfilled_row(seq_len: int) -> PackedRow:
    """A row whose inputs are yet to be put."""
    return PackedRow(*(np.empty(seq_len, dtype=np.int64) for _ in PackedRow._fields))


def put(row: PackedRow, start: int, tokens: DocumentIds, size: int, is_target: NDArray[np.bool_] | None = None) -> None:
    """Put `size` inputs at `start`.

    Args:
        row: where to.
        start: the place of the first input.
        tokens: the inputs, and the token after them where the document has one.
        size: how many inputs.
        is_target: bool like `tokens`, which of them are to be predicted; None: all.
    """
    labelled = start + len(tokens) - 1
    row.input_ids[start : start + size] = tokens[:size]
    row.labels[start:labelled] = tokens[1:]
    row.labels[labelled : start + size] = IGNORED
    row.position_ids[start : start + size] = np.arange(size)
    if is_target is not None:
        row.labels[start:labelled][~is_target[1:]] = IGNORED


def whole_row(
    examples: Sequence[tuple[DocumentIds, NDArray[np.bool_] | None]], seq_len: int, padding_id: int
) -> tuple[PackedRow, int]:
    """A row of whole examples, each its ids and targets, and after them padding with positions of its own.

    Returns:
        The row, and how many of its inputs are filled by the examples.
    """
    row = unfilled_row(seq_len)
    filled = 0
    for ids, is_target in examples:
        assert filled + len(ids) <= seq_len, "examples that do not fit into their row"
        put(row, filled, ids, len(ids), is_target)
        filled += len(ids)
    row.input_ids[filled:] = padding_id
    row.labels[filled:] = IGNORED
    row.position_ids[filled:] = np.arange(seq_len - filled)
    return row, filled
