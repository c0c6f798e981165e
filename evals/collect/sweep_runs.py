"""The document's runs as cells of the sweeps that they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from evals.collect.sweeps import Cell, Sweep

SETTINGS: Mapping[str, tuple[str, type]] = {
    "adapter": ("adapter.kind", str), "rank": ("adapter.rank", int), "lr": ("optim.lr", float), "seed": ("run.seed", int),
    "batch_rows": ("train.global_batch_rows", int), "seq_len": ("data.seq_len", int), "base": ("model.base", str),
    "steps": ("train.steps", int),
}  # fmt: skip
"""Field of a run in the document -> the setting it is, and its type."""
NONE_YET: Mapping[str, Any] = {
    "base_fingerprint": None, "is_from_scratch": False, "trainable_parameters": None, "started_at": None, "seconds": None,
    "dir": None, "branch_from": None, "init_from": None, "data": None, "step": None, "tokens_seen": None,
    "tokens_per_epoch": None, "updated_at": None, "is_diverged": False, "final": None, "rank_change": None, "parent": None,
    "link": None, "is_continuation": False,
}  # fmt: skip
"""What is known of a run that has not begun."""


def with_sweeps(runs: Sequence[dict[str, Any]], sweeps: Sequence[Sweep]) -> list[dict[str, Any]]:
    """The runs by id, cells that have not begun among them.

    Every run gets `cell`: {"sweep", "name", "values"} of its cell, None outside of sweeps. The method of a cell is what its
    sweep calls it: two that differ in other settings than the adapter are two methods.
    """
    cells = {cell.run: (sweep, cell) for sweep in sweeps for cell in sweep.cells}
    known = {run["id"] for run in runs}
    found = [*runs, *(_not_begun(cell) for run, (_, cell) in cells.items() if run not in known)]
    for run in found:
        sweep, cell = cells.get(run["id"], (None, None))
        run["cell"] = None
        if sweep is not None and cell is not None:
            run["cell"] = {"sweep": sweep.name, "name": cell.name, "values": cell.values}
            run["method"] = cell.method or run["method"]
            if run["status"] == "not started":
                run |= _settings(cell)
    return sorted(found, key=lambda run: run["id"])


def as_dict(sweep: Sweep) -> dict[str, Any]:
    """A sweep in the document: what is known of its cells is in the runs."""
    return {
        "name": sweep.name,
        "folder": sweep.folder,
        "axes": list(sweep.axes),
        "runs": [cell.run for cell in sweep.cells],
    }


def _not_begun(cell: Cell) -> dict[str, Any]:
    """An entry like those of runs, as far as the sweep tells."""
    return {
        "id": cell.run,
        "name": PurePosixPath(cell.run).name,
        "method": "unknown",
        "status": "not started",
        "notes": [],
        "points": [],
        "loss": [],
        **dict.fromkeys(SETTINGS),
        **NONE_YET,
    }


def _settings(cell: Cell) -> dict[str, Any]:
    """What the cell says of the fields of its run."""
    found = {}
    for field, (setting, kind) in SETTINGS.items():
        value = cell.values.get(setting)
        is_of_kind = isinstance(value, int | float if kind is float else kind) and not isinstance(value, bool)
        found[field] = value if is_of_kind else None
    return found
