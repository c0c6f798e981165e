"""The report's figures, for use inside the page (following its light or dark colours) and as files."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

INK = "#1b1f24"
"""Text and axes. Unused for anything else, so that the page can replace it by its own colour."""
KIND_COLORS = {"none": "#d9541e", "lora": "#2f7fd0", "monteclora": "#129a74"}
OTHER_COLORS = ("#9a5fc9", "#b8860b", "#c2417e", "#5b7f95")
LINE_STYLES = ("-", "-", "--", ":", "-.")
"""Two curves in one place both show: full finetuning and LoRA are solid, MonteCLoRA on top of LoRA is dashed."""
_FONT_SIZE = 11
_STYLE: Any = {
    "font.size": _FONT_SIZE,
    "font.family": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def colors(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A colour per method: the first of each kind has the kind's own, others take the next free one."""
    used: dict[str, str] = {}
    spare = 0
    for name, entry in entries.items():
        color = KIND_COLORS.get(str(entry.get("adapter", {}).get("kind")))
        if color is None or color in used.values():
            color, spare = OTHER_COLORS[spare % len(OTHER_COLORS)], spare + 1
        used[name] = color
    return used


def learning_forgetting(report: Mapping[str, Any]) -> Figure | None:
    """One point per method with 95 % intervals: forgotten to the right, learned upwards. None when nobody has both."""
    suffix = "_accuracy" if report["metric"] == "accuracy" else ""
    color = colors(report["methods"])
    points = []
    for name, entry in report["methods"].items():
        learned, forgotten = entry.get(f"learned{suffix}"), entry.get(f"forgotten{suffix}")
        if learned and forgotten:
            points.append((entry["label"], color[name], forgotten, learned))
    if not points:
        return None
    unit = points[0][2]["unit"]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(5.2, 4.3)
        boxes = []
        # The first is largest, so that methods with equal results all stay visible.
        sizes = range(7 + 2 * len(points), 7, -2)
        for (_, point_color, x, y), size in zip(points, sizes, strict=True):
            axes.errorbar(
                x["value"],
                y["value"],
                xerr=_arm(x),
                yerr=_arm(y),
                fmt="o",
                color=point_color,
                ms=size,
                lw=1.6,
                capsize=3,
            )
        axes.axvline(0, color=INK, lw=0.8, alpha=0.35)
        axes.axhline(0, color=INK, lw=0.8, alpha=0.35)
        axes.margins(0.18)
        axes.locator_params(nbins=6)
        axes.set_xlabel(f"forgotten ({unit})  \N{RIGHTWARDS ARROW}  worse")
        axes.set_ylabel(f"learned ({unit})  \N{RIGHTWARDS ARROW}  better")
        figure.canvas.draw()
        for _, _, x, y in points:
            boxes += _marks(axes, x, y)
        for label, point_color, x, y in points:
            boxes.append(_place_label(axes, label, point_color, (x["value"], y["value"]), boxes))
    return figure


def loss_curves(curves: Sequence[tuple[str, str, Sequence[Sequence[float]]]]) -> Figure | None:
    """Training loss against tokens seen, for (label, colour, [[tokens, loss], ...]); None without a point."""
    curves = [curve for curve in curves if curve[2]]
    if not curves:
        return None
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(5.2, 3.2)
        for (label, color, points), style in zip(curves, itertools.cycle(LINE_STYLES), strict=False):
            axes.plot([p[0] for p in points], [p[1] for p in points], style, color=color, lw=1.8, label=label)
        axes.set_xlabel("tokens read")
        axes.set_ylabel("training loss (nats per token)")
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        axes.legend(frameon=False, labelcolor=INK, ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 1), borderpad=0)
    return figure


def inline_svg(figure: Figure, description: str) -> str:
    """The figure as an <svg> element for an HTML page: follows its ink, scales, refers to nothing outside."""
    svg = _svg(figure, salt=description)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(
        r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1), count=1
    )
    # Ids are shared by all figures of a page: only those that are referred to stay, and these are salted.
    referred = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r'\sid="([^"]*)"', lambda match: match[0] if match[1] in referred else "", svg)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
    return svg.replace(INK, "currentColor").strip()


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a file (.svg or .png) on a white ground, readable wherever it is embedded."""
    figure.patch.set_facecolor("white")
    figure.patch.set_alpha(1)
    if path.suffix == ".svg":
        path.write_text(_svg(figure, salt=path.name), encoding="utf-8")
    else:
        figure.savefig(path, dpi=200)
    figure.patch.set_alpha(0)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure in inches, without a backend's global state; small, so that its text stays legible on a phone."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.tick_params(colors=INK)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(color=INK, alpha=0.1, lw=0.8)
    return figure, axes


def _svg(figure: Figure, salt: str) -> str:
    buffer = io.StringIO()
    # The salt makes ids reproducible, and different between the figures of one page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")


def _arm(effect: Mapping[str, Any]) -> float:
    return 0.0 if effect["high"] is None else effect["high"] - effect["value"]


def _marks(axes: Axes, x: Mapping[str, Any], y: Mapping[str, Any]) -> list[Bbox]:
    """Display boxes of a point's marker and of its two error bars, which labels must not cover."""
    at, dx, dy = (x["value"], y["value"]), _arm(x), _arm(y)
    centre, left, right, low, high = axes.transData.transform(
        [at, (at[0] - dx, at[1]), (at[0] + dx, at[1]), (at[0], at[1] - dy), (at[0], at[1] + dy)]
    )
    return [
        Bbox.from_extents(centre[0] - 6, centre[1] - 6, centre[0] + 6, centre[1] + 6),
        Bbox.from_extents(left[0], left[1] - 3, right[0], right[1] + 3),
        Bbox.from_extents(low[0] - 3, low[1], high[0] + 3, high[1]),
    ]


def _place_label(axes: Axes, label: str, color: str, at: tuple[float, float], taken: list[Bbox]) -> Bbox:
    """Write a label near its point, in the first place where it covers nothing and stays in the axes."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    frame = axes.get_window_extent()
    best: tuple[int, Annotation] | None = None
    for dx, dy, alignment in _places():
        text = axes.annotate(
            label,
            at,
            xytext=(dx, dy),
            textcoords="offset points",
            ha=alignment,
            va="center",
            color=color,
            weight="bold",
        )
        box = text.get_window_extent()
        faults = sum(box.overlaps(other) for other in taken) + 2 * (frame.x0 > box.x0 or frame.x1 < box.x1)
        faults += 2 * (frame.y0 > box.y0 or frame.y1 < box.y1)
        if best is None or faults < best[0]:
            if best is not None:
                best[1].remove()
            best = (faults, text)
        else:
            text.remove()
        if faults == 0:
            break
    assert best is not None
    return best[1].get_window_extent()


def _places() -> Iterator[tuple[float, float, str]]:
    """Offsets from the point in typographic points, nearest first."""
    for distance in (12, 22, 34, 48, 64):
        yield from (
            (12, distance, "left"),
            (-12, distance, "right"),
            (12, -distance, "left"),
            (-12, -distance, "right"),
        )
        yield from ((0, distance, "center"), (0, -distance, "center"))
