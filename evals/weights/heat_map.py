"""A comparison as a figure: modules down, layers across, a cell's colour the share of the full rank, its number k."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.errors import EvalError
from evals.formatting import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png", ".pdf")
SCALE = ("#f4f6f8", "#bcd7ee", "#6fa8dc", "#2f6fb5", "#173f73")
"""Light to dark, for shares of the full rank of 0, 1/4, ... 1: lightness alone tells them apart."""
INK, PAPER = "#1b1f24", "#ffffff"
NO_CELL = "#e4e4e4"


def color_of(share: float) -> str:
    """The colour of a share of the full rank, between those of SCALE."""
    place = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    low = min(int(place), len(SCALE) - 2)
    parts = zip(_channels(SCALE[low]), _channels(SCALE[low + 1]), strict=True)
    return "#" + "".join(f"{round(a + (place - low) * (b - a)):02x}" for a, b in parts)


def ink_on(color: str) -> str:
    """The text's colour, dark or light, with more contrast to this one (WCAG 2.2, with a gamma of 2.2)."""
    red, green, blue = ((channel / 255) ** 2.2 for channel in _channels(color))
    # Where (L + 0.05) / (0.013 + 0.05) = 1.05 / (L + 0.05), both have the same.
    return INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.207 else PAPER


def draw(document: Mapping[str, Any]) -> Figure:
    """The figure of what `rank_of_change` returned."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    layers, modules = document["layers"], document["modules"]
    digits = len(f"{document['max_rank']}")
    cell_width = 0.2 + 0.085 * max(digits, 3)
    # Room for names at the left, the scale at the right, and the title above a model of few layers.
    width, height = max(cell_width * len(layers), 4.4) + 2.4, 0.36 * max(len(modules), 1) + 1.5
    with matplotlib.rc_context({"font.size": 10, "font.family": ["DejaVu Sans"], "svg.fonttype": "none"}):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)
        axes = figure.add_subplot()
        axes.set_facecolor(NO_CELL)
        shares = [
            [k / full if k is not None else float("nan") for k, full in zip(*pair, strict=True)]
            for pair in zip(document["rank"], document["full_rank"], strict=True)
        ]
        columns = list(map(list, zip(*shares, strict=True))) or [[float("nan")]]
        colors = LinearSegmentedColormap.from_list("share", SCALE)
        image = axes.imshow(columns, cmap=colors, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        for x, (ranks, row) in enumerate(zip(document["rank"], shares, strict=True)):
            for y, (k, share) in enumerate(zip(ranks, row, strict=True)):
                if k is not None:
                    axes.text(x, y, str(k), ha="center", va="center", fontsize=9, color=ink_on(color_of(share)))
        axes.set_xticks(range(len(layers)), map(str, layers))
        axes.set_yticks(range(len(modules)), modules)
        axes.set_xticks([x - 0.5 for x in range(1, len(layers))], minor=True)
        axes.set_yticks([y - 0.5 for y in range(1, len(modules))], minor=True)
        axes.grid(which="minor", color=PAPER, lw=1)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("layer")
        step = "" if document["step"] is None else f", step {document['step']:,}"
        axes.set_title(
            f"rank of the weight change{step}: k for {percent(document['share'], 0)} of the squared spectrum",
            loc="left", fontsize=11, pad=10,
        )  # fmt: skip
        bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=18, ticks=[0, 0.25, 0.5, 0.75, 1])
        bar.ax.set_yticklabels(["0 %", "25 %", "50 %", "75 %", "100 %"])
        bar.set_label("of full rank")
        bar.outline.set_visible(False)
    return figure


def save(document: Mapping[str, Any], path: Path) -> None:
    """Write the figure, in the format that the name of the file says.

    Raises:
        EvalError: it says none of FORMATS.
    """
    check_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(document).savefig(path, dpi=160, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def check_format(path: Path) -> None:
    """Refuse names of no known format; see `save`."""
    if path.suffix.lower() not in FORMATS:
        raise EvalError(f"--plot {path}: ends in none of {', '.join(FORMATS)}; name the file so")


def _channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
