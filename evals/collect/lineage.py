"""Which run began with which: stages (a base or an adapter that another run exported) and branches (a checkpoint)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from evals.arithmetic.stages import Stage, histories, transfer
from evals.errors import EvalError

LINKS = {"branch_from": "branch", "init_from": "stage", "base": "stage"}
"""Setting -> what a run is of the run in whose folder that is; the first that is in one counts."""


def link(runs: Sequence[dict[str, Any]], folders: Mapping[str, str]) -> None:
    """Set `parent` (a run's id or None), `link` (stage, branch or None) and `is_continuation` of every run.

    A continuation began where another run of its kind had come to: a branch, an adapter that another run had trained, or a
    run on the same data as the one whose export it began with. A base that several runs share is no such beginning.

    Args:
        runs: entries of the document, with `dir`, the folder as the run itself called it.
        folders: run id -> where its folder is now.
    """
    owners = {os.path.normpath(folders[run["id"]]): run["id"] for run in runs}
    owners |= {os.path.normpath(run["dir"]): run["id"] for run in runs if run["dir"]}
    data = {run["id"]: run["data"] for run in runs}
    for run in runs:
        run["parent"], run["link"] = None, None
        run["is_continuation"] = bool(run["branch_from"] or run["init_from"])
        for setting, kind in LINKS.items():
            owner = next((owners[path] for path in _upwards(run[setting]) if path in owners), None)
            if owner is not None and owner != run["id"]:
                run["parent"], run["link"] = owner, kind
                run["is_continuation"] |= run["data"] is not None and run["data"] == data[owner]
                break


def stages(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was kept through each chain of stages, the scores on every task after every stage; see evals.arithmetic.stages.

    Returns:
        For each run that ends a chain: `runs`, `tasks` (histories) and `means` by metric, or `problem`.
    """
    by_id = {run["id"]: run for run in runs}
    followed = {run["parent"] for run in runs if run["link"] == "stage"}
    chains = []
    for run in runs:
        if run["link"] == "stage" and run["id"] not in followed:
            chain = list(_chain(run, by_id))[::-1]
            if all(each["points"] for each in chain):
                chains.append(_kept(chain))
    return chains


def _kept(chain: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    taught: set[str] = set()
    members = []
    for index, run in enumerate(chain):
        results = run["points"][-1]["tasks"]
        new = [name for name, task in results.items() if task["domain"] == "new" and name not in taught]
        taught |= set(new)
        # The next stage begins with this one's end, and may be scored on more.
        begun = chain[index + 1]["points"][0] if index + 1 < len(chain) else {"step": None}
        if begun["step"] == 0:
            results = begun["tasks"] | results
        members.append(Stage(name=run["id"], results=results, teaches=tuple(new)))
    first = chain[0]["points"][0]
    base = first["tasks"] if first["step"] == 0 else None
    entry: dict[str, Any] = {"runs": [run["id"] for run in chain], "tasks": [], "means": {}, "problem": None}
    try:
        entry["tasks"] = [_plain(asdict(history)) for history in histories(members, base)]
        entry["means"] = {metric: _plain(asdict(means)) for metric, means in transfer(members, base).items()}
    except EvalError as error:
        entry["problem"] = str(error)
    return entry


def _chain(run: Mapping[str, Any], by_id: Mapping[str, Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """A run, the one it began with, and so on."""
    seen: set[str] = set()
    while run["id"] not in seen:
        yield run
        seen.add(run["id"])
        if run["link"] != "stage":
            return
        run = by_id[run["parent"]]


def _upwards(path: str | None) -> Iterator[str]:
    """A path and the folders it is in, from the inside out."""
    place = os.path.normpath(path) if path else ""
    while place not in ("", "/", "."):
        yield place
        place = os.path.dirname(place)


def _plain(value: Any) -> Any:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in value.items()}
