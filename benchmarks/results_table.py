"""RESULTS.md from the results of scripts: a pure function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from benchmarks.claims import is_met
from benchmarks.suite import NOT_RUN, LeftOut, Promise

HEAD = """\
# Results

Written by `make bench` from `results/*.json`; not to be edited. [README.md](README.md) says how each is measured, and why goals are missed.
A ratio is the median over repetitions in which the contenders take turns, its spread their extremes, n their number.
**missed** is a goal that was not reached. Where several cases measure a promise, its row has the worst; all are further below. A script that failed
keeps its last result, and says so.
"""
PROMISED = ("promise", "measured", "goal", "ratio", "spread (n)", "against", "", "to repeat")
ORIGIN = ("script", "size", "seconds", "date", "commit", "machine")
CLAIMS = ("claim", "goal", "ratio", "spread (n)", "against", "")
LEFT = ("script", "what is left out", "where it was measured", "to measure it")
NONE = "–"

LEFT_HEAD = """\
`make bench` has an hour. It has the worst known case of every promise; these others are left out.
"""

Result = Mapping[str, Any]
"""The JSON of a script (claims.py). After a try that failed it also has "failure": {"why", "date"}, and without an earlier result
nothing but that and "script"."""


def results_page(
    results: Mapping[str, Result],
    scripts: Sequence[str],
    commands: Mapping[str, str],
    promises: Iterable[Promise],
    left_out: Iterable[LeftOut],
) -> str:
    """The whole page, as Markdown.

    Args:
        results: by script.
        scripts: the ones to have a section, in this order.
        commands: by script, how to run it where there is no result yet.
        promises: rows of the first table.
        left_out: what `make bench` doesn't measure.
    """
    rows = [_promise_row(promise, results.get(promise.script), commands[promise.script]) for promise in promises]
    parts = [HEAD, "## What is promised\n", _table(PROMISED, rows), "## Where it was measured\n"]
    measured = {name: results[name] for name in scripts if name in results and "claims" in results[name]}
    parts += [_table(ORIGIN, [_origin_row(name, result) for name, result in measured.items()]), *_versions(measured)]
    rows = [[each.script, each.what, each.measured, f"`{each.command}`"] for each in left_out]
    parts += ["## Not in this run\n", LEFT_HEAD, _table(LEFT, rows), "## All claims\n"]
    for name in scripts:
        parts += [f"### {name}\n", _section(results.get(name), commands[name])]
    return "\n".join(parts)


def _promise_row(promise: Promise, result: Result | None, command: str) -> list[str]:
    start = [promise.text, promise.measured, _goal(promise.goal)]
    if result is None or "claims" not in result:
        return [*start, *_nothing(_why_not(promise, result)), f"`{command}`"]
    found = [
        line
        for line in result["claims"]
        if line["goal"] != "none" and any(fnmatchcase(line["claim"], pattern) for pattern in promise.claims)
    ]
    if not found:
        why = f"not measured: the result of {promise.script} has no such claim"
        return [*start, *_nothing(why + _stale(result)), f"`{_command(result)}`"]
    worst = (max if promise.goal.startswith("<=") else min)(found, key=lambda line: line["ratio"])
    of_several = f", worst of {len(found)}: `{worst['claim']}`" if len(found) > 1 else ""
    start[1] += of_several
    *figures, verdict = _figures(worst | {"goal": promise.goal})
    return [*start, *figures, verdict + _stale(result), f"`{_command(result)}`"]


def _why_not(promise: Promise, result: Result | None) -> str:
    reasons = [result["failure"]["why"]] if result is not None else []
    if result is None and promise.script in NOT_RUN:
        reasons.append(NOT_RUN[promise.script])
    if promise.predicted:
        reasons.append(f"`launch plan` predicts {promise.predicted}")
    return ": ".join(["not measured", "; ".join(reasons)] if reasons else ["not measured"])


def _stale(result: Result) -> str:
    """Where the last try failed: of which commit the figure is, and why there is no newer one; else nothing."""
    if "failure" not in result:
        return ""
    return f"; measured at {_at(result)}; the last try failed: {result['failure']['why']}"


def _section(result: Result | None, command: str) -> str:
    if result is None or "claims" not in result:
        why = "Not measured" if result is None else f"Not measured: {result['failure']['why']}"
        return f"{why}. `{command}`\n"
    rows = [[f"`{line['claim']}`", _goal(line["goal"]), *_figures(line)] for line in result["claims"]]
    failure = ""
    if "failure" in result:
        failure = f"Measured at {_at(result)}. The last try, {result['failure']['date'][:10]}, failed: {result['failure']['why']}\n\n"
    return f"`{_command(result)}`\n\n{failure}" + _table(CLAIMS, rows)


def _figures(line: Mapping[str, Any]) -> list[str]:
    """Ratio, spread, peer, verdict."""
    verdict = {True: "met", False: "**missed**", None: ""}[is_met(line["ratio"], line["goal"])]
    spread = f"{_number(line['min'])} to {_number(line['max'])}" if line["n"] > 1 else NONE
    return [_number(line["ratio"]), f"{spread} ({line['n']})", line["peer"], verdict]


def _nothing(why: str) -> list[str]:
    return [NONE, NONE, NONE, why]


def _origin_row(name: str, result: Result) -> list[str]:
    machine = result["machine"]
    parts = [machine["gpu"] or f"{machine['cpus']} cores of {machine['cpu'] or 'an unknown kind'}"]
    parts += [f"{machine['memory_gib']} GiB"] * (machine["memory_gib"] is not None)
    parts += [f"Python {machine['python']}"] * (machine["python"] is not None)
    seconds = NONE if result["seconds"] is None else f"{result['seconds']:.0f}"
    return [name, result["size"], seconds, result["date"][:10], _commit(result), ", ".join(parts)]


def _commit(result: Result) -> str:
    """What was measured."""
    if result["commit"] is None:
        return "not recorded"
    return f"{result['commit'][:12]}{', changed' if result['is_tree_clean'] is False else ''}"


def _at(result: Result) -> str:
    return "a commit that is not recorded" if result["commit"] is None else _commit(result)


def _versions(measured: Mapping[str, Result]) -> list[str]:
    """A line for each set of versions, with the scripts that ran with it."""
    scripts: dict[str, list[str]] = {}
    for name, result in measured.items():
        text = ", ".join(f"{package} {version}" for package, version in result["versions"].items() if version)
        if text:
            scripts.setdefault(text, []).append(name)
    if len(scripts) == 1:
        return [f"Packages: {next(iter(scripts))}.\n"]
    return [f"Packages of {', '.join(names)}: {text}.\n" for text, names in scripts.items()]


def _command(result: Result) -> str:
    return " ".join(result["command"])


def _goal(goal: str) -> str:
    return NONE if goal == "none" else goal.replace("<=", "≤ ").replace(">=", "≥ ")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
