"""The table of all runs: a row for each run and checkpoint, in columns of fixed names, order and types; CSV and Parquet.

After COLUMNS come cell/<axis>, the value of each axis of a sweep as JSON; then, for each task of any run by name, task/<name>/score, /change, /nll and /ece, and /pass@<k> where
programs were judged. Unknown values are empty (CSV) or null (Parquet). A run that was not evaluated has one row.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow

Kind = Literal["string", "int64", "double"]
RUN_COLUMNS: dict[str, Kind] = {
    "run": "string", "method": "string", "status": "string", "name": "string", "adapter": "string", "rank": "int64",
    "lr": "double", "seed": "int64", "batch_rows": "int64", "base": "string", "parent": "string",
    "trainable_parameters": "int64", "run_step": "int64", "steps": "int64", "tokens_seen": "int64", "updated_at": "double",
    "sweep": "string", "cell": "string",
}  # fmt: skip
"""Of the run, the same in all of its rows; `run_step` is how far it is, `updated_at` in seconds since 1970."""
EFFECTS = ("learned", "forgotten", "learned_accuracy", "forgotten_accuracy")
SCORES = ("learning_score", "forgetting_average")
FINAL_COLUMNS: dict[str, Kind] = {"final_step": "int64", **{f"final_{name}": "double" for name in (*EFFECTS, *SCORES)}}
"""The run's end over the most complete tasks there, the same in all of its rows, which are over tasks that the run's
checkpoints share."""
CALIBRATION = tuple(
    f"{domain}_{key}" for domain in ("new", "old") for key in ("nll", "ece", "posterior_nll", "posterior_ece")
)
POINT_COLUMNS: dict[str, Kind] = {
    "step": "int64", "tokens": "int64", "epochs": "double", "unit": "string",
    **{f"{name}{end}": "double" for name in EFFECTS for end in ("", "_stderr", "_low", "_high")},
    **dict.fromkeys((*SCORES, *CALIBRATION), "double"), "learned_over": "string", "forgotten_over": "string",
    "notes": "string",
}  # fmt: skip
"""Of the checkpoint; `unit` is that of `learned` and `forgotten`, `_over` the tasks they are the means of, with blanks
between. Notes are the run's, joined by "; "."""
COLUMNS = RUN_COLUMNS | FINAL_COLUMNS | POINT_COLUMNS
OF_TASK = ("score", "change", "nll", "ece")


def columns(document: Mapping[str, Any]) -> dict[str, Kind]:
    """Name -> type of every column of a document's table, in order."""
    tasks: dict[str, set[int]] = {}
    for run in document["runs"]:
        for point in run["points"]:
            for name, task in point["tasks"].items():
                tasks.setdefault(name, set()).update(int(k) for k in task.get("pass_at_k") or {})
    axes = dict.fromkeys(axis for sweep in document.get("sweeps") or [] for axis in sweep["axes"])
    found = COLUMNS | {f"cell/{axis}": "string" for axis in axes}
    for name in sorted(tasks):
        keys = [*OF_TASK, *(f"pass@{k}" for k in sorted(tasks[name]))]
        found |= {f"task/{name}/{key}": "double" for key in keys}
    return found


def rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each run and checkpoint, by run and step; what a row does not have is unknown."""
    return [row for run in document["runs"] for row in _of_run(run)]


def write_csv(path: Path, document: Mapping[str, Any]) -> None:
    """A header line and a line per row."""
    text = io.StringIO()
    names = list(columns(document))
    writer = csv.writer(text)
    writer.writerow(names)
    writer.writerows([row.get(name) for name in names] for row in rows(document))
    write_text(path, text.getvalue())


def write_parquet(path: Path, document: Mapping[str, Any]) -> None:
    """The same rows with their types."""
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    pyarrow.parquet.write_table(_arrow(document), temporary)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a file so that readers see all of it or the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.write_text(text, encoding="utf-8", newline="")
    os.replace(temporary, path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _arrow(document: Mapping[str, Any]) -> pyarrow.Table:
    import pyarrow

    kinds, found = columns(document), rows(document)
    arrays = {
        name: pyarrow.array([_typed(row.get(name), kind) for row in found], type=pyarrow.type_for_alias(kind))
        for name, kind in kinds.items()
    }
    return pyarrow.table(arrays)


def _typed(value: Any, kind: Kind) -> Any:
    return float(value) if kind == "double" and value is not None else value


def _of_run(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    of_run = {name: run.get(name) for name in RUN_COLUMNS}
    cell = run.get("cell") or {}
    of_run |= {"sweep": cell.get("sweep"), "cell": cell.get("name")}
    of_run |= {f"cell/{axis}": json.dumps(value) for axis, value in cell.get("values", {}).items()}
    of_run |= {"run": run["id"], "run_step": run["step"], "notes": "; ".join(run["notes"])}
    if run["final"] is not None:
        final = run["final"]
        of_run |= {f"final_{name}": final[name] for name in ("step", *SCORES)}
        of_run |= {f"final_{name}": final[name] and final[name]["value"] for name in EFFECTS}
    return [of_run | _of_point(point) for point in run["points"]] or [of_run]


def _of_point(point: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: point[name] for name in ("step", "tokens", "epochs", *SCORES)}
    row |= {f"{name}_over": " ".join(point["over"].get(name, ())) or None for name in EFFECTS[:2]}
    for name in EFFECTS:
        effect = point[name]
        if effect is not None:
            row |= {name: effect["value"]} | {f"{name}_{end}": effect[end] for end in ("stderr", "low", "high")}
    units = dict.fromkeys(effect["unit"] for key in ("learned", "forgotten") if (effect := point[key]))
    row |= {"unit": " and ".join(units) or None} | point["calibration"]
    for name, task in point["tasks"].items():
        values = {key: task[key] for key in ("score", "nll", "ece")} | {
            "change": task["change"] and task["change"]["value"]
        }
        values |= {f"pass@{k}": value for k, value in (task.get("pass_at_k") or {}).items()}
        row |= {f"task/{name}/{key}": value for key, value in values.items()}
    return row
