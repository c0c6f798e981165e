"""The page of `evals collect`: one HTML file without references to anything outside, from the collected document alone.

The document and the published curves are in it as JSON, which the scripts beside this file draw. Without
JavaScript the page still has its findings, a table of every run and the list of what was skipped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from evals import formatting as fmt
from evals.collect import published
from evals.collect.page_data import page_data
from evals.collect.page_findings import findings, interval, notices
from evals.collect.page_robustness import robustness
from evals.collect.page_sweeps import sweeps

Document = Mapping[str, Any]
SCRIPTS = (
    "app_numbers.js",
    "app_model.js",
    "app_axes.js",
    "app_elements.js",
    "app_canvas.js",
    "app_pareto.js",
    "app_curves.js",
    "app_spread.js",
    "app_pointer.js",
    "app_sections.js",
    "app_table.js",
    "app.js",
)
STATUS_NOTES = ("running", "stale", "preempted", "failed", "not started")

_READING = """<section><h2>How to read this</h2>
<dl class="reading">
<dt>Learned, forgotten</dt><dd>Learned is the improvement on the new tasks, forgotten the loss on the old ones, each
compared with the same model before training, example by example. A minus means the opposite happened. Accuracy is in
percentage points; with bits per byte, one bit less to write down a byte of new text is 1 learned.</dd>
<dt>Over which tasks</dt><dd>Along a run, figures are over tasks that all of its checkpoints share, often parts such as
hellaswag@500: in both plots above, a run compares with itself. The table's rows and the boxes are about the run's end,
over the most complete tasks there. A card, or pointing at a cell, says which they are.</dd>
<dt>Forgetting average</dt><dd>The mean accuracy on HellaSwag, ARC-challenge and WinoGrande. It is a score, not a
difference: high means that more was kept.</dd>
<dt>Intervals</dt><dd>95 %. They cover the chance in which examples were drawn, not other seeds or settings: for that,
look at the boxes, where every run of a method is a dot. Those of learned and forgotten belong to the paired difference;
those of a plain score are wider, and two that overlap may still differ clearly.</dd>
<dt>The front</dt><dd>The checkpoints that no other one beats at both learning and keeping. Of many runs some are there
by luck: the more are tried, the more.</dd>
<dt>Published curves</dt><dd>Grey, from the tables of LoRA Learns Less and Forgets Less (arXiv 2405.09673), which trained
Llama-2-7B. They are another model, other data and other prompts: compare shapes, not decimals.</dd>
<dt>Rank of the weight change</dt><dd>How many directions hold 90 % (or the share named there) of the squared change of a
matrix. An adapter of rank r cannot have more than r.</dd>
<dt>NLL, ECE</dt><dd>How unlikely the model found the right answer, in nats; how far its confidence is from how often it
is right. Both: lower is better.</dd>
<dt>States</dt><dd>A run is stale when it says that it is running but has written nothing for a while. One
that is not started is a cell of a sweep, or its job ended before training began.</dd>
<dt>Methods</dt><dd>Those of a sweep are what the sweep calls them: two may have the same adapter and differ in other
settings.</dd>
</dl></section>"""


def render(document: Document) -> str:
    """The whole page as HTML text.

    Args:
        document: what `evals collect` writes as collected.json.
    """
    css = _asset("app.css")
    script = "\n".join(_asset(name) for name in SCRIPTS)
    # Whatever a run is called, nothing but this script runs, and nothing is fetched.
    policy = f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(script)}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Learned and forgotten: {len(document['runs'])} runs</title>\n<style>{css}</style>\n</head>\n<body>\n"
        + "\n".join(
            (
                _opening(document),
                f"<noscript>{_static_table(document['runs'])}</noscript>",
                _asset("app.html").replace("<!-- robustness -->", robustness(document.get("reductions") or [])),
                sweeps(document),
                _stages(document.get("stages") or []),
                _skipped(document.get("skipped") or []),
                _notes(document["runs"]),
                _READING,
                _data("document", page_data(document)),
                _data("published", published.as_data()),
            )
        )
        + f"\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return files("evals.collect").joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """The source expression by which a content security policy allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _data(name: str, value: Any) -> str:
    """JSON in a script element that is not run; "<" is escaped, so that no text in it can end the element."""
    try:
        text = _json(value)
    except ValueError:
        text = _json(_finite(value))
    return f'<script type="application/json" id="{name}">{text.replace("<", chr(92) + "u003c")}</script>'


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _finite(value: Any) -> Any:
    """The value with null in place of nan and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _opening(document: Document) -> str:
    runs = document["runs"]
    points = sum(len(run.get("points") or []) for run in runs)
    facts = [
        f"{len(runs):,} {'run' if len(runs) == 1 else 'runs'}",
        f"{points:,} {'checkpoint' if points == 1 else 'checkpoints'} scored",
        f"{len(document.get('skipped') or [])} skipped",
        f"collected {_when(document.get('collected_at'))} from {document.get('root') or fmt.UNKNOWN}",
    ]
    if isinstance(document.get("seconds"), int | float):
        facts.append(f"in {document['seconds']:.1f} s")
    title = "No runs yet" if not runs else f"What {facts[0]} learned, and what {_they(len(runs))} forgot"
    said = findings(document)
    lead = said[0] if said else "No run has been scored on new and on old text, before and after training, yet."
    rest = "".join(f"<li>{escape(sentence)}</li>" for sentence in said[1:])
    return (
        f'<header>\n<p class="eyebrow">{escape(" · ".join(facts))}</p>\n<h1>{title}</h1>\n'
        f'<p class="lead">{escape(lead)}</p>\n'
        + (f'<ul class="findings">{rest}</ul>\n' if rest else "")
        + "".join(f'<p class="notice">{escape(notice)}</p>\n' for notice in notices(document))
        + "</header>"
    )


def _when(stamp: str | None) -> str:
    """An ISO time to the minute."""
    return f"{stamp[:10]} {stamp[11:16]}" if stamp else fmt.UNKNOWN


def _they(count: int) -> str:
    return "it" if count == 1 else "they"


def _static_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Every run in a table that needs no JavaScript."""
    headers = ("Run", "Method", "Rank", "Learning rate", "Seed", "Status", "Step", "Tokens", "Learned", "Forgotten")
    rows = []
    for run in runs:
        point = run.get("final") or {}
        lr = run.get("lr")
        rows.append(
            [
                run["id"],
                run.get("method"),
                run.get("rank"),
                None if lr is None else f"{lr:g}",
                run.get("seed"),
                run.get("status"),
                run.get("step"),
                fmt.count(run.get("tokens_seen")),
                interval(point.get("learned")),
                interval(point.get("forgotten")),
            ]
        )
    note = "<p>With JavaScript switched on, this page has plots, filters and more columns.</p>"
    return f'<section><h2>Every run</h2>{note}<div class="scroll">{_table(headers, rows)}</div></section>'


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    """What was kept through every chain of runs that began with each other."""
    rows = []
    for chain in stages:
        runs = " \N{RIGHTWARDS ARROW} ".join(chain["runs"])
        if chain.get("problem"):
            rows.append([runs, chain["problem"], None, None, None])
        for task in chain.get("tasks") or []:
            taught = "known before" if task["taught"] is None else f"taught in stage {task['taught'] + 1}"
            scores = [fmt.score({"score": score, "metric": task["metric"]}) for score in task["scores"]]
            backward = task.get("backward")
            change = None if backward is None else fmt.signed(backward["value"], backward["unit"])
            path = " \N{RIGHTWARDS ARROW} ".join(scores)
            rows.append([runs, f"{task['task']}, {taught}", path, change, fmt.percent(task.get("retention"))])
    if not rows:
        return ""
    body = _table(
        ("Runs, one after the other", "Task", "After each stage", "Change since", "Retained above chance"), rows
    )
    return (
        f'<section><h2>From stage to stage</h2><div class="list">{body}</div><p class="caption">Change since: the last '
        "score less the one right after the task was taught, or before all stages. Retained: the part of the score above "
        "guessing that is left.</p></section>"
    )


