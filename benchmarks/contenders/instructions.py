"""What the contenders of the instruction benchmark share: where they find the pairs, the encoded examples, the clock."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

IGNORE = -100
"""Label of a position that is no target."""
LEARNING_RATE = 1e-4


def arguments(description: str) -> argparse.Namespace:
    """The command line of a contender."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="pairs.jsonl, examples.npz, tokenizer.model, tokenizer.json and base/",
    )
    parser.add_argument("--seq-len", type=int, required=True, help="tokens of a packed row")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before the clock starts")
    parser.add_argument("--sampling", default="random", help="order of the Trainer: random or group_by_length")
    return parser.parse_args()


class Example(NamedTuple):
    """A pair as tokens: int64 ids, and labels with IGNORE where nothing is to be predicted."""

    input_ids: np.ndarray
    labels: np.ndarray


def read_examples(folder: Path) -> list[Example]:
    """All pairs, in the order of pairs.jsonl."""
    kept = np.load(folder / "examples.npz")
    cuts = np.cumsum(kept["lengths"])[:-1]
    labels = np.where(kept["is_target"], kept["ids"], IGNORE)
    return [
        Example(*both)
        for both in zip(np.split(kept["ids"].astype(np.int64), cuts), np.split(labels, cuts), strict=True)
    ]


class Clock:
    """Counts seconds, target tokens and positions of the steps behind the warm-up."""

    def __init__(self, warm_up: int) -> None:
        self._left = warm_up
        self._start = self._cpu_start = 0.0
        self._targets = self._positions = self._steps = 0

    def step_ended(self, targets: int, positions: int) -> None:
        """Take note of a step: of how many positions, padding included, so many were targets."""
        if self._left > 0:
            self._left -= 1
            self._start, self._cpu_start = time.perf_counter(), time.process_time()
        else:
            self._targets += targets
            self._positions += positions
            self._steps += 1

    def report(self) -> None:
        """Print the result."""
        seconds, cpu_seconds = time.perf_counter() - self._start, time.process_time() - self._cpu_start
        result: dict[str, Any] = {
            "steps": self._steps, "targets": self._targets, "positions": self._positions, "seconds": seconds,
            "targets_per_second": self._targets / seconds, "targets_per_cpu_second": self._targets / cpu_seconds,
        }  # fmt: skip
        print(json.dumps(result), flush=True)
