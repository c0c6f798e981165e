"""MosaicML streaming: resume by load_state_dict; an item is a sample of its shuffled epoch, the unit of its state."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import resume
import rows
import torchvision_first  # noqa: F401
from streaming import StreamingDataset


def opened(folder: str, batch: int) -> Any:
    """The shuffled dataset."""
    return StreamingDataset(local=folder, shuffle=True, batch_size=batch, num_canonical_nodes=1)


def numbers(dataset: Any) -> Iterator[int]:
    """The numbers of an epoch's documents."""
    return (resume.number_of(sample["text"]) for sample in dataset)


def walk(asked: Any) -> dict[str, Any]:
    """One epoch without an interruption."""
    dataset = opened(asked.data, asked.batch)
    order: list[int] = []
    for number in numbers(dataset):
        order.append(number)
        if len(order) in asked.positions:
            state = dataset.state_dict(len(order), from_beginning=True)
            (asked.kept / f"state-{len(order)}.json").write_text(json.dumps(state))
    resume.keep_order(asked.kept, order)
    return {"items": len(order)}


def timed(asked: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Seconds to the first batch."""
    start = time.perf_counter()
    dataset = opened(asked.data, asked.batch)
    dataset.load_state_dict(state)
    tokenizer = rows.load_tokenizer(asked.tokenizer)
    resume.first_batch((sample["text"] for sample in dataset), tokenizer, asked)
    return {"seconds": time.perf_counter() - start}


def exact(asked: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The rest of the epoch, resumed twice."""
    dataset = opened(asked.data, asked.batch)
    dataset.load_state_dict(state)
    got = list(islice(numbers(dataset), resume.AFTER_FIRST))
    state = json.loads(json.dumps(dataset.state_dict(len(got), from_beginning=False)))
    del dataset
    again = opened(asked.data, asked.batch)
    again.load_state_dict(state)
    got += numbers(again)
    return resume.compared(asked.kept, asked.positions[0], got)


def main() -> None:
    """Do what is asked, and print what came of it."""
    asked = resume.arguments(str(__doc__))
    if asked.action == "walk":
        print(json.dumps(walk(asked)))
        return
    state = json.loads((asked.kept / f"state-{asked.positions[0]}.json").read_text())
    print(json.dumps(timed(asked, state) if asked.action == "time" else exact(asked, state)))


if __name__ == "__main__":
    main()
