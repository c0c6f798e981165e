"""litdata: texts in its chunks, shuffled, tokenized on the fly, packed; a worker is one of the DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import rows
from litdata import StreamingDataset
from litdata.streaming.cache import Cache
from torch.utils.data import DataLoader, IterableDataset


class PackedDataset(IterableDataset[dict[str, Any]]):
    """The rows of the documents of a litdata folder."""

    def __init__(self, documents: StreamingDataset, tokenizer: str, seq_len: int) -> None:
        self._documents = documents
        self._tokenizer = rows.load_tokenizer(tokenizer)
        self._packer = rows.Packer(seq_len)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows of one epoch."""
        # Its iterator starts again whenever it is asked for an iterator.
        texts = (text for text in self._documents)
        return rows.pack(texts, self._tokenizer, self._packer)


def batches(loader: DataLoader[Any]) -> Iterator[list[Any]]:
    """Endless batches: one epoch after the other."""
    while True:
        for batch in loader:
            yield list(batch.values())


def main() -> None:
    """Convert, or measure."""
    asked = rows.arguments(str(__doc__))
    if asked.prepare:
        cache = Cache(asked.data, chunk_bytes="64MB")
        for number, text in enumerate(rows.read_texts(asked.prepare)):
            cache[number] = text
        cache.done()
        cache.merge()
        print("{}")
        return
    dataset = PackedDataset(StreamingDataset(asked.data, shuffle=True), asked.tokenizer, asked.seq_len)
    loader = DataLoader(
        dataset, batch_size=asked.batch, num_workers=asked.workers, persistent_workers=asked.workers > 0
    )
    rows.report(batches(loader), asked)


if __name__ == "__main__":
    main()
