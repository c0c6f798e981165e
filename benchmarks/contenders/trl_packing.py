"""TRL: pack_dataset with its strategy "bfd" on examples in memory, batch by batch as Dataset.map gives them."""

from __future__ import annotations

import argparse
import json
import time

import datasets
import numpy as np
import pyarrow as pa
from trl.data_utils import pack_dataset

DEFAULT_BATCH = 1000
"""The default of Dataset.map: pack_dataset packs each batch by itself."""


def main() -> None:
    """Pack all examples once per batch size; print seconds, rows and the share of them that is filled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", required=True, help=".npz with one array of lengths per source")
    parser.add_argument("--seq-len", type=int, required=True)
    asked = parser.parse_args()
    lengths = np.random.default_rng(0).permutation(np.concatenate(list(np.load(asked.lengths).values())))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    ids = pa.array(np.arange(int(lengths.sum()), dtype=np.int32))
    dataset = datasets.Dataset(pa.table({"input_ids": pa.ListArray.from_arrays(offsets, ids)}))
    datasets.disable_caching()
    datasets.disable_progress_bars()
    results = {}
    for name, batch_size in (("default", DEFAULT_BATCH), ("whole", len(lengths))):
        start = time.perf_counter()
        packed = pack_dataset(
            dataset, asked.seq_len, "bfd", map_kwargs={"batch_size": batch_size, "keep_in_memory": True}
        )
        seconds = time.perf_counter() - start
        # An epoch has all tokens, or some were lost.
        tokens = sum(map(sum, packed["seq_lengths"]))
        assert tokens == lengths.sum()
        results[name] = {
            "examples_per_second": len(lengths) / seconds,
            "fill": int(tokens) / (len(packed) * asked.seq_len),
            "rows": len(packed),
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
