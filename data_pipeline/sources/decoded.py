"""Extents that were decoded, kept for the next reader of another part of them."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from data_pipeline.sources.formats import Records


class DecodedExtents:
    """The records of the extents that were used last, up to a number of bytes in memory, but of one extent at least.

    Attributes:
        num_bytes: what the kept records take, estimated.
    """

    def __init__(self, max_bytes: int) -> None:
        """Keep about `max_bytes`."""
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, tuple[Records, int]] = OrderedDict()
        self.num_bytes = 0

    def get(self, extent: Hashable, decode: Callable[[], Records]) -> Records:
        """The records of an extent, which are not to be changed; `decode` is called where they are not kept."""
        if extent not in self._kept:
            records = decode()
            self._kept[extent] = records, bytes_in_memory(records)
            self.num_bytes += self._kept[extent][1]
        self._kept.move_to_end(extent)
        while self.num_bytes > self._max_bytes and len(self._kept) > 1:
            _, (_, size) = self._kept.popitem(last=False)
            self.num_bytes -= size
        return self._kept[extent][0]

    def clear(self) -> None:
        """Keep nothing of what was decoded so far."""
        self._kept.clear()
        self.num_bytes = 0


def bytes_in_memory(value: Any) -> int:
    """About how many bytes records, or a value in one, take in memory; of a dict without its keys, which records share."""
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        return size + sum(map(bytes_in_memory, value.values()))
    if isinstance(value, list):
        return size + sum(map(bytes_in_memory, value))
    return size
