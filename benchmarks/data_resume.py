"""Time to the first batch after a resume, near the start and far from it, and what a resume repeats or loses.

The same short documents for all, batches of 8 packed rows of 1024, tokenized on the fly, one thread:

  ours            this pipeline: load_state_dict; positions count rows, over several epochs
  ours_reference  the same with tokenizer_engine = "reference": without the time it takes to build the fast engine
  ours_1_worker   the same with data.workers = 1: what starting a process adds
  mosaicml        mosaicml-streaming: load_state_dict; positions count samples of an epoch
  datasets        datasets streaming with a shuffle buffer of 1000: load_state_dict; positions count examples of an epoch
  datasets_skip   the same with skip(position) instead of a state

The peers have no state for packing on top of them, so they are asked for their own unit, documents, which is generous: what a
packing buffer held is lost besides. Every state is a true one: each contender walks its stream from the start, without an
interruption, to the position (ours from the token cache, to come so far in minutes; its resumes tokenize). The time is
from opening the dataset, with everything imported, to the first packed batch; contenders take turns. What is repeated or
lost is counted against the uninterrupted walk, through two resumes: for the peers to the end of the epoch, for ours
over the next rows, and by the equality of the states after them.

    python benchmarks/data_resume.py [--quick] [--json PATH]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import peers  # noqa: E402
from benchmarks.claims import claim, show, write_json  # noqa: E402
from benchmarks.data_corpus import numbered_texts, tokenizer_files, write_jsonl  # noqa: E402

SEQ_LEN, BATCH, FILES = 1024, 8, 8
OURS = "ours"
_LONGEST_SECONDS = 3600


@dataclass
class Contender:
    """Who takes part: the interpreter, the script, its data, and more of its arguments when it resumes."""

    name: str
    python: Path | str
    script: str
    data: Path
    tokenizer: Path
    kept: Path
    label: str
    more: tuple[str, ...] = ()
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def run(self, action: str, positions: tuple[int, ...], window: int, scratch: Path) -> dict[str, Any]:
        """Run the script to its end and return what it printed."""
        self.kept.mkdir(exist_ok=True)
        common = ("--data", self.data, "--kept", self.kept, "--tokenizer", self.tokenizer, "--seq-len", SEQ_LEN)
        where = ("--positions", *positions, "--batch", BATCH, "--window", window)
        more = () if action == "walk" else self.more
        return peers.run(
            self.python, self.script, action, *common, *where, *more, scratch=scratch, timeout=_LONGEST_SECONDS
        )


def contenders(names: list[str], environments: Path, documents: Path, scratch: Path) -> list[Contender]:
    """Install the peers, and convert the documents for those that have their own format."""
    model, converted, _ = tokenizer_files(scratch)
    ours = (sys.executable, "ours_resume.py", documents, model, scratch / "kept-ours")
    entered = [
        Contender(OURS, *ours, label="none"),
        Contender("ours_reference", *ours, label="none", more=("--engine", "reference")),
        Contender("ours_1_worker", *ours, label="none", more=("--workers", "1")),
    ]
    for name in names:
        peer = peers.PEERS[name]
        python = peers.installed(peer, environments)
        data = documents if name == "datasets" else scratch / name
        if data != documents:
            arguments = ("--data", data, "--tokenizer", converted, "--prepare", documents)
            peers.run(python, f"{name}_rows.py", *arguments, scratch=scratch, timeout=_LONGEST_SECONDS)
        theirs = (python, f"{name}_resume.py", data, converted, scratch / f"kept-{name}")
        entered.append(Contender(name, *theirs, label=peer.label))
        if name == "datasets":
            entered.append(Contender("datasets_skip", *theirs, label=f"{peer.label} skip", more=("--skip",)))
    return entered


def walk(entered: list[Contender], positions: tuple[int, ...], window: int, scratch: Path) -> None:
    """Every script once, to all positions."""
    for one in {one.script: one for one in reversed(entered)}.values():
        start = time.perf_counter()
        result = one.run("walk", positions, window, scratch)
        print(f"{one.script}: walked {result['items']} items in {time.perf_counter() - start:.0f} s", flush=True)


def exactness(entered: list[Contender], positions: tuple[int, ...], window: int, scratch: Path) -> dict[str, Any]:
    """What each contender repeats and loses, by name and position."""
    found: dict[str, Any] = {}
    for one in entered:
        found[one.name] = {str(position): one.run("exact", (position,), window, scratch) for position in positions}
        for position, counts in found[one.name].items():
            print(
                f"{one.name:15} resumed twice from {position}: repeated {counts['repeated']}, lost {counts['lost']} "
                f"of {counts['compared']}, in {'the same' if counts['same_order'] else 'another'} order",
                flush=True,
            )
    return found


def measure(entered: list[Contender], positions: tuple[int, ...], rounds: int, scratch: Path) -> None:
    """Time every contender at every position once per round, in turn."""
    for turn in range(rounds):
        first = turn % len(entered)
        for one in entered[first:] + entered[:first]:
            for position in positions if turn % 2 else positions[::-1]:
                seconds = one.run("time", (position,), 0, scratch)["seconds"]
                one.seconds.setdefault(position, []).append(seconds)


def compare(entered: list[Contender], near: int, far: int, exact: dict[str, Any]) -> list[dict[str, Any]]:
    """The claims."""
    by_name = {one.name: one for one in entered}
    ours = by_name[OURS].seconds
    wrong = sum(
        counts["repeated"] + counts["lost"] + (not counts["same_order"]) + (not counts["same_state"])
        for name, by_position in exact.items()
        if name.startswith(OURS)
        for counts in by_position.values()
    )
    claims = [
        claim("data_resume_rows_repeated_or_lost", [float(wrong)], [1.0], "<=0", "none"),
        claim(f"data_resume_row_{far}_over_row_{near}", ours[far], ours[near], "<=1.2", "none"),
    ]
    for one in entered:
        if not one.name.startswith(OURS):
            claims.append(claim(f"data_resume_{far}_over_{one.name}", ours[far], one.seconds[far], "<=1", one.label))
    return claims


def main() -> None:
    """Measure, print a line per claim, and write the numbers where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="row 20,000 instead of 1,000,000, in about three minutes")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--peers", default="mosaicml,datasets", help="peers to compare with")
    parser.add_argument(
        "--environments", type=Path, default=peers.DEFAULT_ENVIRONMENTS, help="folder of the peers' environments"
    )
    asked = parser.parse_args()
    names = [name for name in asked.peers.split(",") if name]
    if unknown := set(names) - {"mosaicml", "datasets"}:
        parser.error(f"--peers: {', '.join(sorted(unknown))} is neither mosaicml nor datasets")
    near, far, rounds, window = (1000, 20_000, 3, 1000) if asked.quick else (1000, 1_000_000, 7, 20_000)
    count = far + far // 5

    with tempfile.TemporaryDirectory(prefix="palimpsest-") as temporary:
        scratch = Path(temporary)
        corpus = write_jsonl(numbered_texts(count), scratch / "documents", FILES)
        print(f"{corpus['bytes'] / 1e6:.0f} MB of text in {corpus['documents']} documents")
        entered = contenders(names, asked.environments, scratch / "documents", scratch)
        walk(entered, (near, far), window, scratch)
        exact = exactness(entered, (near, far), window, scratch)
        measure(entered, (near, far), rounds, scratch)

    claims = compare(entered, near, far, exact)
    for one in entered:
        medians = {position: statistics.median(one.seconds[position]) for position in (near, far)}
        print(f"{one.name:15}", *(f"first batch after {k}: {v:.3f} s" for k, v in medians.items()), sep="  ")
    show(claims)
    if asked.json:
        write_json(
            asked.json,
            {
                "schema": 1,
                "settings": {"seq_len": SEQ_LEN, "batch": BATCH, "window": window, **corpus},
                "exactness": exact,
                "seconds": {one.name: {str(k): v for k, v in one.seconds.items()} for one in entered},
                "claims": claims,
            },
        )


if __name__ == "__main__":
    main()
