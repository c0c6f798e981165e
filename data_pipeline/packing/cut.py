"""Cut the documents of one lane into rows.

The tokens of a lane's documents, one after the other, fill rows of `seq_len` inputs without a gap. The label of an
input is the token after it in its document, for the last input of a row too, which looks one token beyond the row. The
last token of a document has no label. So every token but the first of its document is a label exactly once. A document
cut by the end of a row goes on in the next one, where its positions start at 0 again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from data_pipeline.packing.rows import DocumentIds, PackedRow, put, unfilled_row


class Cut(NamedTuple):
    """A row, and where its documents were cut.

    Attributes:
        row: the row.
        starts: the first input of each document's part in it.
        document: all tokens of the document that the row ends in.
        offset: how many tokens of that one are used.
    """

    row: PackedRow
    starts: list[int]
    document: DocumentIds
    offset: int


def cut_row(document: DocumentIds, offset: int, next_document: Callable[[], DocumentIds], seq_len: int) -> Cut:
    """Fill one row.

    Args:
        document: all tokens of the document to go on with (empty at the very start).
        offset: how many of its tokens are in earlier rows.
        next_document: gives the tokens of the next document, at least one; called when the last one is used up.
        seq_len: inputs of the row.
    """
    row, starts = unfilled_row(seq_len), []
    filled = 0
    while filled < seq_len:
        if offset == len(document):
            document, offset = next_document(), 0
        size = min(seq_len - filled, len(document) - offset)
        put(row, filled, document[offset : offset + size + 1], size)
        starts.append(filled)
        filled += size
        offset += size
    return Cut(row, starts, document, offset)
