"""The rows of whole examples, shared by all lanes of a stream."""

from __future__ import annotations

import numpy as np

from data_pipeline.packing.best_fit import PackedOrder
from data_pipeline.packing.rows import PackedRow, whole_row
from data_pipeline.stream.opening import OpenedData
from data_pipeline.stream.text_lane import RowDocument

PADDING = -1
"""The source of padding among a row's documents."""


class ExampleRows:
    """The rows of examples, shared by all lanes."""

    def __init__(self, data: OpenedData, num_lanes: int, seed: int) -> None:
        self.num_lanes = num_lanes
        self._seq_len = data.config.seq_len
        self._padding_id = data.tokenizer.eos_id or 0
        self._sources = [
            (i, encoded)
            for i, (source, encoded) in enumerate(zip(data.sources, data.encoded, strict=True))
            if source.config.is_examples and encoded is not None
        ]
        configs = [data.sources[i].config for i, _ in self._sources]
        self.order = PackedOrder(
            [encoded.lengths for _, encoded in self._sources],
            [data.sources[i].name for i, _ in self._sources],
            [config.weight for config in configs],
            seq_len=self._seq_len,
            seed=seed,
        )
        self._beginning = self.order.anchor(0)

    def number_of(self, lane: int, example_rows: int) -> int:
        """The number over all lanes of the row of a lane that comes after `example_rows` of them."""
        return example_rows * self.num_lanes + lane

    def row(self, number: int) -> tuple[PackedRow, tuple[RowDocument, ...]]:
        """A row by its number over all lanes, and what is in it."""
        refs = self.order.row(number)
        examples = [self._sources[ref.source][1].example(ref.number) for ref in refs]
        row, filled = whole_row(examples, self._seq_len, self._padding_id)
        starts = np.cumsum([0, *(len(ids) for ids, _ in examples)]).tolist()
        documents = [
            RowDocument(start, self._sources[ref.source][0], ref.number, ref.epoch, 0)
            for start, ref in zip(starts, refs, strict=False)
        ]
        if filled < self._seq_len:
            documents.append(RowDocument(filled, PADDING, 0, 0, 0))
        return row, tuple(documents)

    def first_row_of(self, epoch: int) -> int:
        """The first row with an example of `epoch`, found by going through all rows before it."""
        number = 0
        self.order.load_anchor(self._beginning, number)
        while all(ref.epoch < epoch for ref in self.order.row(number)):
            number += 1
            self.order.release(number)
        return number
