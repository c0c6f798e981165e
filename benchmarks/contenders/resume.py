"""What the resume scripts of all contenders share: the arguments, the first batch, and counting what is repeated or lost.

Runs in every peer's environment. A script does one of three things: `walk` goes through the stream without an interruption and keeps
its order and its states; `time` goes on from a state to the first batch; `exact` goes on from a state to the end, through a
second resume, and compares.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import rows
from numpy.typing import NDArray

AFTER_FIRST = 500
"""Items between the first resume and the second."""


def arguments(description: str) -> argparse.Namespace:
    """The arguments that all scripts of data_resume have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("action", choices=("walk", "time", "exact"))
    parser.add_argument("--data", required=True, help="folder of the documents, in the contender's own format")
    parser.add_argument("--kept", type=Path, required=True, help="folder where the walk keeps its order and states")
    parser.add_argument("--tokenizer", required=True, help="tokenizer file")
    parser.add_argument(
        "--positions", type=int, nargs="+", required=True, help="where states are kept, or the one to use"
    )
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch")
    parser.add_argument("--skip", action="store_true", help="skip from the start instead of loading a state (datasets)")
    parser.add_argument("--window", type=int, default=0, help="rows to compare after a resume (ours)")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare rows (ours)")
    parser.add_argument("--engine", default="auto", help="tokenizer engine (ours)")
    return parser.parse_args()


def first_batch(texts: Iterable[str], tokenizer: rows.BatchTokenizer, asked: argparse.Namespace) -> list[Any]:
    """Tokenize and pack documents until there is a batch of rows."""
    return list(islice(rows.pack(texts, tokenizer, rows.Packer(asked.seq_len)), asked.batch))


def number_of(text: str) -> int:
    """The number that a document of the benchmark starts with."""
    return int(text.partition(" ")[0])


def keep_order(folder: Path, order: list[int] | NDArray[Any]) -> None:
    """Keep what the uninterrupted stream gave, item by item."""
    np.save(folder / "order.npy", np.asarray(order))


def compared(
    folder: Path, position: int, after: Iterator[int] | list[int], window: int | None = None
) -> dict[str, Any]:
    """Count the items after a resume at `position` that were there before it, and those that should come and do not.

    Args:
        folder: where the walk kept its order.
        position: items before the resume.
        after: items after it: all to the end of the epoch, or `window` of them.
        window: how many to compare, None for all.
    """
    order = np.load(folder / "order.npy").tolist()
    before, expected = Counter(order[:position]), order[position : None if window is None else position + window]
    got = list(after)
    came, due = Counter(got), Counter(expected)
    return {
        "compared": len(expected),
        "repeated": (came - due).total(),
        "of_those_seen_before": ((came - due) & before).total(),
        "lost": (due - came).total(),
        "same_order": got == expected,
    }
