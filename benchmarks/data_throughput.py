"""Tokens per second from text to packed, shuffled rows: this pipeline, and what users of other pipelines run.

The same documents, the same tokenizer, rows of 4096 with labels and restarted positions, batches of 8, and the same number of
processes with one thread each: 0 (all in the process that takes the batches) or 2. The contenders:

  ours            this pipeline, on .jsonl, with its fast tokenizer engine
  ours_reference  the same with tokenizer_engine = "reference" (sentencepiece): what the pipeline alone gives
  mosaicml        mosaicml-streaming over MDS shards of the documents, a transformers fast tokenizer on the fly, packing
  datasets        datasets streaming over the .jsonl, shuffle, map with the same tokenizer, packing
  litdata         litdata over its chunks of the documents, the same tokenizer on the fly, packing

First every contender's tokens of every document of a sample are compared. Then they take turns, each as a process of its own,
measured in its steady state for a fixed time or until nearly all the text was seen once. A ratio is taken within a round; the median over the rounds is the claim.

    python benchmarks/data_throughput.py [--quick | --bench] [--json PATH]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import peers  # noqa: E402
from benchmarks.claims import claim, options, show, turns, write_json  # noqa: E402
from benchmarks.data_corpus import library_texts, tokenizer_files, tokenizer_label, write_jsonl  # noqa: E402

SEQ_LEN, BATCH, WORKERS, FILES = 4096, 8, (0, 2), 8
GOAL = ">=2"
REFERENCE = "ours_reference"


@dataclass(frozen=True)
class Contender:
    """Who takes part: the interpreter, the script, its data, and more of its arguments."""

    name: str
    python: Path | str
    script: str
    data: Path
    tokenizer: Path
    more: tuple[str, ...] = ()

    def run(self, scratch: Path, timeout: float, *arguments: object) -> dict[str, Any]:
        """Run the script to its end and return what it printed."""
        common = ("--data", self.data, "--tokenizer", self.tokenizer, "--seq-len", SEQ_LEN, "--batch", BATCH)
        return peers.run(self.python, self.script, *common, *self.more, *arguments, scratch=scratch, timeout=timeout)


def contenders(names: list[str], environments: Path, documents: Path, folder: Path) -> list[Contender]:
    """Install the peers, and convert the .jsonl files of `documents` into their formats, in `folder`."""
    folder.mkdir(exist_ok=True)
    model, converted = tokenizer_files(folder)
    ours = (sys.executable, "ours_rows.py", documents, model)
    entered = [Contender("ours", *ours), Contender(REFERENCE, *ours, ("--engine", "reference"))]
    for name in names:
        python = peers.installed(peers.PEERS[name], environments)
        data = documents if name == "datasets" else folder / name
        contender = Contender(name, python, f"{name}_rows.py", data, converted)
        if name != "datasets":
            contender.run(folder, 600, "--prepare", documents)
        entered.append(contender)
    return entered


def differing_documents(entered: list[Contender], count: int, scratch: Path) -> dict[str, int]:
    """How many of `count` documents, an epoch, have tokens in a contender's rows that none has in ours with the reference engine."""
    found = {one.name: Counter(one.run(scratch, 600, "--check", count)["documents"]) for one in entered}
    reference = found[REFERENCE]
    return {name: (reference - documents).total() for name, documents in found.items()}


def measure(
    entered: list[Contender], workers: int, rounds: int, limits: tuple[object, ...], scratch: Path
) -> dict[str, Any]:
    """What every contender printed in every round, by name."""
    results: dict[str, list[dict[str, Any]]] = {one.name: [] for one in entered}
    for order in turns(entered, rounds):
        for one in order:
            result = one.run(scratch, 600, "--workers", workers, *limits)
            results[one.name].append(result)
            print(f"  workers {workers}  {one.name:15} {result['tokens_per_second'] / 1e6:8.3f} M tokens/s", flush=True)
    return results


