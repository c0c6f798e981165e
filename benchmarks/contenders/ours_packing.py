"""This pipeline: the rows of PackedOrder for about one epoch, with the ids of their examples put together from memory."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from data_pipeline.packing.best_fit import PackedOrder, best_fit_decreasing  # noqa: E402

RELEASE_ROWS = 256


def main() -> None:
    """Pack an epoch; print seconds, rows and the share of them that is filled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", required=True, help=".npz with one array of lengths per source")
    parser.add_argument("--seq-len", type=int, required=True)
    asked = parser.parse_args()
    lengths = dict(np.load(asked.lengths))
    starts = {name: np.concatenate([[0], np.cumsum(each)]) for name, each in lengths.items()}
    ids = {name: np.arange(int(each.sum()), dtype=np.int32) for name, each in lengths.items()}
    names = list(lengths)
    # Weights by size: about one epoch of each source.
    order = PackedOrder(
        list(lengths.values()), names, [float(each.sum()) for each in lengths.values()], seq_len=asked.seq_len, seed=0
    )
    rows = sum(int(each.sum()) for each in lengths.values()) // asked.seq_len
    examples = filled = 0
    worst = asked.seq_len
    start = time.perf_counter()
    for number in range(rows):
        refs = order.row(number)
        parts = []
        for ref in refs:
            first = starts[names[ref.source]][ref.number]
            parts.append(ids[names[ref.source]][first : first + lengths[names[ref.source]][ref.number]])
        size = len(np.concatenate(parts))
        examples += len(refs)
        filled += size
        worst = min(worst, size)
        if number % RELEASE_ROWS == 0:
            order.release(number)
    seconds = time.perf_counter() - start
    every = np.concatenate(list(lengths.values()))
    start = time.perf_counter()
    best_fit_decreasing(every, asked.seq_len)
    result = {
        "examples_per_second": examples / seconds,
        "best_fit_alone_per_second": len(every) / (time.perf_counter() - start),
        "fill": filled / (rows * asked.seq_len),
        "worst_row": worst / asked.seq_len,
        "rows": rows,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
