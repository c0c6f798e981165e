"""Hugging Face datasets: .jsonl streamed, shuffled by a buffer, tokenized by map, packed; a worker is one of the DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import rows
from torch.utils.data import DataLoader, IterableDataset

SHUFFLE_BUFFER = 1000
"""The default of IterableDataset.shuffle."""


def tokenized(folder: str, tokenizer_file: str) -> datasets.IterableDataset:
    """The shuffled documents of a folder, as ids."""
    tokenizer = rows.load_tokenizer(tokenizer_file)
    files = sorted(str(file) for file in Path(folder).glob("*.jsonl"))
    stream = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
    # By the default of 1000 documents the same work would come in bursts longer than a measurement.
    return stream.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER).map(
        lambda batch: {"ids": rows.encode(tokenizer, batch["text"])},
        batched=True,
        batch_size=rows.DOCUMENTS_AT_ONCE,
        remove_columns=["text"],
    )


class PackedDataset(IterableDataset[dict[str, Any]]):
    """The rows of the documents of a streamed dataset."""

    def __init__(self, documents: datasets.IterableDataset, seq_len: int) -> None:
        self._documents = documents
        self._packer = rows.Packer(seq_len)
        self._epoch = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows of one epoch."""
        self._documents.set_epoch(self._epoch)
        self._epoch += 1
        documents = iter(self._documents)
        while some := [document["ids"] for document in islice(documents, rows.DOCUMENTS_AT_ONCE)]:
            yield from self._packer.add(some)


def batches(loader: DataLoader[Any]) -> Iterator[list[Any]]:
    """Endless batches: one epoch after the other."""
    while True:
        for batch in loader:
            yield list(batch.values())


def main() -> None:
    """Measure."""
    asked = rows.arguments(str(__doc__))
    dataset = PackedDataset(tokenized(asked.data, asked.tokenizer), asked.seq_len)
    loader = DataLoader(
        dataset, batch_size=asked.batch, num_workers=asked.workers, persistent_workers=asked.workers > 0
    )
    rows.report(batches(loader), asked)


if __name__ == "__main__":
    main()
