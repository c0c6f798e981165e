"""The page of results: a hand-written one for results of every kind, and the one in the tree."""

from __future__ import annotations

from typing import Any

from benchmarks.__main__ import page
from benchmarks.claims import RESULTS, TABLE
from benchmarks.results_table import HEAD, results_page
from benchmarks.suite import LeftOut, Promise


def line(name: str, ratio: float, goal: str, low: float, high: float, n: int, peer: str) -> dict[str, Any]:
    return {"claim": name, "ratio": ratio, "goal": goal, "min": low, "max": high, "n": n, "peer": peer}


def result(name: str, *claims: dict[str, Any], **more: Any) -> dict[str, Any]:
    machine = {"cpu": "Fast", "cpus": 2, "memory_gib": 8.0, "gpu": None, "system": "Linux", "python": "3.11.7"}
    return {
        "script": name, "size": "bench", "command": ["python", f"benchmarks/{name}.py", "--bench"], "seconds": 61.4,
        "date": "2026-01-02T03:04:05+00:00", "commit": "0123456789abcdef", "is_tree_clean": True, "machine": machine,
        "versions": {"torch": "2.0", "peft": None}, "claims": list(claims), **more,
    }  # fmt: skip


PROMISES = (
    Promise(text="small", measured="bytes", goal="<=0.5", script="a", claims=("small_*",)),
    Promise(text="fast", measured="tokens/s", goal=">=2", script="a", claims=("fast",)),
    Promise(text="exact", measured="differences", goal="<=0", script="a", claims=("nothing_of_this",)),
    Promise(text="slow", measured="seconds", goal="<=1", script="b", claims=("*",)),
    Promise(text="large", measured="tokens/s", goal=">=9000", script="gpu_step", claims=("*",)),
    Promise(text="later", measured="seconds", goal="<=1", script="c", claims=("*",), predicted="0.5"),
    Promise(text="older", measured="seconds", goal="<=1", script="f", claims=("old",)),
    Promise(text="older", measured="bytes", goal="<=1", script="f", claims=("gone",)),
)
LEFT_OUT = (LeftOut(script="a", what="rank 64", measured="nowhere yet", command="python a.py"),)
RESULTS_OF = {
    "a": result(
        "a",
        line("small_1", 0.25, "<=0.5", 0.2, 0.3, 3, "peer 1.0"),
        line("small_2", 0.75, "<=0.5", 0.7, 1.25, 3, "peer 1.0"),
        line("small_of_peer", 9.0, "none", 9.0, 9.0, 1, "peer | two"),
        line("fast", 2.0, ">=2", 2.0, 2.0, 1, "itself"),
    ),
    "b": {"script": "b", "failure": {"why": "took longer than 4 minutes", "date": "2026-01-03T00:00:00+00:00"}},
    "d": result("d", line("rate", 12345.6, ">=1", 12000.0, 13000.0, 2, "x"), commit=None, is_tree_clean=None, seconds=None),
    "f": result(
        "f", line("old", 2.0, "<=1", 2.0, 2.0, 1, "x"), failure={"why": "exit code 1: no network", "date": "2026-01-03T00:00:00+00:00"}
    ),
    "e": result("e", is_tree_clean=False, versions={"torch": "2.1", "peft": "0.5"}),
}  # fmt: skip
COMMANDS = {name: f"make {name}" for name in ("a", "b", "c", "d", "f", "e", "gpu_step")}

