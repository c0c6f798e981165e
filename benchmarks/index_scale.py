"""What it costs to index and to open a large source: time, memory and disk, and how they grow from a tenth of it.

Two corpora are made of documents of invented words, about 5 KB each: one of 5.5 GB in 1.1 million documents, and one of a
tenth of the documents (--quick: 1 GB and a tenth, --bench: 2.5 GB). Both are in 8 .jsonl files. Each measurement is a fresh process, and its
memory the peak of that process's resident set (VmHWM). The files were written just before and are in the page cache.

Per repetition, in turn: `index` in one process, for both corpora; `open` of the source as indexed, then its first document;
and the peer, `datasets`, preparing the same files of the smaller corpus (load_dataset("json")), which is what it must do
before it can give access to any of them by number.

    python benchmarks/index_scale.py [--quick | --bench] [--json PATH] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.claims import claim, options, show, write_json  # noqa: E402
from benchmarks.data_corpus import numbered_texts  # noqa: E402

NUM_FILES = 8
NUM_DOCUMENTS = {"quick": 200_000, "bench": 500_000, "full": 1_100_000}
REPETITIONS = 3


def texts(count: int) -> Iterator[str]:
    """Yield `count` documents of 5 KB on average, no two alike, of pieces of invented words."""
    draw = random.Random(1)
    pieces = list(numbered_texts(20_000))
    for number in range(count):
        yield f"{number} {' '.join(draw.choices(pieces, k=draw.randrange(1, 39)))}"


def write_corpora(folder: Path, count: int) -> dict[str, int]:
    """Write both corpora; return the bytes of each by name."""
    for name, size in (("whole", count), ("tenth", count // 10)):
        (folder / name).mkdir(parents=True)
        files = [(folder / name / f"{number}.jsonl").open("w", encoding="utf-8") for number in range(NUM_FILES)]
        for number, text in enumerate(texts(size)):
            files[number * NUM_FILES // size].write(json.dumps({"text": text}) + "\n")
        for file in files:
            file.close()
    return {name: sum(file.stat().st_size for file in (folder / name).glob("*.jsonl")) for name in ("whole", "tenth")}


def index(folder: Path, cache: Path, workers: int) -> dict[str, float]:
    """Index a corpus from nothing."""
    from data_pipeline.config import SourceConfig
    from data_pipeline.sources.source import open_source

    start = time.perf_counter()
    source = open_source("a", SourceConfig(path=str(folder)), cache_dir=cache, cache_bytes=0, workers=workers)
    seconds = time.perf_counter() - start
    size = sum(shard.index.size_on_disk for shard in source.shards)
    return {"seconds": seconds, "documents": source.num_documents, "index_bytes": size}


def opened(folder: Path, cache: Path, workers: int) -> dict[str, float]:
    """Open a corpus that is indexed, and read a document in the middle."""
    from data_pipeline.config import SourceConfig
    from data_pipeline.sources.source import open_source

    start = time.perf_counter()
    source = open_source("a", SourceConfig(path=str(folder)), cache_dir=cache, cache_bytes=0)
    middle = time.perf_counter()
    block = len(source.block_starts) // 2
    (record, *_) = source.records(int(source.block_starts[block]), int(source.block_starts[block + 1]))
    end = time.perf_counter()
    assert isinstance(record, dict)
    assert record["text"]
    return {"open_seconds": middle - start, "first_document_seconds": end - middle, "seconds": end - start}


def peer(folder: Path, cache: Path, workers: int) -> dict[str, float]:
    """Let `datasets` prepare a corpus for access by number."""
    import datasets

    datasets.disable_progress_bars()
    start = time.perf_counter()
    made = datasets.load_dataset(
        "json", data_files=sorted(map(str, folder.glob("*.jsonl"))), split="train", cache_dir=str(cache)
    )
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "documents": made.num_rows, "index_bytes": folder_bytes(cache)}


TASKS = {"index": index, "open": opened, "peer": peer}


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def peak_memory() -> int:
    """Most bytes that this process has had in memory."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def run(task: str, folder: Path, cache: Path, workers: int = 0) -> dict[str, float]:
    """Do a task in a fresh process; return what it measured, with its peak memory."""
    command = [sys.executable, __file__, "--task", task, str(folder), str(cache), str(workers)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(folder: Path, repetitions: int) -> dict[str, list[dict[str, float]]]:
    """Measurements of every task by name, one per repetition."""
    measured: dict[str, list[dict[str, float]]] = {}
    for _ in range(repetitions):
        for name in ("whole", "tenth"):
            for workers in (2, 0):
                cache = folder / f"cache-{name}"
                shutil.rmtree(cache, ignore_errors=True)
                which = f"index_{name}" if workers == 0 else f"index_{name}_{workers}_workers"
                measured.setdefault(which, []).append(run("index", folder / name, cache, workers))
            measured.setdefault(f"open_{name}", []).append(run("open", folder / name, cache))
        cache = folder / "cache-peer"
        shutil.rmtree(cache, ignore_errors=True)
        measured.setdefault("peer_tenth", []).append(run("peer", folder / "tenth", cache))
        shutil.rmtree(cache, ignore_errors=True)
    return measured


def main() -> None:
    """Measure, print the figures and a line per claim, and write them where `--json` says."""
    parser = options(__doc__, quick="1 GB instead of 5.5 GB", bench="2.5 GB")
    parser.add_argument("--folder", type=Path, help="where the corpora are made, and removed after; 7 GB")
    parser.add_argument("--task", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        task, folder, cache, workers = arguments.task
        print(json.dumps(TASKS[task](Path(folder), Path(cache), int(workers)) | {"peak_memory": peak_memory()}))
        return

    import datasets

    peer_name = f"datasets {datasets.__version__}"
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="index_scale.") as folder:
        sizes = write_corpora(Path(folder), NUM_DOCUMENTS[arguments.size])
        measured = measure(Path(folder), REPETITIONS)

    def all_of(name: str, what: str) -> list[float]:
        return [measurement[what] for measurement in measured[name]]

    for name in measured:
        size = sizes["whole" if "whole" in name else "tenth"]
        figures = {what: statistics.median(all_of(name, what)) for what in measured[name][0]}
        print(
            f"{name:24} {figures['seconds']:8.3f} s  {size / figures['seconds'] / 1e6:8.0f} MB/s  "
            f"peak {figures['peak_memory'] / 1e6:6.0f} MB  "
            + "  ".join(
                f"{what} {value:g}" for what, value in figures.items() if what not in ("seconds", "peak_memory")
            )
        )
    itself = "itself, a tenth"
    claims = [
        claim("index_seconds", all_of("index_tenth", "seconds"), all_of("peer_tenth", "seconds"), "<=0.25", peer_name),
        claim(
            "index_disk", all_of("index_tenth", "index_bytes"), all_of("peer_tenth", "index_bytes"), "<=0.01", peer_name
        ),
        claim(
            "index_memory", all_of("index_whole", "peak_memory"), all_of("index_tenth", "peak_memory"), "<=1.1", itself
        ),
        claim("open_memory", all_of("open_whole", "peak_memory"), all_of("open_tenth", "peak_memory"), "<=1.1", itself),
        claim("open_seconds", all_of("open_whole", "seconds"), all_of("open_tenth", "seconds"), "<=3", itself),
    ]
    show(claims)
    if arguments.json:
        settings = {"files": NUM_FILES, "bytes": sizes, "documents": NUM_DOCUMENTS[arguments.size]}
        write_json(arguments.json, arguments.size, {"settings": settings, "measured": measured, "claims": claims})


if __name__ == "__main__":
    main()
