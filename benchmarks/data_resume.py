"""Time to the first batch after a resume, at the start and far from it, and what a resume repeats or loses.

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
over the next rows, and by the equality of the states after them. Ours resumes from the state before the first row and from
the far one, the peers from the far one.

    python benchmarks/data_resume.py [--quick | --bench] [--json PATH]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import peers  # noqa: E402
from benchmarks.claims import claim, options, show, turns, write_json  # noqa: E402
from benchmarks.data_corpus import numbered_texts, tokenizer_files, tokenizer_label, write_jsonl  # noqa: E402

SEQ_LEN, BATCH, FILES = 1024, 8, 8
START = 0
"""The position that others are compared with: before the first row."""
OURS, DATASETS = "ours", "datasets"
_LONGEST_SECONDS = 3600
_SCRIPTS_AT_ONCE = 2
"""Of those that are not timed."""


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
    positions: tuple[int, ...]
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


def contenders(
    names: list[str], environments: Path, documents: Path, far: int, scratch: Path, *, is_short: bool
) -> list[Contender]:
    """Install the peers, and convert the documents for those that have their own format.

    Args:
        names: keys of peers.PEERS.
        environments: folder of the peers' environments.
        documents: .jsonl files.
        far: the position that all resume from.
        scratch: folder for everything else.
        is_short: leave out ours in the two ways that no claim is about.
    """
    model, converted = tokenizer_files(scratch)
    ours = (sys.executable, "ours_resume.py", documents, model, scratch / "kept-ours", "none", (START, far))
    entered = [Contender(OURS, *ours)]
    if not is_short:
        entered.append(Contender("ours_reference", *ours, more=("--engine", "reference")))
        entered.append(Contender("ours_1_worker", *ours, more=("--workers", "1")))
    for name in names:
        peer = peers.PEERS[name]
        python = peers.installed(peer, environments)
        data = documents if name == DATASETS else scratch / name
        if data != documents:
            arguments = ("--data", data, "--tokenizer", converted, "--prepare", documents)
            peers.run(python, f"{name}_rows.py", *arguments, scratch=scratch, timeout=_LONGEST_SECONDS)
        theirs = (python, f"{name}_resume.py", data, converted, scratch / f"kept-{name}")
        entered.append(Contender(name, *theirs, peer.label, (far,)))
        if name == DATASETS:
            entered.append(Contender("datasets_skip", *theirs, f"{peer.label} skip", (far,), more=("--skip",)))
    return entered


def walk(entered: list[Contender], window: int, scratch: Path) -> None:
    """Every script once, to all its positions."""

    def go(one: Contender) -> None:
        start = time.perf_counter()
        result = one.run("walk", one.positions, window, scratch)
        print(f"{one.script}: walked {result['items']} items in {time.perf_counter() - start:.0f} s", flush=True)

    with ThreadPoolExecutor(_SCRIPTS_AT_ONCE) as pool:
        list(pool.map(go, {one.script: one for one in reversed(entered)}.values()))


def exactness(entered: list[Contender], window: int, scratch: Path) -> dict[str, Any]:
    """What each contender repeats and loses, by name and position."""

    def count(script: str) -> dict[str, Any]:
        counted: dict[str, Any] = {}
        for one in (one for one in entered if one.script == script):
            counted[one.name] = {str(place): one.run("exact", (place,), window, scratch) for place in one.positions}
        return counted

    with ThreadPoolExecutor(_SCRIPTS_AT_ONCE) as pool:
        by_script = pool.map(count, dict.fromkeys(one.script for one in entered))
        found = {name: counts for counted in by_script for name, counts in counted.items()}
    for one in entered:
        for position, counts in found[one.name].items():
            print(
                f"{one.name:15} resumed twice from {position}: repeated {counts['repeated']}, lost {counts['lost']} "
                f"of {counts['compared']}, in {'the same' if counts['same_order'] else 'another'} order",
                flush=True,
            )
    return found


def measure(entered: list[Contender], rounds: int, scratch: Path) -> None:
    """Time every contender at every one of its positions once per round, in turns."""
    for number, order in enumerate(turns(entered, rounds)):
        for one in order:
            for position in one.positions if number % 2 else one.positions[::-1]:
                seconds = one.run("time", (position,), 0, scratch)["seconds"]
                one.seconds.setdefault(position, []).append(seconds)


def compare(entered: list[Contender], far: int, exact: dict[str, Any]) -> list[dict[str, Any]]:
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
        claim("data_resume_rows_repeated_or_lost", [float(wrong)], [1.0], "<=0", "a walk without a resume"),
        claim(f"data_resume_row_{far}_over_row_{START}", ours[far], ours[START], "<=1.2", "itself"),
    ]
    for one in entered:
        if not one.name.startswith(OURS):
            claims.append(claim(f"data_resume_{far}_over_{one.name}", ours[far], one.seconds[far], "<=1", one.label))
    return claims


def main() -> None:
    """Measure, print a line per claim, and write the numbers where `--json` says."""
    parser = options(
        __doc__,
        quick="row 20,000 instead of 1,000,000, in about three minutes",
        bench="four rounds, without the reference engine and the worker of ours",
    )
    parser.add_argument("--peers", default=f"mosaicml,{DATASETS}", help="peers to compare with")
    parser.add_argument(
        "--environments", type=Path, default=peers.DEFAULT_ENVIRONMENTS, help="folder of the peers' environments"
    )
    asked = parser.parse_args()
    names = [name for name in asked.peers.split(",") if name]
    if unknown := set(names) - {"mosaicml", DATASETS}:
        parser.error(f"--peers: {', '.join(sorted(unknown))} is neither mosaicml nor datasets")
    far = 20_000 if asked.size == "quick" else 1_000_000
    rounds = {"quick": 1, "bench": 4, "full": 6}[asked.size]
    window = {"quick": 1000, "bench": 5000, "full": 20_000}[asked.size]
    count = far + far // 5

    with tempfile.TemporaryDirectory(prefix="palimpsest-") as temporary:
        scratch = Path(temporary)
        corpus = write_jsonl(numbered_texts(count), scratch / "documents", FILES)
        print(f"{corpus['bytes'] / 1e6:.0f} MB of text in {corpus['documents']} documents")
        is_short = asked.size == "bench"
        entered = contenders(names, asked.environments, scratch / "documents", far, scratch, is_short=is_short)
        walk(entered, window, scratch)
        exact = exactness(entered, window, scratch)
        measure(entered, rounds, scratch)

    claims = compare(entered, far, exact)
    for one in entered:
        medians = {position: statistics.median(one.seconds[position]) for position in one.positions}
        print(f"{one.name:15}", *(f"first batch after {k}: {v:.3f} s" for k, v in medians.items()), sep="  ")
    show(claims)
    if asked.json:
        write_json(
            asked.json,
            asked.size,
            {
                "settings": {
                    "seq_len": SEQ_LEN,
                    "batch": BATCH,
                    "window": window,
                    "tokenizer": tokenizer_label(),
                    **corpus,
                },
                "exactness": exact,
                "seconds_to_first_batch": {one.name: {str(k): v for k, v in one.seconds.items()} for one in entered},
                "claims": claims,
            },
        )


if __name__ == "__main__":
    peers.reported(main)
