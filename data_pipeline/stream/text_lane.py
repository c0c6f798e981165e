"""The text of one lane: its documents, one after the other, cut into rows.

A lane takes the documents of a source block by block (order.py): it reads those of a group of blocks at once, and keeps the
records that come next, as many as its share of memory is for; when they are used up, it reads the group again for the next
ones. So a block is decoded once, and where the memory is too small, as often as the group's records are larger than it.

Of several sources the one that is furthest behind its
weight in tokens gives the next document, so that over a long time each has its exact part.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data_pipeline.encoding.examples import BadRecordError, Encoder
from data_pipeline.mixture import integer_inverses
from data_pipeline.order import Group, SourceOrder
from data_pipeline.packing.cut import cut_row
from data_pipeline.packing.rows import DocumentIds, PackedRow
from data_pipeline.sources.decoded import DecodedExtents, bytes_in_memory
from data_pipeline.sources.errors import DamagedRecordError, DataError
from data_pipeline.sources.formats import Record
from data_pipeline.sources.source import Source
from data_pipeline.stream.state import StreamStateError

if TYPE_CHECKING:
    from data_pipeline.tokens.encoded import EncodedSource

COUNTERS_PER_SOURCE = ("blocks", "place", "tokens", "bad_records")
_NO_IDS: DocumentIds = np.empty(0, dtype=np.int32)
# So many documents without a token in a row are passed over before the whole source is searched for one.
_PATIENCE = 10_000


class RowDocument(NamedTuple):
    """What a row holds of one document.

    Attributes:
        start: its first input in the row.
        source: index of its source; -1 for padding.
        number: its number in the source.
        epoch: of the source, from 0.
        offset: how many tokens of it are in earlier rows.
    """

    start: int
    source: int
    number: int
    epoch: int
    offset: int


class TextSource:
    """A source of text, shared by all lanes of a stream: its order, and how to read and encode its documents."""

    def __init__(
        self,
        source: Source,
        encoder: Encoder,
        encoded: EncodedSource | None,
        *,
        index: int,
        order: SourceOrder,
        skip_bad: bool,
        decoded: DecodedExtents,
        keep_bytes: int,
    ) -> None:
        """Prepare to read.

        Args:
            source: where the records are.
            encoder: what makes tokens of them.
            encoded: the tokens of all documents, where they are kept on disk.
            index: of the source in the configuration.
            order: of its documents.
            skip_bad: whether a record that holds no document is passed over, rather than an error.
            decoded: keeps what several lanes read parts of.
            keep_bytes: most bytes in memory that a lane's records of this source may take, but for a single one.
        """
        self.source, self.index, self.order = source, index, order
        self._encoder, self._encoded = encoder, encoded
        self._skip_bad, self._decoded, self._keep_bytes = skip_bad, decoded, keep_bytes
        self._has_text = False

    @property
    def is_encoded(self) -> bool:
        """Whether the tokens are on disk, so that no records are needed."""
        return self._encoded is not None

    def records(self, group: Group, place: int) -> dict[int, Record | DamagedRecordError]:
        """The records at `place` of a group and the places after it, as many as a lane may keep; one at least."""
        numbers = group.documents(place, len(group.order))
        wanted = set(numbers)
        read: dict[int, Record | DamagedRecordError] = {}
        for block in group.blocks:
            if not wanted.isdisjoint(block):
                read |= zip(block, self.source.records(block.start, block.stop, self._decoded), strict=True)
        kept: dict[int, Record | DamagedRecordError] = {}
        size = 0
        for at, number in enumerate(numbers, place):
            size += bytes_in_memory(read[number])
            if kept and size > self._keep_bytes:
                break
            kept[at] = read[number]
        return kept

    def ids(self, number: int, record: Record | DamagedRecordError | None) -> DocumentIds | None:
        """The tokens of a document, none for an empty one; None for a bad record that is passed over.

        Args:
            number: of the document.
            record: its record, if it has been read.
        """
        if self._encoded is not None:
            return self._encoded.example(number).ids
        if record is None:
            record = self.source.records(number, number + 1, self._decoded)[0]
        try:
            if not isinstance(record, DamagedRecordError):
                return self._encoder.encode(record).ids
            reason = str(record)
        except BadRecordError as error:
            reason = str(error)
        if self._skip_bad:
            return None
        raise DataError(
            f"the source {self.source.name}: {self.source.where(number)} {reason}. Correct the record, or leave such records out, counted, with "
            'data.on_bad_record = "skip"'
        )

    def require_text(self) -> None:
        """Search the source for a document with tokens.

        Raises:
            DataError: it has none, and a lane would search forever.
        """
        if not self._has_text:
            documents = (self.ids(number, None) for number in range(self.source.num_documents))
            self._has_text = any(ids is not None and len(ids) for ids in documents)
        if not self._has_text:
            raise DataError(
                f"the source {self.source.name} has no text: all its {self.source.num_documents} documents are empty or "
                "bad records; look at its text_field, or leave it out"
            )


class _Cursor:
    """Where one lane is in one source: blocks begun, documents taken of the last group of them, and what follows from these."""

    def __init__(self, source: TextSource, lane: int) -> None:
        self.source, self._lane = source, lane
        self.go_to(0, 0)

    def go_to(self, blocks: int, place: int) -> None:
        """Go where `blocks` blocks are begun, and `place` documents of the last group are taken; nothing is read."""
        if place and not blocks:
            raise ValueError(f"{place} documents are taken of no block")
        self.blocks, self.place = blocks, place
        # By the place in the group.
        self._records: dict[int, Record | DamagedRecordError] = {}
        if blocks:
            self._group = self.source.order.group(blocks - 1, self._lane)
        if place:
            self.number = self._group.document(place - 1)

    def go_to_epoch(self, epoch: int) -> None:
        """Go to the end of the last group before those of `epoch`."""
        self.go_to(self.source.order.first_of_epoch(epoch, self._lane), 0)
        if self.blocks:
            self.place = len(self._group.order)

    def advance(self) -> None:
        """Take the next document."""
        if not self.blocks or self.place == len(self._group.order):
            self.go_to(self.source.order.group(self.blocks, self._lane).stop, 0)
        self.number = self._group.document(self.place)
        self.place += 1

    @property
    def epoch(self) -> int:
        """The epoch of the document taken last."""
        return self._group.epoch

    def ids(self) -> DocumentIds | None:
        """The tokens of the document taken last, as TextSource.ids."""
        if self.source.is_encoded or len(self._group.order) == 1:
            return self.source.ids(self.number, None)
        place = self.place - 1
        if place not in self._records:
            self._records = self.source.records(self._group, place)
        # It is asked for again only after a resume; until then less is kept as it is used up.
        return self.source.ids(self.number, self._records.pop(place))


class TextLane:
    """The rows of text of one lane."""

    def __init__(self, sources: Sequence[TextSource], lane: int, seq_len: int) -> None:
        """Begin at the first document of the lane."""
        self._seq_len = seq_len
        self._cursors = [_Cursor(source, lane) for source in sources]
        self._costs = integer_inverses([source.source.config.weight for source in sources])
        self.load([0] * len(counter_names(len(sources))))

    def load(self, counters: Sequence[int]) -> None:
        """Go where the counters (counter_names) say; nothing is read.

        Raises:
            IndexError, ValueError: they are of no lane of this stream.
        """
        self._current, self._offset, *rest = counters
        if self._current >= len(self._cursors):
            raise ValueError(f"there is no source {self._current}")
        blocks, places, self._tokens, self.bad_records = (list(rest[i::4]) for i in range(4))
        for cursor, begun, place in zip(self._cursors, blocks, places, strict=True):
            cursor.go_to(begun, place)
        # None: to be read again, when its row is wanted.
        self._ids: DocumentIds | None = None if any(self._tokens) else _NO_IDS

    def go_to_epoch(self, epoch: int) -> None:
        """Go before the lane's first block of `epoch`, in every source; nothing is read."""
        counters = [0, 0]
        for cursor in self._cursors:
            cursor.go_to_epoch(epoch)
            counters += cursor.blocks, cursor.place, 0, 0
        self.load(counters)

    @property
    def counters(self) -> list[int]:
        """Where the lane is, in the order of counter_names."""
        rest = zip(self._cursors, self._tokens, self.bad_records, strict=True)
        by_source = ((cursor.blocks, cursor.place, tokens, bad) for cursor, tokens, bad in rest)
        return [self._current, self._offset, *itertools.chain.from_iterable(by_source)]

    def next_row(self) -> tuple[PackedRow, tuple[RowDocument, ...]]:
        """The next row, and what is in it."""
        if self._ids is None:
            ids = self._cursors[self._current].ids()
            if ids is None or self._offset > len(ids):
                what = "a bad record" if ids is None else f"a document of {len(ids)} tokens"
                raise StreamStateError(
                    f"the stream state is damaged (a lane is at token {self._offset} of {what}); resume from an earlier checkpoint"
                )
            self._ids = ids
        documents = [self._document()] if self._offset < len(self._ids) else []

        def next_document() -> DocumentIds:
            ids = self._next_document()
            documents.append(self._document())
            return ids

        row, starts, self._ids, self._offset = cut_row(self._ids, self._offset, next_document, self._seq_len)
        placed = (document._replace(start=start) for document, start in zip(documents, starts, strict=True))
        return row, tuple(placed)

    def _document(self) -> RowDocument:
        cursor = self._cursors[self._current]
        return RowDocument(0, cursor.source.index, cursor.number, cursor.epoch, self._offset)

    def _next_document(self) -> DocumentIds:
        """The tokens of the lane's next document that has any."""
        self._current = min(range(len(self._tokens)), key=lambda i: self._tokens[i] * self._costs[i])
        self._offset = 0
        cursor = self._cursors[self._current]
        patience = min(_PATIENCE, cursor.source.source.num_documents)
        for passed in itertools.count():
            if passed == patience:
                cursor.source.require_text()
            cursor.advance()
            ids = cursor.ids()
            if ids is None:
                self.bad_records[self._current] += 1
            elif len(ids):
                self._tokens[self._current] += len(ids)
                return ids
        raise AssertionError


def counter_names(num_sources: int) -> list[str]:
    """What the counters of a TextLane are called."""
    return ["current", "offset", *(f"{name}.{i}" for i in range(num_sources) for name in COUNTERS_PER_SOURCE)]
