"""How far the order of documents is from a true shuffle: the distance between neighbours, against numpy's permutation.

Documents that follow each other in a lane, and documents that come at once in neighbouring lanes of a batch, for sources
of different sizes with the blocks that a .jsonl has. A repetition is a seed, for both; the median over the repetitions is
the claim, the extremes are its spread. Up to 65,536 documents the order is to be a true shuffle; beyond that over the lanes
of a batch, and nearly so within a lane. The time of a place in the permutation is measured too.

    python benchmarks/shuffle_quality.py [--quick | --bench] [--json PATH]
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.claims import claim, options, show, write_json  # noqa: E402
from data_pipeline.order import Permutation, group_size  # noqa: E402
from data_pipeline.shuffle_quality import ShuffleQuality, measure, shuffle_quality  # noqa: E402
from data_pipeline.sources.source import BLOCKS  # noqa: E402

NUM_LANES = 256
BYTES = 4000  # of a document, which decides how many blocks a lane goes through together
PEER = f"numpy {np.__version__} permutation"


def true_shuffle(num_documents: int, block: int, seed: int, sample: int) -> ShuffleQuality:
    """A true permutation of all documents, dealt to the lanes in the same way."""
    shuffled = np.random.default_rng(seed).permutation(num_documents)
    per_lane = min(sample, num_documents) // NUM_LANES
    return measure(shuffled[: per_lane * NUM_LANES].reshape(per_lane, NUM_LANES).T, num_documents, block)


def seconds_per_place(num_documents: int) -> dict[str, float]:
    """Seconds for a place of a permutation, asked for one by one and as an array."""
    permutation = Permutation(num_documents, (1, 2))
    single, many = range(20_000), np.arange(min(num_documents, 1 << 20))
    start = time.perf_counter()
    for place in single:
        permutation[place % num_documents]
    middle = time.perf_counter()
    permutation[many]
    return {"single": (middle - start) / len(single), "array": (time.perf_counter() - middle) / len(many)}


def main() -> None:
    """Measure, print a line per claim, and write the numbers where `--json` says."""
    parser = options(__doc__, quick="fewer sizes and seeds, in seconds", bench="up to a million documents, fewer seeds")
    arguments = parser.parse_args()

    every = [20_000, 65_536, 1_000_000, 10_000_000]
    sizes = {"quick": [20_000, 1_000_000], "bench": every[:-1], "full": every}[arguments.size]
    seeds = range({"quick": 3, "bench": 5, "full": 7}[arguments.size])
    sample = 200_000 if arguments.size == "full" else 50_000
    claims: list[dict[str, Any]] = []
    sources: list[dict[str, Any]] = []
    for num_documents in sizes:
        block = -(-num_documents // BLOCKS)
        starts = np.append(np.arange(0, num_documents, block), num_documents)
        group = group_size(num_documents, len(starts) - 1, num_documents * BYTES)
        ours = [
            shuffle_quality(starts, num_lanes=NUM_LANES, seed=seed, group_size=group, sample=sample) for seed in seeds
        ]
        true = [true_shuffle(num_documents, block, seed, sample) for seed in seeds]
        places = seconds_per_place(num_documents)
        sources.append({"documents": num_documents, "block": block, "group": group, "seconds_per_place": places})
        print(
            f"{num_documents:,} documents of {BYTES} bytes in blocks of {block}, groups of {group} blocks; a place in {1e6 * places['single']:.1f} us, "
            f"in an array {1e6 * places['array']:.2f} us"
        )
        for kind in ("lane", "batch"):
            for name, runs in (("ours", ours), ("true", true)):
                mean = {
                    field: statistics.median(getattr(getattr(run, kind), field) for run in runs)
                    for field in ("distance", "near", "correlation")
                }
                sources[-1][f"{kind}_{name}"] = mean
                print(f"  neighbours in a {kind}, {name}: " + ", ".join(f"{k} {v:.5f}" for k, v in mean.items()))
            distances = [[getattr(run, kind).distance for run in runs] for runs in (ours, true)]
            goal = ">=0.99" if kind == "batch" or block == 1 else ">=0.8"
            claims.append(claim(f"{kind}_distance_{num_documents}", *distances, goal, PEER))
    show(claims)
    if arguments.json:
        settings = {"lanes": NUM_LANES, "bytes": BYTES, "seeds": len(seeds), "sample": sample, "numpy": np.__version__}
        write_json(arguments.json, arguments.size, {"settings": settings, "sources": sources, "claims": claims})


if __name__ == "__main__":
    main()
