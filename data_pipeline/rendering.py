"""A row of token ids as text that a person can check."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from data_pipeline.encoding import Tokenizer
from data_pipeline.packing import IGNORED
from data_pipeline.stream import Row


def render_row(row: Row, tokenizer: Tokenizer) -> str:
    """The row's text: a heading for each document part in it, inputs without a label in ⟦ ⟧, BOS and EOS by name."""
    lines = []
    starts = [int(start) for start in np.flatnonzero(row.position_ids == 0)]
    for start, stop in zip(starts, [*starts[1:], len(row.input_ids)], strict=True):
        labels = int((row.labels[start:stop] != IGNORED).sum())
        lines.append(f"── inputs {start} to {stop - 1}: {stop - start} tokens, {labels} with a label ──")
        lines.append("".join(_runs(row, start, stop, tokenizer)))
    return "\n".join(lines)


def _runs(row: Row, start: int, stop: int, tokenizer: Tokenizer) -> Iterator[str]:
    names = {tokenizer.eos_id: "<EOS>", tokenizer.bos_id: "<BOS>"}

    def kind(at: int) -> tuple[str | None, bool]:
        return names.get(int(row.input_ids[at])), bool(row.labels[at] == IGNORED)

    for (name, ignored), places in groupby(range(start, stop), key=kind):
        ids = row.input_ids[list(places)]
        text = name * len(ids) if name else tokenizer.decode(ids.tolist())
        yield f"⟦{text}⟧" if ignored else text
