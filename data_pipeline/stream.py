"""The endless stream of rows, one per lane and optimizer step, and its small state.

A *lane* is one row of the global batch. What a lane yields depends on the data, the settings, the seed and the number
of lanes, and on nothing about the processes: a rank owns a contiguous range of lanes, and any split of the lanes over
ranks gives the same rows. A lane's state is a few integers, so that resuming costs the same at any position.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.config import DataConfig
from data_pipeline.encoding import load_tokenizer, special_ids
from data_pipeline.errors import PipelineError
from data_pipeline.index import DataError, Source
from data_pipeline.order import epoch_permutation, place_of, source_seed
from data_pipeline.packing import Ids, pack_row

SCHEMA = 1
# Lanes run a little ahead of each other, so that around the end of an epoch two permutations are in use.
_KEPT_PERMUTATIONS = 3


class StreamStateError(PipelineError):
    """A saved state does not fit this stream; the message says which part differs."""


class Row(NamedTuple):
    """One row of the global batch; the arrays are int64 [seq_len].

    Attributes:
        lane: which row of the batch.
        input_ids: token ids.
        labels: the token after each input in its document, -100 where that one has ended.
        position_ids: place in the document's part in this row, 0 where one starts.
    """

    lane: int
    input_ids: Ids
    labels: Ids
    position_ids: Ids


@dataclass
class _Lane:
    """How far one lane is: counters per source, and the document it is in."""

    documents: list[int]  # taken from each source, over all epochs
    tokens: list[int]  # in those documents
    rows: int = 0
    source: int = 0  # of the current document
    number: int = 0  # of the current document in its source
    offset: int = 0  # tokens of the current document that are in rows already
    ids: Ids | None = field(default_factory=lambda: np.empty(0, np.int64))  # None: to be read again after a resume


class TokenStream:
    """Iterate over the rows of a range of lanes: lanes[0], lanes[1], …, lanes[-1], lanes[0], …, without an end."""

    def __init__(self, config: DataConfig, *, num_lanes: int, lanes: range, seed: int) -> None:
        """Open the sources and the tokenizer.

        Args:
            config: what to read, and how to cut it.
            num_lanes: rows of the global batch, B.
            lanes: the contiguous range of lanes that this process owns.
            seed: decides the order of the documents.

        Raises:
            ValueError: `lanes` is no contiguous part of range(num_lanes).
            DataError: a source cannot be read or is empty.
            TokenizerError: the tokenizer cannot be read or lacks BOS or EOS.
        """
        if not lanes or lanes.step != 1 or lanes.start < 0 or lanes.stop > num_lanes:
            raise ValueError(f"lanes {lanes} is not a contiguous, non-empty part of range({num_lanes})")
        self.config = config
        self.num_lanes = num_lanes
        self.seed = seed
        self.tokenizer = load_tokenizer(config.tokenizer)
        self._prefix, self._suffix = special_ids(self.tokenizer, config.tokenizer, bos=config.bos, eos=config.eos)
        self.sources = [Source(name, source) for name, source in config.sources.items()]
        self._weights = [source.weight for source in config.sources.values()]
        self._permutation = [
            lru_cache(_KEPT_PERMUTATIONS)(
                partial(epoch_permutation, source.num_documents, source_seed(seed, source.name))
            )
            for source in self.sources
        ]
        if not self.sources:
            raise DataError("sources is empty; name at least one source of documents")
        self._lanes = {lane: _Lane([0] * len(self.sources), [0] * len(self.sources)) for lane in lanes}

    @property
    def lanes(self) -> range:
        """The lanes of this process."""
        return range(min(self._lanes), max(self._lanes) + 1)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the rows, by name: a saved state only fits a stream that agrees in all of it."""
        parts: dict[str, Any] = {"sources": [source.name for source in self.sources]}
        for source, weight in zip(self.sources, self._weights, strict=True):
            parts[f"sources.{source.name}.files"] = source.fingerprint
            parts[f"sources.{source.name}.text_field"] = source.text_field
            parts[f"sources.{source.name}.weight"] = float(weight)
        return parts | {
            "tokenizer": self.tokenizer.fingerprint,
            "bos": self._prefix,
            "eos": self._suffix,
            "seq_len": self.config.seq_len,
            "seed": self.seed,
            "num_lanes": self.num_lanes,
        }

    def __iter__(self) -> TokenStream:
        """The stream itself: iterating again goes on where the last iteration stopped."""
        return self

    def __next__(self) -> Row:
        """The next row, of the next lane in turn."""
        # The lane with the fewest rows is next, so that a stream resumed amid a step goes on there.
        lane = min(self._lanes, key=lambda lane: self._lanes[lane].rows)
        state = self._lanes[lane]
        if state.ids is None:
            state.ids = self._tokens(state.source, state.number)
        packed, state.ids, state.offset = pack_row(
            state.ids, state.offset, partial(self._next_document, lane), self.config.seq_len
        )
        state.rows += 1
        return Row(lane, *packed)

    def epoch_of(self, lane: int) -> dict[str, int]:
        """The epoch, from 0, that the next document of `lane` belongs to, by source."""
        return {
            source.name: place_of(taken, lane, self.num_lanes, source.num_documents).epoch
            for source, taken in zip(self.sources, self._lanes[lane].documents, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """Where the lanes of this process are, as JSON: the fingerprint, and a few integers per lane."""
        return {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "lanes": {
                str(lane): {
                    "rows": state.rows,
                    "documents": list(state.documents),
                    "tokens": list(state.tokens),
                    "current": [state.source, state.number, state.offset],
                }
                for lane, state in self._lanes.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, merged from all ranks of a run at any world size; nothing is read for it.

        Raises:
            StreamStateError: the state is of another stream (the message says what differs) or lacks lanes of this one.
        """
        _refuse_other_schema(state)
        _refuse_differences(state["fingerprint"], self.fingerprint)
        missing = [lane for lane in self._lanes if str(lane) not in state["lanes"]]
        if missing:
            raise StreamStateError(
                f"the saved stream state lacks {len(missing)} lanes of this process, the first is "
                f"{missing[0]}; join the states of all ranks with merge_states"
            )
        for lane in self._lanes:
            saved = state["lanes"][str(lane)]
            source, number, offset = saved["current"]
            self._lanes[lane] = _Lane(
                list(saved["documents"]),
                list(saved["tokens"]),
                saved["rows"],
                source,
                number,
                offset,
                ids=None if any(saved["documents"]) else np.empty(0, np.int64),
            )

    def _next_document(self, lane: int) -> Ids:
        """The tokens of the lane's next document that has any, of the source that is furthest behind its weight."""
        state = self._lanes[lane]
        state.source = min(range(len(self.sources)), key=lambda i: state.tokens[i] / self._weights[i])
        source = self.sources[state.source]
        empty_ones = 0
        while True:
            place = place_of(state.documents[state.source], lane, self.num_lanes, source.num_documents)
            state.number = int(self._permutation[state.source](place.epoch)[place.position])
            state.documents[state.source] += 1
            ids = self._tokens(state.source, state.number)
            if len(ids):
                state.tokens[state.source] += len(ids)
                return ids
            empty_ones += 1
            if empty_ones == source.num_documents and not self._has_text(state.source):
                raise DataError(f"the source {source.name} has no text: all its documents are empty; leave it out")

    def _has_text(self, source: int) -> bool:
        return any(len(self._tokens(source, number)) for number in range(self.sources[source].num_documents))

    def _tokens(self, source: int, number: int) -> Ids:
        """All tokens of a document with BOS and EOS as configured; none at all if its text is empty."""
        ids = self.tokenizer.encode(self.sources[source].document(number))
        return np.array([*self._prefix, *ids, *self._suffix] if ids else [], dtype=np.int64)


def merge_states(states: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Join the states of all ranks of a run, taken at the same step, into the state of the whole stream.

    Raises:
        StreamStateError: there is none, they are of different streams, or two have the same lane.
    """
    states = list(states)
    if not states:
        raise StreamStateError("there is no stream state to join; give the state of every rank")
    lanes: dict[str, Any] = {}
    for state in states:
        _refuse_other_schema(state)
        _refuse_differences(states[0]["fingerprint"], state["fingerprint"])
        if both := lanes.keys() & state["lanes"].keys():
            raise StreamStateError(f"two stream states have the lane {min(both, key=int)}; give each rank's state once")
        lanes |= state["lanes"]
    return {
        "schema": SCHEMA,
        "fingerprint": states[0]["fingerprint"],
        "lanes": {lane: lanes[lane] for lane in sorted(lanes, key=int)},
    }


def _refuse_other_schema(state: dict[str, Any]) -> None:
    if state.get("schema") != SCHEMA:
        raise StreamStateError(
            f"the stream state has schema {state.get('schema')!r}, and this version reads {SCHEMA}; "
            "resume with the version that wrote it"
        )


def _refuse_differences(saved: dict[str, Any], current: dict[str, Any]) -> None:
    changed = [
        f"{part}: saved {saved.get(part)!r}, now {current.get(part)!r}"
        for part in {**saved, **current}
        if saved.get(part) != current.get(part)
    ]
    if changed:
        raise StreamStateError(
            "the saved stream state belongs to other data or settings, which would give other rows; "
            "put back what changed, or start a new run. " + "; ".join(changed)
        )
