"""`python -m tests.fuzz`: many inputs for every target, in processes that a crash may end; or one input again.

    python -m tests.fuzz --inputs 100000 --seed 1 --jobs 2 --keep FOLDER [TARGET ...]
    python -m tests.fuzz --again FOLDER/TARGET/NAME TARGET

Of each kind of failure the smallest input is kept, as a folder of files. An input that ends its process, or keeps it longer
than any may take, is a failure, too: it still lies where it was tried.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.fuzz.folders import read_input
from tests.fuzz.fuzzing import attempt_anew, try_valid
from tests.fuzz.pieces import begin, run_piece
from tests.fuzz.target import Failure, Target
from tests.fuzz.targets import targets

PIECE = 2000
"""Inputs of one process, whose memory grows with them."""
CRASHES = 20
"""Of one target, after which the rest of its inputs is not tried."""


def main() -> int:
    """Do what the command line says; the exit code: 0 nothing failed, 1 something did."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.partition("\n")[0] if __doc__ else ""
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="names of targets (default: all)")
    parser.add_argument("--inputs", type=int, default=100_000, help="for all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at once")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder of the inputs that fail")
    parser.add_argument(
        "--again", type=Path, metavar="FOLDER", help="try one input again, of the one target that is named"
    )
    options = parser.parse_args()
    known = targets()
    chosen = [target for target in known if not options.targets or target.name in options.targets]
    if len(chosen) < len(options.targets) or (options.again and len(chosen) != 1):
        parser.error(f"the targets are {', '.join(repr(target.name) for target in known)}")
    if options.again:
        return _again(chosen[0], options.again)
    return _all(chosen, options)


def _again(target: Target, folder: Path) -> int:
    with tempfile.TemporaryDirectory() as work:
        try_valid(target, Path(work))
        result = attempt_anew(target, read_input(folder), Path(work) / "now")
    print(f"{result.kind}\n{result.text}" if isinstance(result, Failure) else result)
    return int(isinstance(result, Failure))


def _all(chosen: list[Target], options: argparse.Namespace) -> int:
    began, rows = time.monotonic(), []
    begin()
    print(f"{options.inputs:,} inputs, seed {options.seed}, {options.jobs} processes", flush=True)
    whole = sum(target.share for target in chosen)
    with ThreadPoolExecutor(options.jobs) as pool:
        counts = [math.ceil(options.inputs * target.share / whole) for target in chosen]
        # The slow ones first, which have the smallest shares.
        order = sorted(zip(chosen, counts, strict=True), key=lambda each: each[0].share)
        waiting = [pool.submit(_one, target, count, options.seed, options.keep) for target, count in order]
        for done in waiting:
            rows.append(row := done.result())
            print(f"  {row['target']}: {row['inputs']:,} inputs, {len(row['failures'])} kinds of failure", flush=True)
    print(_table(rows))
    print(f"{time.monotonic() - began:,.0f} s")
    for row in rows:
        for failure in row["failures"]:
            print(f"\n{row['target']}: {failure['kind']}\n{failure['text']}")
            print(
                f"again: python -m tests.fuzz --again {options.keep / row['target'] / failure['name']} '{row['target']}'"
            )
    return int(any(row["failures"] for row in rows))


def _one(target: Target, count: int, start: int, keep: Path) -> dict[str, Any]:
    """All inputs of a target, in processes one after the other."""
    row: dict[str, Any] = {"target": target.name, "inputs": 0, "seconds": 0.0, "results": Counter(), "failures": []}
    kinds: set[str] = set()
    crashes = 0
    # On memory, where there is such a place: files are written and removed for every input.
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    while row["inputs"] < count and crashes < CRASHES:
        with tempfile.TemporaryDirectory(dir=place) as work:
            piece = min(PIECE, count - row["inputs"])
            found = run_piece(target, piece, start, Path(work))
            start += piece
            crashes += found["results"].get("crashed", 0)
            row["inputs"] += found["inputs"]
            row["seconds"] += found["seconds"]
            row["results"].update(found["results"])
            for failure in found["failures"]:
                if failure["kind"] not in kinds:
                    kinds.add(failure["kind"])
                    row["failures"].append(failure)
                    folder = keep / target.name / failure["name"]
                    shutil.rmtree(folder, ignore_errors=True)
                    shutil.copytree(Path(work) / "failed" / failure["name"], folder, symlinks=True)
    return row


def _table(rows: list[dict[str, Any]]) -> str:
    """A line per target: inputs, those read, errors by class, failures and CPU seconds."""
    lines = [f"{'target':<32}{'inputs':>9}{'read':>9}{'refused':>9}{'failed':>8}{'CPU s':>8}  by"]
    rows = sorted(rows, key=lambda row: str(row["target"]))
    for row in rows:
        results: Counter[str] = row["results"]
        bad = results["failed"] + results["crashed"]
        errors = {name: n for name, n in results.most_common() if name not in ("read", "failed", "crashed")}
        by = ", ".join(f"{name} {n:,}" for name, n in errors.items())
        lines.append(
            f"{row['target']:<32}{row['inputs']:>9,}{results['read']:>9,}{sum(errors.values()):>9,}{bad:>8,}{row['seconds']:>8.0f}  {by}"
        )
    total = sum(row["inputs"] for row in rows)
    lines.append(f"{'all':<32}{total:>9,}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
