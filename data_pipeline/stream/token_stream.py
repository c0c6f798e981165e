"""The endless stream of rows, one per lane and optimizer step, and its small state.

A *lane* is one row of the global batch. What a lane yields depends on the data, the settings, the seed and the number
of lanes, and on nothing about the processes: a rank owns a contiguous range of lanes, and any split of the lanes over
ranks gives the same rows. A lane's state is a few integers, so that resuming costs the same at any position.

A row holds text, cut where the row ends (text_lane.py), or whole examples (packing/best_fit.py). Where a configuration
has both, a lane's next row is of the kind that is furthest behind its weight in tokens.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

from data_pipeline.config import DataConfig
from data_pipeline.encoding.tokenizer import Tokenizer, special_ids
from data_pipeline.order import SourceOrder, finer_blocks, group_size, source_seed
from data_pipeline.packing.rows import Ids
from data_pipeline.sources.decoded import DecodedExtents
from data_pipeline.sources.source import Source
from data_pipeline.stream.example_rows import PADDING, ExampleRows
from data_pipeline.stream.lane import COUNTERS, EXAMPLE_ROWS, Lane
from data_pipeline.stream.opening import OpenedData, open_data
from data_pipeline.stream.state import LaneState, StreamStateError, lanes_of, merge_states, refuse_differences, state_of
from data_pipeline.stream.text_lane import RowDocument, TextSource, counter_names

__all__ = ["PADDING", "Row", "RowDocument", "StreamStateError", "TokenStream", "merge_states"]

# What all lanes of a process keep of the records that come next, in memory.
_MAX_KEPT_BYTES = 1 << 30
# What they share of decoded extents, beside that.
_MAX_DECODED_BYTES = 256 << 20
_LONGEST_VALUE = 100


class Row(NamedTuple):
    """One row of the global batch; the arrays are int64 [seq_len].

    Attributes:
        lane: which row of the batch.
        input_ids: token ids.
        labels: the token after each input in its document, -100 where that one has ended or is not to be predicted.
        position_ids: place in the document's part in this row, 0 where one starts.
        documents: what the row holds, in order; the last may be padding.
    """

    lane: int
    input_ids: Ids
    labels: Ids
    position_ids: Ids
    documents: tuple[RowDocument, ...] = ()


class TokenStream:
    """Iterate over the rows of a range of lanes: lanes[0], lanes[1], …, lanes[-1], lanes[0], …, without an end.

    Attributes:
        config: what is read, and how it is cut.
        num_lanes: rows of the global batch, B.
        seed: decides the order of the documents.
        lanes: the lanes of this process.
        data: what is read, opened.
    """

    def __init__(
        self, config: DataConfig, *, num_lanes: int, lanes: range, seed: int, data: OpenedData | None = None
    ) -> None:
        """Open the sources and the tokenizer.

        Args:
            config: what to read, and how to cut it.
            num_lanes: rows of the global batch, B.
            lanes: the contiguous range of lanes that this process owns.
            seed: decides the order of the documents.
            data: what open_data(config) has opened, to be shared by several streams.

        Raises:
            ValueError: `lanes` is no contiguous part of range(num_lanes).
            DataError: a source cannot be read or is empty.
            TokenizerError: the tokenizer cannot be read or lacks BOS or EOS.
        """
        if not lanes or lanes.step != 1 or lanes.start < 0 or lanes.stop > num_lanes:
            raise ValueError(f"lanes {lanes} is not a contiguous, non-empty part of range({num_lanes})")
        self.config, self.num_lanes, self.lanes, self.seed = config, num_lanes, lanes, seed
        self.data = open_data(config) if data is None else data
        self._examples = ExampleRows(self.data, num_lanes, seed) if self._indices(is_examples=True) else None
        self._orders = {i: self._order(self.sources[i]) for i in self._indices(is_examples=False)}
        self._decoded = DecodedExtents(_MAX_DECODED_BYTES)
        text = self._text_sources()
        self._columns = [*COUNTERS, *(counter_names(len(text)) if text else [])]
        self._lanes = {lane: Lane(lane, text, self._examples, config) for lane in lanes}
        # Anchors of lanes whose rows are made elsewhere.
        self._received: dict[int, dict[str, Any]] = {}
        self._set_turns()
        self.fingerprint: dict[str, Any] = self._fingerprint()
        """Everything that decides the rows, by name: a saved state only fits a stream that agrees in all of it."""

    @property
    def sources(self) -> Sequence[Source]:
        """The sources of documents."""
        return self.data.sources

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return self.data.tokenizer

    @property
    def next_lane(self) -> int:
        """The lane whose row is next: the first of those with the fewest rows, so that a step that was begun is ended."""
        return self._turns[0][1]

    def __iter__(self) -> Self:
        """The stream itself: iterating again goes on where the last iteration stopped."""
        return self

    def __next__(self) -> Row:
        """The next row, of the next lane in turn.

        Raises:
            DataError: a document of it cannot be read; the stream stays where it is.
        """
        rows, number = self._turns[0]
        lane = self._lanes[number]
        before = lane.counters
        try:
            row, documents = lane.next_row()
        except BaseException:
            lane.load(before)
            raise
        heapq.heapreplace(self._turns, (rows + 1, number))
        self._received.pop(number, None)
        if self._examples is not None:
            self._examples.order.release(self._first_needed()[0])
        return Row(number, *row, documents)

    def state_dict(self) -> dict[str, Any]:
        """Where the lanes of this process are, as JSON: the fingerprint, and a few integers per lane."""
        lanes = {number: lane.counters for number, lane in self._lanes.items()}
        return state_of(self.fingerprint, self._columns, lanes, self._anchor())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, merged from all ranks of a run at any world size; nothing is read for it.

        Raises:
            StreamStateError: the state is of another stream (the message says what differs), damaged, lacks lanes of this
                one, or has lanes that no stream of `num_lanes` has.
        """
        saved = lanes_of(state)
        refuse_differences(state, self.fingerprint, self._columns)
        missing = [lane for lane in self.lanes if lane not in saved]
        if missing:
            raise StreamStateError(
                f"the saved stream state lacks {len(missing)} lanes of this process, the first is "
                f"{missing[0]}; join the states of all ranks with merge_states"
            )
        if unknown := saved.keys() - set(range(self.num_lanes)):
            raise StreamStateError(
                f"the saved stream state has the lane {min(unknown)}, and there are only {self.num_lanes}; it is damaged: "
                "resume from an earlier checkpoint"
            )
        if self._examples is not None:
            first = min(self._examples.number_of(lane, counters[EXAMPLE_ROWS]) for lane, counters in saved.items())
            try:
                self._examples.order.load_anchor(state.get("anchor"), first)
            except ValueError as error:
                raise StreamStateError(
                    f"the stream state is damaged (its anchor {error}); resume from an earlier checkpoint"
                ) from error
        for number, lane in self._lanes.items():
            try:
                lane.load(saved[number])
            except (IndexError, ValueError) as error:
                raise StreamStateError(
                    f"the stream state is damaged (lane {number}: {error}); resume from an earlier checkpoint"
                ) from error
        self._received.clear()
        self._set_turns()

    def lane_state(self, lane: int) -> LaneState:
        """Where one lane is, to be given to load_lane_state of a stream in another process."""
        state = self._lanes[lane]
        anchor = None if self._examples is None else self._examples.order.anchor(state.example_row)
        return LaneState(tuple(state.counters), anchor)

    def load_lane_state(self, lane: int, state: LaneState) -> None:
        """Take over where a lane is in a stream of the same data, settings and position; nothing is read for it.

        For a stream that stands for others and is not iterated over: its rows of examples would have to be found.
        """
        self._lanes[lane].load(state.counters)
        if state.anchor is not None:
            self._received[lane] = state.anchor
        if self.next_lane == lane:
            heapq.heapreplace(self._turns, (self._lanes[lane].rows, lane))
        else:
            self._set_turns()

    def lane_rows(self) -> dict[int, int]:
        """How many rows there were, by lane."""
        return {number: lane.rows for number, lane in self._lanes.items()}

    def go_to_epoch(self, epoch: int) -> None:
        """Go to the lanes' first blocks of an epoch of every source of text, and of examples to the first row of one.

        For looking at data: no training run comes by this state. The mixture begins anew.
        """
        first_row = 0 if self._examples is None else self._examples.first_row_of(epoch)
        for lane in self._lanes.values():
            lane.go_to_epoch(epoch, first_row)
        self._received.clear()
        self._set_turns()

    def counts(self) -> dict[str, dict[str, int]]:
        """What was left out or cut, by source; the sums over all processes are those of the run.

        Of text that is encoded when its turn comes, the bad records passed over so far. Of sources that were encoded as a
        whole (EncodedSource.counts), what was left out of it: counted by the process with lane 0.
        """
        counts: dict[str, dict[str, int]] = {source.name: {} for source in self.sources}
        for place, index in enumerate(self._indices(is_examples=False)):
            skipped = sum(lane.bad_records[place] for lane in self._lanes.values())
            counts[self.sources[index].name] = {"bad_records": skipped}
        for source, encoded in zip(self.sources, self.data.encoded, strict=True):
            if encoded is not None and 0 in self.lanes:
                own = counts[source.name]
                counts[source.name] = {what: n + own.get(what, 0) for what, n in encoded.counts.items()}
        return counts

    def close(self) -> None:
        """Let go of what is read. It may be called again."""
        for lane in self._lanes.values():
            lane.load(lane.counters)
        self._decoded.clear()

    def __enter__(self) -> Self:
        """The stream, closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the stream."""
        self.close()

    def _indices(self, *, is_examples: bool) -> list[int]:
        return [i for i, source in enumerate(self.sources) if source.config.is_examples == is_examples]

    def _text_sources(self) -> list[TextSource]:
        """The sources of text, and how much of them is kept in memory."""
        indices = self._indices(is_examples=False)
        num_read = sum(self.data.encoded[i] is None for i in indices)
        return [
            TextSource(
                self.sources[i],
                self.data.encoders[i],
                self.data.encoded[i],
                index=i,
                order=self._orders[i],
                skip_bad=self.config.on_bad_record == "skip",
                decoded=self._decoded,
                keep_bytes=_MAX_KEPT_BYTES // max(1, num_read * len(self.lanes)),
            )
            for i in indices
        ]

    def _order(self, source: Source) -> SourceOrder:
        starts = finer_blocks(source.block_starts, num_lanes=self.num_lanes, num_bytes=source.num_bytes)
        # A part of an extent costs decoding the extent: in groups, several would be decoded before a lane's first row.
        are_parts = len(starts) > len(source.block_starts)
        size = 1 if are_parts else group_size(source.num_documents, len(starts) - 1, source.num_bytes)
        seed = source_seed(self.seed, source.name)
        return SourceOrder(starts, num_lanes=self.num_lanes, seed=seed, group_size=size)

    def _set_turns(self) -> None:
        self._turns = [(lane.rows, number) for number, lane in self._lanes.items()]
        heapq.heapify(self._turns)
        # The next rows of examples, brought up to date only where the first is looked for.
        has_examples = self._examples is not None
        self._needed = [(lane.example_row, number) for number, lane in self._lanes.items()] if has_examples else []
        heapq.heapify(self._needed)

    def _first_needed(self) -> tuple[int, int]:
        """The first row of examples that any lane still needs, and the lane; in hardly more than constant time."""
        while (row := self._lanes[self._needed[0][1]].example_row) != self._needed[0][0]:
            heapq.heapreplace(self._needed, (row, self._needed[0][1]))
        return self._needed[0]

    def _anchor(self) -> dict[str, Any] | None:
        """Where the window of the first row of examples starts that any lane still needs."""
        if self._examples is None:
            return None
        row, lane = self._first_needed()
        return self._received.get(lane) or self._examples.order.anchor(row)

    def _fingerprint(self) -> dict[str, Any]:
        config = self.config
        bos, eos = special_ids(self.tokenizer, config.tokenizer, bos=config.bos, eos=config.eos)
        parts: dict[str, Any] = {"sources": [source.name for source in self.sources]}
        for i, (source, encoder) in enumerate(zip(self.sources, self.data.encoders, strict=True)):
            of_source: dict[str, Any] = {"files": source.fingerprint, "weight": float(source.config.weight)}
            of_source |= {name: value for name, value in encoder.fingerprint.items() if name not in ("bos", "eos")}
            if source.config.is_examples:
                of_source["too_long"] = config.too_long
            else:
                of_source["blocks"] = self._orders[i].fingerprint
            parts |= {f"sources.{source.name}.{name}": _short(value) for name, value in of_source.items()}
        return parts | {
            "tokenizer": self.tokenizer.fingerprint,
            "bos": bos,
            "eos": eos,
            "seq_len": config.seq_len,
            "seed": self.seed,
            "num_lanes": self.num_lanes,
        }


def _short(value: Any) -> Any:
    """`value`, or a hash of it where it is long (a template, say): the state must stay small."""
    written = json.dumps(value, sort_keys=True)
    return value if len(written) <= _LONGEST_VALUE else "sha256 " + hashlib.sha256(written.encode()).hexdigest()
