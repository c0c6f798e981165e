"""`python -m evals rank`: compare two folders, keep what was found, and show it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.errors import EvalError
from evals.json_text import parse_json
from evals.outputs import check_place
from evals.results import write_json

if TYPE_CHECKING:
    from rich.console import Console

    from evals.weights.rank import Settings
    from evals.weights.stored import Weights


def result_path(run: Path, step: int) -> Path:
    """Where a run keeps the rank of its weight change at a step."""
    return Path(run) / "weights" / f"rank-{step}.json"


def parse_modules(text: str) -> tuple[str, ...]:
    """Patterns between commas."""
    return tuple(part for part in text.replace(" ", "").split(",") if part)


def compare_folders(
    before: Path,
    after: Path,
    *,
    settings: Settings,
    base: Path | None = None,
    device: str = "auto",
    out: Path | None = None,
    step: int | None = None,
) -> dict[str, Any]:
    """Compare two models, adapters or runs with an export.

    Args:
        before: its folder. A full model is also the base of an adapter whose own is not found.
        after: likewise.
        settings: how.
        base: what adapters are added to; by default what their adapter_config.json names.
        device: of the decompositions.
        out: of the result; see `measure`.
        step: of the run at which `after` was saved.

    Raises:
        EvalError: see `measure`; or one of them can't be used, or they are not the same model.
    """
    from evals.weights.folder import Folder, open_folder

    known = Folder(base) if base is not None else None
    first = open_folder(before, known)
    second = open_folder(after, known, otherwise=first if isinstance(first, Folder) else None)
    return measure(first, second, settings, device=usable_device(device), out=out, step=step)


def measure(
    before: Weights,
    after: Weights,
    settings: Settings,
    *,
    device: str = "cpu",
    out: Path | None = None,
    step: int | None = None,
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compare, with progress on stderr; see `evals.weights.rank.rank_of_change`.

    Args:
        before: usually the base.
        after: what training made of it.
        settings: how.
        device: of the decompositions.
        out: the result is written there. Rows are kept beside it as they come, so that a second start goes on where the first
            was stopped; of a result of the same comparison that is there nothing is measured but damaged rows.
        step: of the run at which `after` was saved.
        earlier: a result whose spectra of W before are taken over, where it has the same and was measured alike.

    Raises:
        EvalError: `out` can't be written, or the models do not fit each other.
    """
    from evals.weights.progress import showing_progress
    from evals.weights.rank import identity, rank_of_change
    from evals.weights.unfinished import UnfinishedRows, rows_by_name

    key = {"step": step, "before": before.label, "after": after.label, **identity(before, after, settings)}
    compare = partial(
        rank_of_change, before, after, settings, device=device, step=step, earlier=_rows_like(earlier, key)
    )
    if out is not None and (found := _earlier(out, key)) is not None:
        # Made of its rows, of which damaged ones are measured anew.
        document = compare(done=rows_by_name(found.get("rows")))
        if document != found:
            write_json(out, document)
        return document
    if out is not None:
        check_place(out)
    with showing_progress(f"rank of {after.label}", sys.stderr) as report:
        if out is None:
            return compare(report=report)
        with UnfinishedRows(out, key) as unfinished:
            if unfinished.rows:
                print(f"{out}: going on after {len(unfinished.rows):,} matrices of an earlier start", file=sys.stderr)
            document = compare(done=unfinished.rows, on_row=unfinished.add, report=report)
    write_json(out, document)
    unfinished.remove()
    return document


def _earlier(out: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of the same comparison, where it is there already."""
    try:
        found = parse_json(out.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_same = isinstance(found, dict) and all(name in found and found[name] == value for name, value in key.items())
    return found if is_same else None


def _rows_like(earlier: Mapping[str, Any] | None, key: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of a result with the same W before and share."""
    is_alike = (
        earlier is not None
        and all(earlier[name] == key[name] for name in ("share", "before"))
        and earlier["states"]["before"] == key["states"]["before"]
    )
    return {row["name"]: row for row in earlier["rows"]} if earlier is not None and is_alike else {}


def show(document: Mapping[str, Any], console: Console) -> None:
    """Print the table, a line per module, and the notes."""
    from evals.formatting import percent
    from evals.weights.table import outside_layers, rank_table, summary

    if document["layers"]:
        console.print(f"rank of the change: k for {percent(document['share'], 0)} of its squared spectrum")
        console.print(rank_table(document))
        console.print("smallest / median / largest k over the layers:")
        for line in summary(document):
            console.print(f"  {line}")
    for line in [*outside_layers(document), *document["notes"]]:
        console.print(line)


def usable_device(name: str) -> str:
    """The device that a name means; auto is a GPU where there is one.

    Raises:
        EvalError: there is none of that name here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise EvalError(f"--device {name}: can't be used here ({reason}); leave it out to use what there is") from error
    return name
