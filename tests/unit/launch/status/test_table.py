"""What people and programs see of the states."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from evals.collect.sweeps import read_sweep
from launch.status.state import State
from launch.status.table import MANY, as_json, lines, shortened, sweep_totals, table, totals
from tests.unit.launch.status.run_folders import make_sweep

GOLDEN = Path(__file__).parent / "golden"
STATES = [
    State(id="full-lr4e-5-seed1", state="failed", why="loss or gradients were not finite for 10 steps in a row, up to step 312, and none "
          "of them has changed the weights", step=312, steps=2000, tokens_per_second=181234.4, checkpoint=312,
          checkpoint_age_seconds=4000.0, job="4711_3"),
    State(id="lora-lr1e-4-seed2", state="lost", why="says it is running, but wrote nothing for 2.0 h", step=1400, steps=2000),
    State(id="full-lr1e-5-seed1", state="running", step=1250, steps=2000, tokens_per_second=183000.0, eta_seconds=7260.0, checkpoint=1000,
          checkpoint_age_seconds=130.0, job="4711_0", job_state="RUNNING", restart=2),
    State(id="a/folder/with/a/very/long/name/of/a/run/in/it", state="evaluating", step=500, steps=2000, tokens_per_second=0.4, eta_seconds=90.0),
    State(id="full-lr2e-5-seed1", state="queued", why="waits: Priority", job="4711_1", job_state="PENDING"),
    State(id="[red]name[/red]", state="not started"),
    State(id="done", state="done", step=2000, steps=2000, why="1 step skipped"),
]  # fmt: skip


def drawn(states: list[State], width: int) -> str:
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(table(states, width))
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def test_table() -> None:
    assert drawn(STATES, 100) == (GOLDEN / "table.txt").read_text()


def test_lines() -> None:
    assert "\n".join(lines(STATES)) + "\n" == (GOLDEN / "lines.txt").read_text()


def test_the_table_fits() -> None:
    for width in (90, 100, 140, 180):
        text = drawn(STATES, width)
        assert max(map(len, text.splitlines())) <= width
        # Names are folded, never cut.
        assert "…" not in text


def test_columns_without_anything_are_left_out() -> None:
    assert drawn([STATES[-2]], 100).split()[:3] == ["run", "state", "step"]
    assert "checkpoint" not in drawn([STATES[-2]], 100)


def test_of_many_runs_those_are_counted_that_need_nobody() -> None:
    many = [State(id=str(i), state="done") for i in range(MANY)]
    assert shortened(many) == (many, [])
    listed, left_out = shortened([STATES[0], *many])
    assert listed == [STATES[0]]
    assert totals(left_out) == f"{MANY} runs: {MANY} done"


def test_totals(tmp_path: Path) -> None:
    assert totals([]) == "no runs"
    assert totals(STATES[:1]) == "1 run: 1 failed"
    assert totals(STATES) == "7 runs: 1 failed, 1 lost, 1 running, 1 evaluating, 1 queued, 1 not started, 1 done"
    make_sweep(tmp_path, {state.id: {"method": "x"} for state in STATES[:3]})
    sweep = read_sweep(tmp_path / "sweep.json")
    by_id = {state.id: state for state in STATES}
    assert sweep_totals(sweep, by_id) == "sweep rank-study: 3 cells: 1 failed, 1 lost, 1 running"


def test_json(tmp_path: Path) -> None:
    make_sweep(tmp_path, {"done": {"method": "x"}})
    found = json.loads(json.dumps(as_json(STATES, [read_sweep(tmp_path / "sweep.json")]), allow_nan=False))
    assert found["schema"] == 1
    assert found["runs"][0] == {
        "id": "full-lr4e-5-seed1", "state": "failed", "why": STATES[0].why, "step": 312, "steps": 2000,
        "tokens_per_second": 181234.4, "eta_seconds": None, "checkpoint": 312, "checkpoint_age_seconds": 4000.0,
        "job": "4711_3", "job_state": None, "restart": 0,
    }  # fmt: skip
    assert found["sweeps"] == [{"name": "rank-study", "folder": "", "runs": ["done"]}]
