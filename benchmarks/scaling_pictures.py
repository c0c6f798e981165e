"""The two pictures of docs/scaling.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.scaling_predictions import MODELS

COLORS = {"llama-2-7b": "#2f7fd0", "llama-2-13b": "#129a74", "llama-2-70b": "#d9541e"}


def draw_hours(predictions: list[dict[str, Any]], path: Path) -> None:
    """Hours of the study's 20 billion tokens by the number of GPUs, failures and checkpoints included, as a PNG."""
    figure, (axes,) = _figure(6.4, 4.2, 1)
    for model, color in COLORS.items():
        for kind, style, label in (("none", "-", "full finetuning"), ("lora", "--", "LoRA")):
            found = [
                each for each in predictions if each["model"] == model and each["kind"] == kind and each["recommended"]
            ]
            hours = [each["recommended"]["hours"] / each["recommended"]["goodput"] for each in found]
            axes.plot([each["gpus"] for each in found], hours, style, color=color, marker="o", markersize=3.5,
                      label=f"{MODELS[model]} {label}")  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.axvline(192, color="#888888", linewidth=0.8, linestyle=":")
    axes.text(185, axes.get_ylim()[1] * 0.8, "192 rows", ha="right", va="top", color="#666666", fontsize=8)
    axes.set_xticks([2**k for k in range(3, 11)], [f"{2**k:,}" for k in range(3, 11)])
    axes.set_xlabel("H100, 8 per node, 400 Gb/s each")
    axes.set_ylabel("hours, predicted")
    axes.set_title("20 billion tokens", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def draw_growth(growth: list[dict[str, Any]], path: Path) -> None:
    """Every measured slope beside the one that it may have, as a PNG."""
    shown = [each for each in growth if each["expected"] is not None and each["slope"] is not None]
    figure, (axes,) = _figure(8.2, 0.5 + 0.21 * len(shown), 1)
    rows = range(len(shown), 0, -1)
    axes.scatter([each["expected"] for each in shown], rows, marker="|", s=90, color="#1b1f24", label="expected")
    axes.scatter([each["slope"] for each in shown], rows, s=18, color="#2f7fd0", label="all three sizes")
    axes.scatter([each["last"] for each in shown], rows, s=18, color="#d9541e", marker="x", label="the two largest")
    axes.set_yticks(list(rows), [f"{each['figure']}, by {each['size']}" for each in shown], fontsize=7)
    axes.set_xlabel("slope: 0 is constant, 1 linear")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    _save(figure, path)


def _figure(width: float, height: float, columns: int) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(width, height), squeeze=False)
    for each in axes[0]:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)
