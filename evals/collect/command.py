"""`python -m evals collect`: collect, write every form of the document, show it; again and again with --watch."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.collect.cache import ELSEWHERE, not_written
from evals.collect.document import CACHE, STALE, collect
from evals.collect.page import render
from evals.collect.table import write_csv, write_parquet, write_text
from evals.collect.terminal import heading, skipped_lines, stage_lines, sweep_lines, tables
from evals.errors import EvalError
from evals.outputs import check_place

if TYPE_CHECKING:
    from rich.console import Console

WATCH = 30.0
"""Seconds between two looks, unless said otherwise."""
VOLATILE = ("collected_at", "seconds")


def run_collect(
    roots: Sequence[Path],
    console: Console,
    *,
    out: Path | None = None,
    json: Path | None = None,
    csv: Path | None = None,
    stale: float = STALE,
    watch: float | None = None,
) -> None:
    """Collect and show; with `watch` every so many seconds, until the KeyboardInterrupt.

    Args:
        roots: folders that hold runs.
        console: to show it on.
        out: folder for table.csv, table.parquet, collected.json, index.html and the cache; None: ROOT/collected.
        json: also write the document here.
        csv: also write the table here.
        stale: seconds after which a run that is running but writes nothing is called stale.
        watch: seconds between two looks; None: one look. What fails on a later look is shown, and tried again.

    Raises:
        EvalError: a root does not exist, a number makes no sense, or a file cannot be written.
    """
    problems = [f"--{name} {value:g}: must be positive" for name, value in (("watch", watch), ("stale", stale))
                if value is not None and not value > 0]  # fmt: skip
    if problems:
        raise EvalError("; ".join(problems))
    out = Path(roots[0]) / "collected" if out is None else out
    check_place(out / "index.html", ELSEWHERE)
    for name, path in (("json", json), ("csv", csv)):
        if path is not None:
            check_place(path, f"name another file with --{name}")
    before = _look(roots, out, json, csv, stale, None)
    _show(before, out, console)
    if watch is not None:
        console.print(f"looking again every {watch:g} s; Ctrl-C ends")
    while watch is not None:
        time.sleep(watch)
        try:
            now = _look(roots, out, json, csv, stale, before)
        except (EvalError, OSError) as error:
            console.print(str(error), markup=False)
            continue
        if _lasting(now) != _lasting(before):
            console.clear()
            _show(now, out, console)
        before = now


def _look(
    roots: Sequence[Path],
    out: Path,
    json: Path | None,
    csv: Path | None,
    stale: float,
    before: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Collect, and write the files unless they would say the same as before."""
    # Millions of objects that refer to nothing: looking for cycles among them takes a third of the time.
    gc.disable()
    try:
        document = collect(roots, out / CACHE, stale=stale)
        if before is None or _lasting(document) != _lasting(before):
            _write(document, out, json, csv)
    finally:
        gc.enable()
    return document


def _lasting(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in VOLATILE}


def _write(document: Mapping[str, Any], out: Path, json: Path | None, csv: Path | None) -> None:
    text = dumps(document, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        for path in (out / "collected.json", *([] if json is None else [json])):
            write_text(path, text)
        for path in (out / "table.csv", *([] if csv is None else [csv])):
            write_csv(path, document)
        write_parquet(out / "table.parquet", document)
        write_text(out / "index.html", render(document))
    except OSError as error:
        raise not_written(error, out) from error


def _show(document: Mapping[str, Any], out: Path, console: Console) -> None:
    for table in tables(document, console.width):
        console.print(table)
    if not document["runs"]:
        console.print(f"no run was found in {document['root']}: no folder there has a run.json", markup=False)
    found = *sweep_lines(document), *stage_lines(document["stages"]), *skipped_lines(document["skipped"])
    for line in (heading(document), *found, f"page: {out / 'index.html'}"):
        console.print(line, markup=False, soft_wrap=True)