def _skipped(skipped: Sequence[Mapping[str, Any]]) -> str:
    """What was left out and why, grouped by reason."""
    if not skipped:
        return '<section><h2>Skipped</h2><p class="soft">Nothing was skipped.</p></section>'
    paths = defaultdict(list)
    for item in skipped:
        paths[str(item["reason"])].append(str(item["path"]))
    rows = [[reason, str(len(found)), "\n".join(found)] for reason, found in paths.items()]
    body = _table(("Reason", "How many", "Where"), sorted(rows, key=lambda row: -int(row[1])))
    return f'<section><h2>Skipped</h2><div class="list">{body}</div></section>'


def _notes(runs: Sequence[Mapping[str, Any]]) -> str:
    """The runs that are not finished or of which there is something to know."""
    rows = [
        [run["id"], run.get("status"), "\n".join(run.get("notes") or [])]
        for run in runs
        if run.get("notes") or run.get("status") in STATUS_NOTES
    ]
    if not rows:
        return ""
    body = _table(("Run", "Status", "Notes"), rows)
    return (
        f"<section><details><summary>{len(rows)} {'run has' if len(rows) == 1 else 'runs have'} notes or did not finish"
        f'</summary><div class="list">{body}</div></details></section>'
    )


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f'<th scope="col">{header}</th>' for header in headers)
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    return fmt.UNKNOWN if value is None else escape(str(value)).replace("\n", "<br>")
