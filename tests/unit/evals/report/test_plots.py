"""Figures: what they show and that their labels do not collide."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from matplotlib.figure import Figure

from evals.report import plots


def report(*points: tuple[str, float, float]) -> dict[str, Any]:
    def effect(value: float) -> dict[str, Any]:
        return {
            "value": value,
            "stderr": 0.005,
            "low": value - 0.01,
            "high": value + 0.01,
            "unit": "bits per byte",
            "n": 9,
        }

    methods = {
        label: {"label": label, "adapter": {"kind": "lora"}, "forgotten": effect(x), "learned": effect(y)}
        for label, x, y in points
    }
    return {"metric": "bits_per_byte", "methods": methods}


def labels(figure: Figure) -> list[Any]:
    figure.canvas.draw()
    return [text for text in figure.axes[0].texts if text.get_text()]


@pytest.mark.parametrize(
    "points",
    [
        [("full finetuning", 0.3, 0.6), ("LoRA", 0.08, 0.5), ("MonteCLoRA", 0.07, 0.49)],
        [("full finetuning", 0.1, 0.5), ("LoRA", 0.1, 0.5), ("MonteCLoRA", 0.1, 0.5)],
        [("full finetuning", -0.2, -0.4)],
    ],
)
def test_labels_are_there_inside_and_apart(points: list[tuple[str, float, float]]) -> None:
    figure = plots.learning_forgetting(report(*points))
    assert figure is not None
    texts = labels(figure)
    assert [text.get_text() for text in texts] == [point[0] for point in points]
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    frame = figure.bbox
    assert all(box.x0 >= frame.x0 and box.x1 <= frame.x1 for box in boxes)
    assert all(text.get_fontsize() >= 10 for text in texts)


def test_methods_have_colours_of_their_own() -> None:
    entries = {
        name: {"adapter": {"kind": kind}} for name, kind in (("f", "none"), ("a", "lora"), ("b", "lora"), ("c", "x"))
    }
    colors = plots.colors(entries)
    assert len(set(colors.values())) == 4
    assert colors["f"] == plots.KIND_COLORS["none"]
    assert colors["a"] == plots.KIND_COLORS["lora"]


def test_nothing_to_draw() -> None:
    assert plots.learning_forgetting(report()) is None
    assert plots.loss_curves([("LoRA", "#123456", [])]) is None


def test_an_inline_figure_follows_the_page() -> None:
    figure = plots.loss_curves([("LoRA", "#123456", [[0.0, 3.0], [10.0, 2.0]])])
    assert figure is not None
    svg = plots.inline_svg(figure, "Loss")
    assert svg.startswith('<svg role="img" aria-label="Loss"')
    assert plots.INK not in svg
    assert "currentColor" in svg
    assert "viewBox" in svg
    assert "http" not in svg
    opening = svg[: svg.index(">")]
    assert " width=" not in opening
    assert " height=" not in opening
