"""A comparison as a table in the terminal: layers down, modules across, k and its share of the full rank, coloured by the share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evals.formatting import UNKNOWN, percent
from evals.weights.heat_map import color_of, ink_on

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def rank_table(document: Mapping[str, Any]) -> Table:
    """What `rank_of_change` returned; matrices in no layer, such as embeddings, have a row of their own at the end."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", justify="right", no_wrap=True)
    for module in document["modules"]:
        table.add_column(module, justify="right", no_wrap=True)
    for layer, ranks, full in zip(document["layers"], document["rank"], document["full_rank"], strict=True):
        table.add_row(str(layer), *(_cell(k, most) for k, most in zip(ranks, full, strict=True)))
    return table


def outside_layers(document: Mapping[str, Any]) -> list[str]:
    """A line for every matrix that is in no layer."""
    return [
        f"{row['name']}: k {row['rank']['change']:,} of {row['full_rank']:,} "
        f"({percent(row['rank']['change'] / row['full_rank'])}), |change| / |W| {_relative(row)}"
        for row in document["rows"]
        if row["layer"] is None
    ]


def summary(document: Mapping[str, Any]) -> list[str]:
    """A line per module, over its layers: the smallest, median and largest k of W, of W after training and of the change."""
    lines = []
    for module in document["modules"]:
        rows = [row for row in document["rows"] if row["module"] == module and row["layer"] is not None]
        parts = []
        for which, label in (("before", "W before"), ("after", "W after"), ("change", "change")):
            found = sorted(row["rank"][which] for row in rows if row["rank"][which] is not None)
            if found:
                parts.append(f"{label} {found[0]:,} / {found[len(found) // 2]:,} / {found[-1]:,}")
        sizes = sorted({row["full_rank"] for row in rows})
        full = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
        lines.append(f"{module}: {', '.join(parts)} of {full}")
    return lines


def _cell(k: int | None, full: int | None) -> Text:
    from rich.text import Text

    if k is None or not full:
        return Text(UNKNOWN)
    color = color_of(k / full)
    return Text(f" {k:,} {percent(k / full, 0).replace(' ', ''):>4} ", style=f"{ink_on(color)} on {color}")


def _relative(row: Mapping[str, Any]) -> str:
    return UNKNOWN if row["relative_change"] is None else f"{row['relative_change']:.2g}"