def compare(results: dict[str, Any], names: list[str], workers: int) -> list[dict[str, Any]]:
    """The claims against every peer, each with the ratio of processor time and, where it took part, those of ours with the reference engine."""
    speeds = {name: [result["tokens_per_second"] for result in rounds] for name, rounds in results.items()}
    per_cpu = {
        name: [result["tokens"] / result["cpu_seconds"] for result in rounds] for name, rounds in results.items()
    }
    claims = []
    for name in names:
        label = peers.PEERS[name].label
        line = claim(f"data_throughput_{name}_workers{workers}", speeds["ours"], speeds[name], GOAL, label)
        context = {"processor_time": claim("", per_cpu["ours"], per_cpu[name], GOAL, label)["ratio"]}
        if REFERENCE in results:
            context |= {
                "reference_engine": claim("", speeds[REFERENCE], speeds[name], GOAL, label)["ratio"],
                "reference_engine_processor_time": claim("", per_cpu[REFERENCE], per_cpu[name], GOAL, label)["ratio"],
            }
        shown = "  ".join(f"{key} {value:.2f}" for key, value in context.items())
        print(f"workers {workers}  ours over {label}: {line['ratio']:.2f}  {shown}")
        claims.append(line | {"context": context})
    return claims


def main() -> None:
    """Measure, print a line per claim, and write the numbers where `--json` says."""
    parser = options(
        __doc__,
        quick="40 MB of text and a short round, in about two minutes",
        bench="64 MB, rounds of 2 seconds, and the reference engine is not timed",
    )
    parser.add_argument("--peers", default="mosaicml,datasets,litdata", help="peers to compare with")
    parser.add_argument(
        "--environments", type=Path, default=peers.DEFAULT_ENVIRONMENTS, help="folder of the peers' environments"
    )
    asked = parser.parse_args()
    names = [name for name in asked.peers.split(",") if name]
    if unknown := set(names) - set(peers.PEERS):
        parser.error(f"--peers: {', '.join(sorted(unknown))} is none of {', '.join(peers.PEERS)}")
    megabytes, rounds, seconds = {"quick": (40, 1, 3.0), "bench": (64, 4, 2.0), "full": (250, 5, 10.0)}[asked.size]

    with tempfile.TemporaryDirectory(prefix="palimpsest-") as temporary:
        scratch = Path(temporary)
        sample = scratch / "sample"
        checked = write_jsonl(islice(library_texts(100_000_000), 0, 6000, 5), sample, 2)
        different = differing_documents(
            contenders(names, asked.environments, sample, scratch / "of_sample"), checked["documents"], scratch
        )
        print(f"documents of {checked['documents']} with other tokens:", *(f"{k} {v}" for k, v in different.items()))
        documents = scratch / "documents"
        corpus = write_jsonl(library_texts(megabytes * 1_000_000), documents, FILES)
        print(f"{corpus['bytes'] / 1e6:.0f} MB of text in {corpus['documents']} documents")
        entered = contenders(names, asked.environments, documents, scratch / "of_documents")
        # A token of such text has less than 4 bytes.
        limits = ("--seconds", seconds, "--most-tokens", corpus["bytes"] // 4)
        timed = [one for one in entered if asked.size != "bench" or one.name != REFERENCE]
        results = {str(workers): measure(timed, workers, rounds, limits, scratch) for workers in WORKERS}

    other = float(sum(different.values()))
    claims = [claim("data_throughput_documents_with_other_tokens", [other], [1.0], "<=0", "all")]
    claims += [line for workers in WORKERS for line in compare(results[str(workers)], names, workers)]
    for workers, by_name in results.items():
        medians = {name: statistics.median(r["tokens_per_second"] for r in runs) for name, runs in by_name.items()}
        print(f"workers {workers}  M tokens/s:", *(f"{name} {value / 1e6:.2f}" for name, value in medians.items()))
    show(claims)
    if asked.json:
        settings = {"seq_len": SEQ_LEN, "batch": BATCH, "tokenizer": tokenizer_label(), "seconds": seconds, **corpus}
        write_json(
            asked.json,
            asked.size,
            {
                "settings": settings,
                "checked_documents": checked["documents"],
                "differing_documents": different,
                "results": results,
                "claims": claims,
            },
        )


if __name__ == "__main__":
    peers.reported(main)
