"""`python -m launch status ROOT…`: look, show, and look again with --watch."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from evals.errors import EvalError
from evals.json_text import valid_unicode
from launch.slurm import Queued, SlurmError, queue
from launch.status.found import Found, find
from launch.status.state import State, states
from launch.status.table import as_json, lines, shortened, sweep_totals, table, totals

if TYPE_CHECKING:
    from rich.console import Console

MOST_SKIPPED = 5
"""Lines about folders that could not be looked at."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("roots", type=Path, nargs="+", metavar="ROOT", help="folder that holds runs, or a run")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="look again every so many seconds, until Ctrl-C")
    parser.add_argument("--all", action="store_true", help="list every run, also where there are many")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Show the runs and return the exit code: 0, or 2 where nothing could be looked at."""
    problems = [f"{word}: unknown option" for word in overrides]
    if options.watch is not None and not 0 < options.watch < float("inf"):
        problems.append(f"--watch {options.watch:g}: must be a number of seconds above 0")
    if options.watch is not None and options.json:
        problems.append("--watch, --json: choose one; a program can ask again itself")
    if problems:
        print("\n".join(problems), file=sys.stderr)
        return 2
    from rich.console import Console

    console = Console()
    try:
        _look(options, console)
        while options.watch is not None:
            time.sleep(options.watch)
            _look(options, console, is_first=False)
    except EvalError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # A look may be left at any time: it changes nothing.
        return 0
    return 0


def _look(options: argparse.Namespace, console: Console, *, is_first: bool = True) -> None:
    # Slurm may take its time, and so may storage.
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(_queue)
        found = find(options.roots)
        jobs, problem = asked.result()
    shown = states(found.runs, jobs, time.time())
    if not any(state.job for state in shown):
        problem = ""
    if options.json:
        if problem:
            print(problem, file=sys.stderr)
        print(json.dumps(as_json(shown, found.sweeps), indent=1))
        return
    if not is_first:
        console.clear()
    _show(shown, found, console, problem=problem, shows_all=options.all)


def _queue() -> tuple[Mapping[str, Queued] | None, str]:
    """This user's jobs, or None and why they are not known."""
    try:
        jobs = queue()
    except SlurmError as error:
        return None, f"{error}; what is queued is not known"
    return jobs, "" if jobs is not None else "squeue is not here, so what is queued is not known"


def _show(states: list[State], found: Found, console: Console, *, problem: str, shows_all: bool) -> None:
    def say(line: str) -> None:
        console.print(valid_unicode(line), markup=False, highlight=False, soft_wrap=True)

    if console.is_terminal:
        listed, left_out = (states, []) if shows_all else shortened(states)
        if listed:
            console.print(table(listed, console.width))
            say("")
        if left_out:
            say(f"not listed (--all does): {totals(left_out)}")
    elif states:
        for line in lines(states):
            say(line)
    by_id = {state.id: state for state in states}
    for sweep in found.sweeps:
        say(sweep_totals(sweep, by_id))
    for each in found.skipped[:MOST_SKIPPED]:
        say(f"skipped: {each.path}: {each.reason}")
    if len(found.skipped) > MOST_SKIPPED:
        say(f"skipped: {len(found.skipped) - MOST_SKIPPED} more")
    say(totals(states) + (f"; {problem}" if problem else ""))
