"""Loss curves of short, long and torn files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from evals.collect import curve
from evals.collect.curve import POINTS, WHOLE, read_curve


def line(step: int, loss: Any = 2.0, **more: Any) -> str:
    return json.dumps({"step": step, "tokens_seen": 10 * step, "loss": loss, **more}) + "\n"


def written(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    return read_curve(path)


def test_a_short_file_is_read_whole(tmp_path: Path) -> None:
    found = written(tmp_path, line(1, 3.0) + line(2, 2.5))
    assert found == {"loss": [[10, 3.0], [20, 2.5]], "step": 2, "tokens_seen": 20, "is_diverged": False}


def test_an_empty_file_has_no_curve(tmp_path: Path) -> None:
    assert written(tmp_path, "") == {"loss": [], "step": None, "tokens_seen": None, "is_diverged": False}


def test_a_torn_last_line_does_not_hide_the_one_before(tmp_path: Path) -> None:
    found = written(tmp_path, "".join(line(step) for step in range(1, 1001)) + '{"step": 1001, "lo')
    assert found["step"] == 1000


def test_lines_of_other_kinds_are_left_out(tmp_path: Path) -> None:
    found = written(tmp_path, '{"step": 1}\n[1]\nnull\n{"step": "2", "loss": 1}\n' + "[" * 9999 + "\n" + line(3))
    assert found["loss"] == [[30, 2.0]]


@pytest.mark.parametrize("loss", [None, float("nan"), float("inf")])
def test_a_run_whose_last_loss_is_no_number_diverged(tmp_path: Path, loss: Any) -> None:
    found = written(tmp_path, line(1) + line(2, loss))
    assert (found["is_diverged"], found["step"], found["loss"]) == (True, 2, [[10, 2.0]])
    assert not written(tmp_path, line(1, loss) + line(2))["is_diverged"]


def test_a_step_that_was_repeated_counts_as_logged_last(tmp_path: Path) -> None:
    assert written(tmp_path, line(1, 9.0) + line(2, 9.0) + line(1, 3.0))["loss"] == [[10, 3.0], [20, 9.0]]


@pytest.mark.parametrize("padding", [0, 40, 700])
def test_of_a_long_file_pieces_are_read(tmp_path: Path, padding: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(line(step, 5 - step / 10_000, pad="x" * padding) for step in range(1, 20_001))
    assert len(text) > WHOLE
    found = written(tmp_path, text)
    steps = [tokens // 10 for tokens, _ in found["loss"]]
    assert (steps[0], steps[-1], found["step"]) == (1, 20_000, 20_000)
    gaps = [after - before for before, after in itertools.pairwise(steps)]
    assert max(gaps) <= 2 * 20_000 / POINTS
    assert len(steps) < 3 * POINTS
    assert all(loss == pytest.approx(5 - step / 10_000) for step, (_, loss) in zip(steps, found["loss"], strict=True))
    # Read whole, the file says the same at its ends.
    monkeypatch.setattr(curve, "WHOLE", 1 << 30)
    whole = read_curve(tmp_path / "metrics.jsonl")
    assert (whole["loss"][0], whole["loss"][-1]) == (found["loss"][0], found["loss"][-1])


def test_a_missing_file_is_an_error_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        read_curve(tmp_path / "none")
