"""The document in a terminal: a table of runs, or of methods where there are many, and what was skipped."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from evals import formatting as fmt

if TYPE_CHECKING:
    from rich.table import Table

MANY_RUNS = 40
MOST_SKIPPED = 10
"""Lines about what was skipped; beyond that a line per reason."""
MOST_CHAINS = 5
PADDING = 3
STATUS_STYLES = {"done": "green", "running": "cyan", "stale": "yellow", "preempted": "yellow", "failed": "red",
                 "unreadable": "red"}  # fmt: skip

Row = Mapping[str, Any]


class Column(NamedTuple):
    """A column of a terminal table; those of lower importance go first where the terminal is narrow."""

    title: str
    cell: Callable[[Row], str]
    importance: int
    is_number: bool = False


def tables(document: Mapping[str, Any], width: int) -> list[Table]:
    """What fits into a terminal of `width` columns: a row per run, or per method of more than MANY_RUNS runs."""
    runs = document["runs"]
    if len(runs) <= MANY_RUNS:
        return [_table(RUN_COLUMNS, runs, width)] if runs else []
    groups: dict[tuple[str, int | None], list[Row]] = {}
    for run in runs:
        groups.setdefault((run["method"], run["rank"]), []).append(run)
    ordered = sorted(groups.items(), key=lambda group: (group[0][0], group[0][1] or 0))
    return [_table(METHOD_COLUMNS, [_method(*key, members) for key, members in ordered], width)]


def skipped_lines(skipped: Sequence[Mapping[str, str]]) -> list[str]:
    """`skipped` with paths and reasons; many are counted by the reason's beginning, with one path each."""
    if not skipped:
        return []
    if len(skipped) <= MOST_SKIPPED:
        return [f"skipped: {each['path']}: {each['reason']}" for each in skipped]
    groups: dict[str, list[str]] = {}
    for each in skipped:
        groups.setdefault(each["reason"].partition("(")[0].strip(), []).append(each["path"])
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [f"skipped {len(paths)}: {reason} ({paths[0]}{' …' if len(paths) > 1 else ''})" for reason, paths in ordered]