EXPECTED = """
## What is promised

| promise | measured | goal | ratio | spread (n) | against |  | to repeat |
| --- | --- | --- | --- | --- | --- | --- | --- |
| small | bytes, worst of 2: `small_2` | ≤ 0.5 | 0.75 | 0.7 to 1.25 (3) | peer 1.0 | **missed** | `python benchmarks/a.py --bench` |
| fast | tokens/s | ≥ 2 | 2 | – (1) | itself | met | `python benchmarks/a.py --bench` |
| exact | differences | ≤ 0 | – | – | – | not measured: the result of a has no such claim | `python benchmarks/a.py --bench` |
| slow | seconds | ≤ 1 | – | – | – | not measured: took longer than 4 minutes | `make b` |
| large | tokens/s | ≥ 9000 | – | – | – | not measured: needs a GPU that holds a 7B model, and none has been available | `make gpu_step` |
| later | seconds | ≤ 1 | – | – | – | not measured: `launch plan` predicts 0.5 | `make c` |
| older | seconds | ≤ 1 | 2 | – (1) | x | **missed**; measured at 0123456789ab; the last try failed: exit code 1: no network | `python benchmarks/f.py --bench` |
| older | bytes | ≤ 1 | – | – | – | not measured: the result of f has no such claim; measured at 0123456789ab; the last try failed: exit code 1: no network | `python benchmarks/f.py --bench` |

## Where it was measured

| script | size | seconds | date | commit | machine |
| --- | --- | --- | --- | --- | --- |
| a | bench | 61 | 2026-01-02 | 0123456789ab | 2 cores of Fast, 8.0 GiB, Python 3.11.7 |
| d | bench | – | 2026-01-02 | not recorded | 2 cores of Fast, 8.0 GiB, Python 3.11.7 |
| f | bench | 61 | 2026-01-02 | 0123456789ab | 2 cores of Fast, 8.0 GiB, Python 3.11.7 |
| e | bench | 61 | 2026-01-02 | 0123456789ab, changed | 2 cores of Fast, 8.0 GiB, Python 3.11.7 |

Packages of a, d, f: torch 2.0.

Packages of e: torch 2.1, peft 0.5.

## Not in this run

`make bench` has an hour. It has the worst known case of every promise; these others are left out.

| script | what is left out | where it was measured | to measure it |
| --- | --- | --- | --- |
| a | rank 64 | nowhere yet | `python a.py` |

## All claims

### a

`python benchmarks/a.py --bench`

| claim | goal | ratio | spread (n) | against |  |
| --- | --- | --- | --- | --- | --- |
| `small_1` | ≤ 0.5 | 0.25 | 0.2 to 0.3 (3) | peer 1.0 | met |
| `small_2` | ≤ 0.5 | 0.75 | 0.7 to 1.25 (3) | peer 1.0 | **missed** |
| `small_of_peer` | – | 9 | – (1) | peer / two |  |
| `fast` | ≥ 2 | 2 | – (1) | itself | met |

### b

Not measured: took longer than 4 minutes. `make b`

### c

Not measured. `make c`

### d

`python benchmarks/d.py --bench`

| claim | goal | ratio | spread (n) | against |  |
| --- | --- | --- | --- | --- | --- |
| `rate` | ≥ 1 | 12,346 | 12,000 to 13,000 (2) | x | met |

### f

`python benchmarks/f.py --bench`

Measured at 0123456789ab. The last try, 2026-01-03, failed: exit code 1: no network

| claim | goal | ratio | spread (n) | against |  |
| --- | --- | --- | --- | --- | --- |
| `old` | ≤ 1 | 2 | – (1) | x | **missed** |
"""


def test_the_page_of_results_of_every_kind() -> None:
    made = results_page(RESULTS_OF, ["a", "b", "c", "d", "f", "e"], COMMANDS, PROMISES, LEFT_OUT)
    assert made.split("\n### e\n")[0] == HEAD + EXPECTED.rstrip("\n") + "\n"


def test_one_set_of_packages_is_said_once() -> None:
    made = results_page({"a": RESULTS_OF["a"]}, ["a"], COMMANDS, (), ())
    assert "\nPackages: torch 2.0.\n" in made


def test_the_page_in_the_tree_is_that_of_the_results_in_the_tree() -> None:
    assert TABLE.read_text(encoding="utf-8") == page(RESULTS), "run: python -m benchmarks --table"
