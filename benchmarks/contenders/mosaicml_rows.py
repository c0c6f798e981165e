"""MosaicML streaming: MDS shards, shuffled, tokenized on the fly, packed; a worker is one of the DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import rows
import torchvision_first  # noqa: F401
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader


class PackedDataset(StreamingDataset):  # type: ignore[misc]
    """The rows of the documents in an MDS folder."""

    def __init__(self, tokenizer: str, seq_len: int, **options: Any) -> None:
        super().__init__(**options)
        self._tokenizer = rows.load_tokenizer(tokenizer)
        self._packer = rows.Packer(seq_len)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows of one epoch."""
        texts = (sample["text"] for sample in super().__iter__())
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
        with MDSWriter(out=asked.data, columns={"text": "str"}) as writer:
            for text in rows.read_texts(asked.prepare):
                writer.write({"text": text})
        print("{}")
        return
    dataset = PackedDataset(
        asked.tokenizer, asked.seq_len, local=asked.data, shuffle=True, batch_size=asked.batch, num_canonical_nodes=1
    )
    loader = DataLoader(
        dataset, batch_size=asked.batch, num_workers=asked.workers, persistent_workers=asked.workers > 0
    )
    rows.report(batches(loader), asked)


if __name__ == "__main__":
    main()