def stage_lines(chains: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each chain of stages kept of what it was taught, a line per chain, or how many there are."""
    told = [(chain, text) for chain in chains if (text := chain["problem"] or _kept(chain))]
    if len(told) > MOST_CHAINS:
        return [f"{len(told)} chains of stages: see the stages in collected.json"]
    return [f"stages: {' -> '.join(chain['runs'])}: {text}" for chain, text in told]


def sweep_lines(document: Mapping[str, Any]) -> list[str]:
    """How far each sweep is: "sweep rank-study: 12 cells: 7 done, 1 failed, 4 not started"."""
    states = {run["id"]: run["status"] for run in document["runs"]}
    return [f"sweep {sweep['name']}: {cells_in(sweep, states)}" for sweep in document.get("sweeps") or []]


def cells_in(sweep: Mapping[str, Any], states: Mapping[str, str]) -> str:
    """How many cells of a sweep are in which state, by id of the runs."""
    counts = Counter(states[run] for run in sweep["runs"] if run in states)
    return f"{len(sweep['runs'])} cells: {', '.join(f'{count} {state}' for state, count in counts.most_common())}"


def _kept(chain: Mapping[str, Any]) -> str:
    """What was retained; empty where nothing was scored that could be."""
    last = len(chain["runs"]) - 1
    kept = [
        f"{task['task']} {fmt.percent(task['retention'], 0)}"
        for task in chain["tasks"]
        if task["retention"] is not None and (task["taught"] is None or task["taught"] < last)
    ]
    return f"retention {', '.join(kept)}" if kept else ""


def heading(document: Mapping[str, Any]) -> str:
    """What was collected, in one line."""
    runs = document["runs"]
    states = Counter(run["status"] for run in runs)
    listed = ", ".join(f"{count} {status}" for status, count in states.most_common())
    points = sum(len(run["points"]) for run in runs)
    return (
        f"{_counted(len(runs), 'run')} ({listed or 'none'}), {_counted(points, 'point')}, {document['seconds']:.1f} s"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _table(columns: Sequence[Column], rows: Sequence[Row], width: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    cells = {column: [column.cell(row) for row in rows] for column in columns}
    filled = [column for column in columns if any(cell not in ("", fmt.UNKNOWN) for cell in cells[column])]
    table = Table()
    chosen = list(_fitting(filled, cells, width))
    for column in chosen:
        table.add_column(column.title, justify="right" if column.is_number else "left", overflow="fold")
    for index in range(len(rows)):
        line = [cells[column][index] for column in chosen]
        # Names are the user's: nothing in them is markup.
        table.add_row(*(Text(cell, style=STATUS_STYLES.get(cell, "")) for cell in line))
    return table


def _fitting(columns: Sequence[Column], cells: Mapping[Column, Sequence[str]], width: int) -> Iterator[Column]:
    """The most important columns that fit side by side, in their order; the two most important in any case."""
    room = width - 1
    chosen: set[Column] = set()
    for column in sorted(columns, key=lambda column: -column.importance):
        room -= max(len(line) for cell in (column.title, *cells[column]) for line in cell.split("\n")) + PADDING
        if room < 0 and len(chosen) > 1:
            break
        chosen.add(column)
    return (column for column in columns if column in chosen)


def _method(method: str, rank: int | None, runs: Sequence[Row]) -> Row:
    return {"method": method, "rank": rank, "runs": runs}


def _last(run: Row) -> Row:
    """Its end, over the most complete tasks there."""
    return run["final"] or {}


def _effect(key: str) -> Callable[[Row], str]:
    def cell(run: Row) -> str:
        effect = _last(run).get(key)
        if not effect:
            return fmt.UNKNOWN
        value = fmt.signed(effect["value"], effect["unit"]).removesuffix(" points")
        scale, digits = (100, 1) if effect["unit"] == "accuracy" else (1, 3)
        if effect["low"] is None:
            return value
        ends = (f"{scale * effect[end]:.{digits}f}".replace("-", fmt.MINUS) for end in ("low", "high"))
        return f"{value} [{', '.join(ends)}]"

    return cell


def _unit(run: Row) -> str:
    effects = [effect for key in ("learned", "forgotten") if (effect := _last(run).get(key))]
    units = dict.fromkeys({"accuracy": "points"}.get(effect["unit"], effect["unit"]) for effect in effects)
    return " and ".join(units) or fmt.UNKNOWN


def _new_and_old(key: str) -> Callable[[Row], str]:
    """A line for each domain, which keeps the column narrow."""

    def cell(run: Row) -> str:
        values = {domain: _last(run).get("calibration", {}).get(f"{domain}_{key}") for domain in ("new", "old")}
        return "\n".join(f"{domain} {v:.3f}" for domain, v in values.items() if v is not None) or fmt.UNKNOWN

    return cell


def _steps(run: Row) -> str:
    return "/".join(fmt.UNKNOWN if run[key] is None else str(run[key]) for key in ("step", "steps"))


def _plain(key: str, form: str = "{}") -> Callable[[Row], str]:
    return lambda row: fmt.UNKNOWN if row[key] is None else form.format(row[key])


def _middle(key: str) -> Callable[[Row], str]:
    """Of the runs of a method that are done."""

    def cell(group: Row) -> str:
        effects = [effect for run in group["runs"] if run["status"] == "done" and (effect := _last(run).get(key))]
        units = {effect["unit"] for effect in effects}
        if len(units) != 1:
            return fmt.UNKNOWN
        values = [effect["value"] for effect in effects]
        ends = (
            fmt.signed(value, *units).removesuffix(" points")
            for value in (min(values), statistics.median(values), max(values))
        )
        return " / ".join(ends)

    return cell


def _unit_of_group(group: Row) -> str:
    return next((unit for run in group["runs"] if (unit := _unit(run)) != fmt.UNKNOWN), fmt.UNKNOWN)


def _states(group: Row) -> str:
    return ", ".join(f"{n} {status}" for status, n in Counter(run["status"] for run in group["runs"]).most_common())


RUN_COLUMNS = (
    Column("run", _plain("id"), 100),
    Column("method", _plain("method"), 90),
    Column("rank", _plain("rank"), 40, True),
    Column("lr", _plain("lr", "{:g}"), 45, True),
    Column("seed", _plain("seed"), 15, True),
    Column("status", _plain("status"), 85),
    Column("step", _steps, 60, True),
    Column("tokens", lambda run: fmt.count(run["tokens_seen"]), 50, True),
    Column("learned", _effect("learned"), 80, True),
    Column("forgotten", _effect("forgotten"), 79, True),
    Column("unit", _unit, 55),
    Column("NLL", _new_and_old("nll"), 30),
    Column("ECE", _new_and_old("ece"), 29),
    Column("note", lambda run: "\n".join(run["notes"]), 35),
)
METHOD_COLUMNS = (
    Column("method", _plain("method"), 100),
    Column("rank", _plain("rank"), 90, True),
    Column("runs", lambda group: str(len(group["runs"])), 80, True),
    Column("states", _states, 50),
    Column("learned: lowest / median / highest", _middle("learned"), 70, True),
    Column("forgotten: lowest / median / highest", _middle("forgotten"), 69, True),
    Column("unit", _unit_of_group, 60),
)
