"""One lane: which of its rows are text and which are examples, and how many of each there were."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.config import DataConfig
from data_pipeline.mixture import integer_inverses
from data_pipeline.packing.rows import PackedRow
from data_pipeline.stream.example_rows import PADDING, ExampleRows
from data_pipeline.stream.text_lane import RowDocument, TextLane, TextSource, counter_names

COUNTERS = ("text_rows", "example_rows", "example_tokens")
"""A lane's counters, before those of its text."""
EXAMPLE_ROWS = COUNTERS.index("example_rows")


class Lane:
    """One lane: its rows of text, its rows of examples, and how many of each there were."""

    def __init__(self, lane: int, text: list[TextSource], examples: ExampleRows | None, config: DataConfig) -> None:
        self._lane, self._seq_len = lane, config.seq_len
        self._text = TextLane(text, lane, config.seq_len) if text else None
        self._examples = examples
        if text and examples is not None:
            kinds = [[s.weight for s in config.sources.values() if s.is_examples == kind] for kind in (False, True)]
            self._costs = integer_inverses([sum(weights) for weights in kinds])
        self.load([0] * (len(COUNTERS) + (len(counter_names(len(text))) if text else 0)))

    def load(self, counters: Sequence[int]) -> None:
        """Go where the counters say."""
        self._text_rows, self.example_rows, self._example_tokens, *text = counters
        if self._text is not None:
            self._text.load(text)

    def go_to_epoch(self, epoch: int, first_row: int) -> None:
        """Go to an epoch of the text, and to the lane's first row of examples from `first_row` on."""
        self._text_rows = self.example_rows = self._example_tokens = 0
        if self._examples is not None:
            self.example_rows = max(0, -(-(first_row - self._lane) // self._examples.num_lanes))
        if self._text is not None:
            self._text.go_to_epoch(epoch)

    @property
    def counters(self) -> list[int]:
        """Where the lane is."""
        text = [] if self._text is None else self._text.counters
        return [self._text_rows, self.example_rows, self._example_tokens, *text]

    @property
    def rows(self) -> int:
        """How many rows there were."""
        return self._text_rows + self.example_rows

    @property
    def example_row(self) -> int:
        """The number over all lanes of the lane's next row of examples."""
        assert self._examples is not None
        return self._examples.number_of(self._lane, self.example_rows)

    @property
    def bad_records(self) -> list[int]:
        """Bad records passed over so far, by source of text."""
        return [] if self._text is None else self._text.bad_records

    def next_row(self) -> tuple[PackedRow, tuple[RowDocument, ...]]:
        """The next row, and what is in it."""
        if self._text is not None and self._is_text_next():
            row, documents = self._text.next_row()
            self._text_rows += 1
            return row, documents
        assert self._examples is not None
        row, documents = self._examples.row(self.example_row)
        self.example_rows += 1
        filled = documents[-1].start if documents[-1].source == PADDING else self._seq_len
        self._example_tokens += filled
        return row, documents

    def _is_text_next(self) -> bool:
        if self._examples is None:
            return True
        text, examples = self._costs
        return self._text_rows * self._seq_len * text <= self._example_tokens * examples
