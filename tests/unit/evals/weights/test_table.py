"""The table in the terminal."""

from __future__ import annotations

import io
import re
from typing import Any

from rich.console import Console

from evals.weights.heat_map import color_of
from evals.weights.table import outside_layers, rank_table, summary


def row(layer: int | None, module: str, k: int, *, is_full: bool = True) -> dict[str, Any]:
    name = f"{module}.weight" if layer is None else f"layers.{layer}.{module}.weight"
    before = 70 if is_full else None
    return {
        "name": name, "layer": layer, "module": module, "full_rank": 100, "relative_change": None if k == 0 else 0.0123,
        "rank": {"before": before, "after": before, "change": k},
    }  # fmt: skip


DOCUMENT = {
    "share": 0.9, "modules": ["q_proj", "up_proj"], "layers": [0, 1, 2], "rank": [[10, 0], [1234, 50], [None, 60]],
    "full_rank": [[100, 100], [4096, 100], [None, 100]],
    "rows": [row(0, "q_proj", 10), row(1, "q_proj", 1234), row(0, "up_proj", 0), row(1, "up_proj", 50),
             row(2, "up_proj", 60), row(None, "lm_head", 25), row(None, "embed_tokens", 0)],
}  # fmt: skip


def printed(*, has_colors: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=has_colors, color_system="truecolor" if has_colors else None)
    console.print(rank_table(DOCUMENT))
    return file.getvalue()


def test_cells_have_k_and_its_share_of_the_full_rank() -> None:
    lines = [line.split() for line in printed().splitlines()]
    assert ["layer", "q_proj", "up_proj"] in lines
    assert lines[-4:-1] == [["0", "10", "10%", "0", "0%"], ["1", "1,234", "30%", "50", "50%"], ["2", "–", "60", "60%"]]


def test_colours_are_those_of_the_heat_map() -> None:
    red, green, blue = (int(color_of(0.6)[place : place + 2], 16) for place in (1, 3, 5))
    (cell,) = re.findall(rf"48;2;{red};{green};{blue}m([^\x1b]*)", printed(has_colors=True))
    assert cell.strip() == "60  60%"


def test_what_is_in_no_layer() -> None:
    assert outside_layers(DOCUMENT) == [
        "lm_head.weight: k 25 of 100 (25.0 %), |change| / |W| 0.012",
        "embed_tokens.weight: k 0 of 100 (0.0 %), |change| / |W| –",
    ]


def test_a_line_per_module() -> None:
    assert summary(DOCUMENT) == [
        "q_proj: W before 70 / 70 / 70, W after 70 / 70 / 70, change 10 / 1,234 / 1,234 of 100",
        "up_proj: W before 70 / 70 / 70, W after 70 / 70 / 70, change 0 / 50 / 60 of 100",
    ]
    only_change = DOCUMENT | {"rows": [row(0, "q_proj", 10, is_full=False)], "modules": ["q_proj"]}
    assert summary(only_change) == ["q_proj: change 10 / 10 / 10 of 100"]
