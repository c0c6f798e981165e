"""Hugging Face datasets, streamed .jsonl with a shuffle buffer: resume by load_state_dict or by skip; an item is an example."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import resume
import rows

SHUFFLE_BUFFER = 1000
"""The default of IterableDataset.shuffle."""


def opened(folder: str) -> datasets.IterableDataset:
    """The shuffled stream."""
    files = sorted(str(file) for file in Path(folder).glob("*.jsonl"))
    stream = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
    return stream.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER)


def resumed(asked: Any) -> datasets.IterableDataset:
    """The stream at the asked position, by the asked means."""
    position = asked.positions[0]
    stream = opened(asked.data)
    if asked.skip:
        return stream.skip(position)
    stream.load_state_dict(pickle.loads((asked.kept / f"state-{position}.pickle").read_bytes()))
    return stream


def numbers(stream: datasets.IterableDataset) -> Iterator[int]:
    """The numbers of an epoch's documents."""
    return (resume.number_of(example["text"]) for example in stream)


def walk(asked: Any) -> dict[str, Any]:
    """One epoch without an interruption."""
    stream = opened(asked.data)
    order: list[int] = []
    for number in numbers(stream):
        order.append(number)
        if len(order) in asked.positions:
            (asked.kept / f"state-{len(order)}.pickle").write_bytes(pickle.dumps(stream.state_dict()))
    resume.keep_order(asked.kept, order)
    return {"items": len(order)}


def timed(asked: Any) -> dict[str, Any]:
    """Seconds to the first batch."""
    start = time.perf_counter()
    stream = resumed(asked)
    tokenizer = rows.load_tokenizer(asked.tokenizer)
    resume.first_batch((example["text"] for example in stream), tokenizer, asked)
    return {"seconds": time.perf_counter() - start}


def exact(asked: Any) -> dict[str, Any]:
    """The rest of the epoch, resumed twice."""
    stream = resumed(asked)
    got = list(islice(numbers(stream), resume.AFTER_FIRST))
    if asked.skip:
        again = opened(asked.data).skip(asked.positions[0] + len(got))
    else:
        state = pickle.loads(pickle.dumps(stream.state_dict()))
        again = opened(asked.data)
        again.load_state_dict(state)
    got += numbers(again)
    return resume.compared(asked.kept, asked.positions[0], got)


def main() -> None:
    """Do what is asked, and print what came of it."""
    asked = resume.arguments(str(__doc__))
    actions = {"walk": walk, "time": timed, "exact": exact}
    print(json.dumps(actions[asked.action](asked)))


if __name__ == "__main__":
    main()
