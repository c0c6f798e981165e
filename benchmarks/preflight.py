"""`python -m launch preflight` on 64 ranks of 8 nodes, all of them on this machine: seconds, and where they go.

Ranks are processes with gloo over the loopback, forked from one that has imported torch (tests/zygote.py), so that what is timed is
the checks: on a cluster every rank imports torch from its storage besides. Each "node" is 8 ranks with a name of its own; they share
the processors, so that the sums over wires, which 64 GPUs would do at once, go one after the other. `--quick` takes 16 ranks of 4 nodes.

    python benchmarks/preflight.py [--quick | --bench] [--json PATH] [--nodes 8] [--per-node 8] [--repetitions 3]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.claims import claim, options, show, write_json  # noqa: E402
from tests.inputs import make_inputs  # noqa: E402
from tests.ranks import end, rank_environments, start, wait_for  # noqa: E402

LONGEST = 300.0
"""Seconds after which a repetition has failed."""

GOAL_SECONDS = 60


def examine(recipe: Path, folder: Path, nodes: int, per_node: int) -> dict[str, Any]:
    """One preflight of so many nodes: its report, and the wall time from the first start to the last end.

    Raises:
        RuntimeError: it failed.
    """
    ranks, report = nodes * per_node, folder / "report.json"
    arguments = [str(recipe), "--train.placement", "replicated", "--train.global_batch_rows", str(2 * ranks), "--run.dir",
                 str(folder / "run"), "--report", str(report)]  # fmt: skip
    began = time.perf_counter()
    started = [
        start("tests.distributed.preflight_scenarios:preflight", {"arguments": arguments},
              environment=environment | {"SLURMD_NODENAME": f"n{rank // per_node + 1}"}, output=folder / f"{rank}.log")
        for rank, environment in enumerate(rank_environments(ranks, per_node))
    ]  # fmt: skip
    try:
        if problem := wait_for(started, LONGEST):
            raise RuntimeError(f"{problem}\n{(folder / '0.log').read_text()}")
    finally:
        end(started)
    return {**json.loads(report.read_text()), "wall": time.perf_counter() - began}


def main() -> None:
    """Measure, print, keep."""
    parser = options(__doc__, quick="16 ranks of 4 nodes, once", bench="everything")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--per-node", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    asked = parser.parse_args()
    nodes, per_node, repetitions = (
        (4, 4, 1) if asked.size == "quick" else (asked.nodes, asked.per_node, asked.repetitions)
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = make_inputs(folder)
        examine(recipe, folder, 1, 1)  # the process that forks the others comes up
        found = [examine(recipe, folder, nodes, per_node) for _ in range(repetitions)]
    for each in found:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in each["parts"].items())
        print(f"{each['wall']:.1f} s of wall time; on rank 0 {each['seconds']:.1f} s: {parts}")
    walls = [each["wall"] for each in found]
    claims = [
        claim(f"preflight_{nodes * per_node}_ranks_seconds", walls, [1.0] * len(walls), f"<={GOAL_SECONDS}", "1 second")
    ]
    show(claims)
    if asked.json:
        kept = [{name: each[name] for name in ("wall", "seconds", "parts", "nodes", "ranks")} for each in found]
        write_json(asked.json, asked.size, {"claims": claims, "repetitions": kept})


if __name__ == "__main__":
    main()
