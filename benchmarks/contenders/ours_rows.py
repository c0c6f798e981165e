"""This pipeline: .jsonl, shuffled, tokenized on the fly, packed; a worker is one of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import rows

# Run by path, a script sees its own folder alone; processes it spawns need both.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.stream.workers import open_stream


def batches(stream: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Endless batches of rows, as arrays."""
    while True:
        some = list(islice(stream, size))
        yield [np.stack([getattr(row, name) for row in some]) for name in ("input_ids", "labels", "position_ids")]


def main() -> None:
    """Measure."""
    asked = rows.arguments(str(__doc__))
    config = DataConfig(
        sources={"text": SourceConfig(path=asked.data)},
        tokenizer=Path(asked.tokenizer),
        tokenizer_engine=asked.engine,
        seq_len=asked.seq_len,
        workers=asked.workers,
    )
    # The documents of one lane come one after the other, which the comparison of tokens needs.
    lanes = 1 if asked.check else asked.batch
    stream = open_stream(config, num_lanes=lanes, lanes=range(lanes), seed=0)
    try:
        rows.report(batches(iter(stream), lanes), asked, engine=stream.tokenizer.engine)
    finally:
        stream.close()


if __name__ == "__main__":
    main()
