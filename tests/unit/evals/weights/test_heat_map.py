"""The figure: what it shows, and that it can be read."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from evals.errors import EvalError
from evals.weights.heat_map import INK, PAPER, SCALE, color_of, draw, ink_on, save

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def document(layers: int, full: int = 4096, step: int | None = 25_431) -> dict[str, Any]:
    rank: list[list[int | None]] = [[(17 * layer * j * j) % full for j in range(7)] for layer in range(layers)]
    if layers:
        rank[-1][2] = None
    return {
        "share": 0.9, "step": step, "modules": MODULES if layers else [], "layers": list(range(layers)), "rank": rank,
        "full_rank": [[full if k is not None else None for k in row] for row in rank], "max_rank": full,
    }  # fmt: skip


@pytest.mark.parametrize("layers", [1, 4, 32])
def test_every_cell_has_its_number_inside_and_apart(layers: int) -> None:
    found = document(layers)
    figure = draw(found)
    figure.canvas.draw()
    axes = figure.axes[0]
    numbers = {tuple(text.get_position()): text for text in axes.texts}
    assert {at: text.get_text() for at, text in numbers.items()} == {
        (x, y): str(k) for x, row in enumerate(found["rank"]) for y, k in enumerate(row) if k is not None
    }
    boxes = [text.get_window_extent() for text in numbers.values()]
    for (x, y), box in zip(numbers, boxes, strict=True):
        (left, low), (right, high) = axes.transData.transform([(x - 0.5, y + 0.5), (x + 0.5, y - 0.5)])
        assert left < box.x0 < box.x1 < right
        assert low < box.y0 < box.y1 < high
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes[:40], 2))
    assert min(text.get_fontsize() for text in numbers.values()) >= 9
    title = axes.get_title(loc="left")
    assert title == "rank of the weight change, step 25,431: k for 90 % of the squared spectrum"
    extent = axes._left_title.get_window_extent()
    assert figure.bbox.x0 <= extent.x0 < extent.x1 <= figure.bbox.x1
    labels = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(labels))


def test_it_is_written_in_the_format_of_its_name(tmp_path: Path) -> None:
    for name, start in {"a.svg": b"<?xml", "b.PNG": b"\x89PNG", "c.pdf": b"%PDF"}.items():
        save(document(2, step=None), tmp_path / "new" / name)
        assert (tmp_path / "new" / name).read_bytes().startswith(start)
    save(document(0), tmp_path / "nothing.png")
    with pytest.raises(EvalError, match=r"--plot .*x: ends in none of .svg, .png, .pdf; name the file so"):
        save(document(2), tmp_path / "x")


def luminance(color: str) -> float:
    """WCAG 2.2, relative luminance."""
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_go_from_light_to_dark_and_text_can_be_read_on_them() -> None:
    shares = [share / 100 for share in range(101)]
    colors = [color_of(share) for share in shares]
    lights = [luminance(color) for color in colors]
    assert lights == sorted(lights, reverse=True)
    assert (colors[0], colors[50], colors[100], color_of(1.7)) == (SCALE[0], SCALE[2], SCALE[4], SCALE[4])
    for color, light in zip(colors, lights, strict=True):
        contrast = {
            ink: (max(light, luminance(ink)) + 0.05) / (min(light, luminance(ink)) + 0.05) for ink in (INK, PAPER)
        }
        assert contrast[ink_on(color)] > 3.9
        assert contrast[ink_on(color)] > 0.9 * max(contrast.values())
