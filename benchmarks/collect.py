"""`python -m evals collect` on 1,000 run folders: the time of a first look and of a later one, and memory.

The runs are made up (benchmarks/synthetic_runs.py): five evaluations each, of three tasks of 200 questions and one of 164
programs, with the score of every example, 100 logged steps, and one in 40 each of what goes wrong on shared storage; together
about 290 MB. Every look is a process of its own, whole: the interpreter's start, the walk, the paired differences with their
bootstrap intervals, table.csv, table.parquet, collected.json and index.html. The first look of a repetition has no cache;
before the later one, one run was evaluated again. The files are in the machine's memory, so this is the time of the work, not of
the storage. Memory is that of the largest process.

    python benchmarks/collect.py [--quick | --bench] [--json PATH] [--dir FOLDER] [--runs 1000]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.claims import claim, options, show, write_json  # noqa: E402
from benchmarks.synthetic_runs import make_runs  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
REPETITIONS = {"quick": 1, "bench": 3, "full": 5}
SECONDS_PER_RUN = 0.01
MIB = 1024.0


class Look(NamedTuple):
    """What a look cost."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def look(runs: Path, out: Path) -> Look:
    """Collect in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "evals", "collect", str(runs), "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"collect ended with {process.returncode}")
    return Look(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / MIB)


def measure(folder: Path, count: int, repetitions: int) -> dict[str, list[Look]]:
    """Looks with and without a cache, in turns."""
    runs, out = folder / "runs", folder / "collected"
    evaluated = make_runs(runs, count)[0] / "evals"
    looks: dict[str, list[Look]] = {"first": [], "later": []}
    for _ in range(repetitions):
        shutil.rmtree(out, ignore_errors=True)
        looks["first"].append(look(runs, out))
        (evaluated / "200.json").touch()
        looks["later"].append(look(runs, out))
    return looks


def claims_of(looks: dict[str, list[Look]], count: int) -> list[dict[str, object]]:
    """The lines that are printed."""
    first, later = looks["first"], looks["later"]
    ones = [1.0] * len(first)
    peer = "1 second"
    return [
        claim(
            f"collect_{count}_seconds", [each.seconds for each in first], ones, f"<={SECONDS_PER_RUN * count:g}", peer
        ),
        claim(
            "collect_later_over_first", [x.seconds for x in later], [x.seconds for x in first], "<=0.5", "a first look"
        ),
        claim(f"collect_{count}_peak_mib", [each.peak_mib for each in first], ones, "<=1000", "1 MiB"),
    ]


def main() -> None:
    """Measure and print."""
    parser = options(__doc__, quick="once instead of five times", bench="three times")
    parser.add_argument("--dir", type=Path, help="folder for the runs (default: a temporary one)")
    parser.add_argument("--runs", type=int, default=1000, help="run folders (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="collect-") as folder:
        looks = measure(Path(folder), args.runs, REPETITIONS[args.size])
    for name, each in looks.items():
        for one in each:
            print(f"{name} look: {one.seconds:.2f} s, {one.cpu_seconds:.2f} s of CPU, {one.peak_mib:.0f} MiB")
    claims = claims_of(looks, args.runs)
    show(claims)
    if args.json:
        raw = {name: [one._asdict() for one in each] for name, each in looks.items()}
        write_json(args.json, args.size, {"runs": args.runs, "looks": raw, "claims": claims})


if __name__ == "__main__":
    main()
