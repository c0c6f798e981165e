"""Write the report: report.json, the plot as SVG and PNG, a self-contained index.html; a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import formatting as fmt
from evals.outputs import check_place
from evals.report.summary import build_report
from evals.results import write_json

if TYPE_CHECKING:
    from rich.table import Table


def write_report(root: Path, out: Path | None = None) -> tuple[dict[str, Any], Path]:
    """Report on the runs under a folder.

    Args:
        root: folder that holds the runs.
        out: folder to write to; default `root`/report.

    Returns:
        The report as a dict, and the path of its page.

    Raises:
        EvalError: there is nothing to report, or `out` can't be written.
    """
    from evals.report import plots
    from evals.report.page import render

    out = Path(out) if out is not None else Path(root) / "report"
    check_place(out / "index.html")
    report = build_report(Path(root))
    out.mkdir(parents=True, exist_ok=True)
    figure = plots.learning_forgetting(report)
    if figure is not None:
        plots.save(figure, out / "learning_forgetting.svg")
        plots.save(figure, out / "learning_forgetting.png")
    write_json(out / "report.json", report)
    page = out / "index.html"
    page.write_text(render(report), encoding="utf-8")
    return report, page


def summary_table(report: Mapping[str, Any]) -> Table:
    """The methods of a report as a terminal table."""
    from rich.table import Table

    table = Table(title="What was learned and what was forgotten", title_justify="left")
    for column in ("method", "trainable", "learned", "forgotten", "time"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for entry in report["methods"].values():
        table.add_row(
            entry["label"],
            fmt.trainable(entry),
            fmt.effect(entry["learned"]),
            fmt.effect(entry["forgotten"]),
            fmt.duration(entry["seconds"]),
        )
    return table
