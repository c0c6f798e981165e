"""Cut the documents of one lane into rows.

The tokens of a lane's documents, one after the other, fill rows of `seq_len` inputs without a gap. The label of an
input is the token after it in its document, for the last input of a row too, which looks one token beyond the row. The
last token of a document has no label. So every token but the first of its document is a label exactly once. A document
cut by the end of a row goes on in the next one, where its positions start at 0 again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
"""The label of an input whose next token belongs to another document."""

Ids = NDArray[np.int64]


class PackedRow(NamedTuple):
    """One row: int64 arrays of [seq_len]."""

    input_ids: Ids
    labels: Ids
    position_ids: Ids


def pack_row(document: Ids, offset: int, next_document: Callable[[], Ids], seq_len: int) -> tuple[PackedRow, Ids, int]:
    """Fill one row.

    Args:
        document: all tokens of the document to go on with (empty at the very start).
        offset: how many of its tokens are in earlier rows.
        next_document: gives the tokens of the next document, at least one; called when the last one is used up.
        seq_len: inputs of the row.

    Returns:
        The row, the document it ends in, and how many tokens of that one are used.
    """
    row = PackedRow(*(np.empty(seq_len, dtype=np.int64) for _ in PackedRow._fields))
    filled = 0
    while filled < seq_len:
        if offset == len(document):
            document, offset = next_document(), 0
        size = min(seq_len - filled, len(document) - offset)
        _put(row, filled, document[offset : offset + size + 1], size)
        filled += size
        offset += size
    return row, document, offset


def _put(row: PackedRow, start: int, tokens: Ids, size: int) -> None:
    """Put `size` inputs at `start`; `tokens` are they and the one after, if the document has one."""
    row.input_ids[start : start + size] = tokens[:size]
    row.labels[start : start + len(tokens) - 1] = tokens[1:]
    row.labels[start + len(tokens) - 1 : start + size] = IGNORED
    row.position_ids[start : start + size] = np.arange(size)
