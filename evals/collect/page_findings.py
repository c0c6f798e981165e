"""What can be said of all collected runs together, in sentences: from the document, before any filter."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evals import formatting as fmt

Document = Mapping[str, Any]
MOST_GROUPS = 4
"""Sets of tasks of which it is said what was learned most."""
MIN_SPREAD = 3
"""Finished runs that a method needs for its spread to be spoken of."""


def findings(document: Document) -> list[str]:
    """Sentences, the most important first; empty without a run that has both learned and forgotten."""
    runs = document["runs"]
    scored = _scored(runs)
    front = _front(document, scored)
    groups = _over_the_same_tasks(scored)
    most = [
        sentence
        for tasks, alike in groups[:MOST_GROUPS]
        for sentence in _most_learned(alike, f" of {tasks}" if len(groups) > 1 and tasks else "")
    ]
    return [sentence for sentence in (front, *most, _spreads(document)) if sentence]


def notices(document: Document) -> list[str]:
    """What to know before comparing: unequal bases, unfinished runs, folders that were skipped."""
    runs = document["runs"]
    prints = {
        run["base_fingerprint"]
        for run in runs
        if run.get("base_fingerprint") and not (run.get("is_continuation") or run.get("is_from_scratch"))
    }
    states = Counter(run.get("status") or "unknown" for run in runs)
    unfinished = [f"{n} {status}" for status, n in sorted(states.items()) if status != "done"]
    found = []
    if len(prints) > 1:
        found.append(
            f"The runs started from {len(prints)} different base weights: compare runs of one base (filter: base model)."
        )
    if unfinished:
        found.append(f"Not finished: {', '.join(unfinished)}. Their points so far are shown.")
    if document.get("skipped"):
        count = len(document["skipped"])
        what = "file or folder" if count == 1 else "files or folders"
        found.append(f"Skipped: {count} {what}, listed below with the reason.")
    return found


def interval(estimate: Mapping[str, Any] | None) -> str:
    """A difference with its interval: "+3.1 points (+2.7 to +3.5)"."""
    if not estimate:
        return fmt.UNKNOWN
    unit = estimate["unit"]
    text = fmt.signed(estimate["value"], unit)
    if estimate.get("low") is None or estimate.get("high") is None:
        return text
    low, high = (fmt.signed(estimate[end], unit).removesuffix(" points") for end in ("low", "high"))
    return f"{text} ({low} to {high})"


Scored = list[tuple[Mapping[str, Any], Mapping[str, Any]]]


def _scored(runs: Sequence[Mapping[str, Any]]) -> Scored:
    """(run, final point) of the runs with both effects, in the unit that most of them have."""
    pairs = [(run, point) for run in runs if (point := run.get("final")) and _units(point)]
    if not pairs:
        return []
    usual = Counter(_units(point) for _, point in pairs).most_common(1)[0][0]
    return [(run, point) for run, point in pairs if _units(point) == usual]


def _over_the_same_tasks(scored: Scored) -> list[tuple[str, Scored]]:
    """Runs by the tasks that tell what they learned and forgot, which can't be compared across; the most runs first."""
    groups: dict[str, tuple[str, Scored]] = {}
    for run, point in scored:
        over = point.get("over") or {}
        _, alike = groups.setdefault(json.dumps(over, sort_keys=True), (", ".join(over.get("learned") or ()), []))
        alike.append((run, point))
    return sorted(groups.values(), key=lambda group: len(group[1]), reverse=True)


def _units(point: Mapping[str, Any]) -> tuple[str, str] | None:
    learned, forgotten = point.get("learned"), point.get("forgotten")
    return (learned["unit"], forgotten["unit"]) if learned and forgotten else None


def _front(document: Document, scored: Scored) -> str:
    runs = {run["id"]: run for run in document["runs"]}
    front = [runs[run] for run, step in document.get("pareto") or [] if step and run in runs]
    if not front:
        return ""
    counts = ", ".join(f"{n} of {method}" for method, n in Counter(run["method"] for run in front).most_common())
    many = "checkpoint is" if len(front) == 1 else "checkpoints are"
    return (
        f"{len(front)} {many} on the front by what was learned and forgotten since step 0 ({counts}): "
        f"no checkpoint of the {len(scored)} runs scored on both, over the same tasks, learned more and forgot less."
    )


def _most_learned(scored: Scored, of: str) -> Iterator[str]:
    run, point = max(scored, key=lambda pair: pair[1]["learned"]["value"])
    most = point["learned"]["value"]
    yield (
        f"Most learned{of}: {_name(run)}, {interval(point['learned'])}{_unit(point['learned'])}, having forgotten "
        f"{interval(point['forgotten'])}{_unit(point['forgotten'])}."
    )
    near = [pair for pair in scored if pair[1]["learned"]["value"] >= 0.8 * most > 0]
    if not near:
        return
    other, kept = min(near, key=lambda pair: pair[1]["forgotten"]["value"])
    if other is not run:
        yield (
            f"Least forgotten among the {len(near)} runs that learned at least 80 % as much{of}: {_name(other)}, "
            f"{interval(kept['forgotten'])}, having learned {interval(kept['learned'])}."
        )


def _spreads(document: Document) -> str:
    entries = [
        (entry, abs(entry["best"] - entry["worst"]))
        for entry in document.get("spreads") or []
        if entry["metric"] == "learned"
        and entry["n"] >= MIN_SPREAD
        and entry["best"] is not None
        and entry["worst"] is not None
    ]
    # Not only the settings tell two bases apart.
    usual = Counter(entry.get("base") for entry, _ in entries).most_common(1)
    entries = [(entry, gap) for entry, gap in entries if entry.get("base") == usual[0][0]]
    if len(entries) < 2 or len({entry.get("unit") for entry, _ in entries}) > 1:
        return ""
    (narrow, least), (wide, most) = (choose(entries, key=lambda item: item[1]) for choose in (min, max))
    unit = narrow.get("unit") or "accuracy"
    gaps = [fmt.signed(gap, unit).removeprefix("+") for gap in (least, most)]
    return (
        f"What is learned depends least on the settings with {_group(narrow)} ({gaps[0]} between the worst and the best "
        f"of {narrow['n']} runs), most with {_group(wide)} ({gaps[1]}, {wide['n']} runs)."
    )


def _name(run: Mapping[str, Any]) -> str:
    return f"{run['id']} ({_group(run)})"


def _group(entry: Mapping[str, Any]) -> str:
    """A method, with its rank where it has one."""
    return f"{entry['method']} rank {entry['rank']}" if entry.get("rank") else str(entry["method"])


def _unit(estimate: Mapping[str, Any]) -> str:
    """A unit that the numbers themselves do not say."""
    return "" if estimate["unit"] == "accuracy" else f" ({estimate['unit']})"
