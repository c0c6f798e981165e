"""The page's sections about single tests: scores before and after, programs, calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from evals import formatting as fmt
from evals.arithmetic.calibration import calibrated
from evals.report.page_parts import colored, interval, table, title

Report = Mapping[str, Any]
Entry = Mapping[str, Any]
_UNIQUE = {"all": "Different", "passed": "of these pass", "failed": "of these fail"}
_FLAWS = {"truncated": "prompts cut to the model's length", "not_finite": "answers without a finite score"}
_PROGRAMS_READING = """
<p class="soft"><b>pass@k</b>: how often at least one of k programs passes the problem's tests. <b>Different</b>: how
many of the programs written for a problem differ from each other, on average over problems.</p>"""
_CALIBRATION_READING = """
<p class="soft"><b>NLL</b>: how unlikely the model found the true continuation, in nats; lower is better. Green and
orange mark clear changes, as above. <b>ECE</b>: how far its confidence is from how often it is right; 0 % is honest,
and chance alone adds some, the more the fewer the questions.</p>"""
_POSTERIOR_READING = """
<p class="soft"><b>Average of draws</b>: MonteCLoRA learns a distribution over weights. Elsewhere on this page its mean
is the model; in these rows, which are not marked, the average over models drawn from it predicts. <b>Disagreement</b>:
how much those models differ, as mutual information of weights and answer in nats; 0 when all predict the same.</p>"""


def task_table(report: Report) -> str:
    """Every test's score before training and after it with each method."""
    methods = list(report["methods"].values())
    tasks = _tasks(methods)
    rows = []
    for task, before in tasks:
        name = f"<span>{escape(task)}<small>{escape(_about(before))}</small></span>"
        rows.append([name, fmt.score(before), *(_after(entry, task) for entry in methods)])
    rows += _forgetting_average(methods)
    counts = [before["n"] for _, before in tasks if before.get("n")]
    count = " to ".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else "No"
    headers = ["Test", "Before", *(title(entry["label"]) for entry in methods)]
    return (
        "<h2>Every test, before and after</h2>\n"
        + table(headers, rows)
        + f'\n<p class="soft">{count} examples per test. '
        "Green: clearly better than before. Orange: clearly worse. Plain: no clear change.</p>"
    )


def _tasks(methods: Sequence[Entry]) -> list[tuple[str, Mapping[str, Any]]]:
    """Every test of any method and its result before training: new before old, by name."""
    initial = {task: result for entry in reversed(methods) for task, result in entry["initial"].items()}
    return sorted(initial.items(), key=lambda item: (item[1].get("domain", ""), item[0]))


def _about(result: Mapping[str, Any]) -> str:
    """What a test measures, in a few words."""
    metric = {"bits_per_byte": "bits per byte"}.get(str(result.get("metric")), str(result.get("metric")))
    better = f"{'higher' if result.get('higher_is_better') else 'lower'} is better"
    what = "responses" if result.get("kind") == "response_bits_per_byte" else "text"
    parts = [f"{_kind(result)} {what}, {metric}, {better}"]
    if harness := result.get("harness"):
        samples = result.get("samples_per_problem")
        measured = f"pass@1 of {samples} programs" if samples else f"{harness.get('metric')}"
        shots = harness.get("num_fewshot")
        shown = "" if shots is None else f", {shots} examples in the prompt" if shots else ", no examples in the prompt"
        parts = [f"{_kind(result)}, {measured}, {better}", f"{harness.get('task')} of lm-eval{shown}"]
        parts += [f"{result[key]} {meaning}" for key, meaning in _FLAWS.items() if result.get(key)]
    if result.get("chance"):
        parts.append(f"guessing scores {fmt.percent(result['chance'], 0)}")
    return "; ".join(parts)


def _kind(result: Mapping[str, Any]) -> str:
    return "new" if result.get("domain") == "new" else "old"


def _after(entry: Entry, task: str) -> str:
    text = fmt.score(entry["final"].get(task))
    change = entry["learned_tasks"].get(task)
    return colored(text, change) if change else colored(text, entry["forgotten_tasks"].get(task), sign=-1)


def _forgetting_average(methods: Sequence[Entry]) -> list[list[str]]:
    """A row of the mean over the forgetting suite, with what was lost of it; none where nobody has it."""
    known = [entry["forgetting_average"] for entry in methods if entry["forgetting_average"]]
    if not known:
        return []
    cells = []
    for average in [entry["forgetting_average"] for entry in methods]:
        if not average or average["tasks"] != known[0]["tasks"]:
            cells.append(fmt.UNKNOWN)
            continue
        lost = average["forgotten"]
        ends = [fmt.signed(end, lost["unit"]).removesuffix(" points") for end in interval(lost)]
        amount = colored(fmt.percent(average["after"]), lost, sign=-1)
        cells.append(
            f"<span>{amount}<small>lost {fmt.signed(lost['value'], lost['unit'])}</small>"
            f"<small>[{', '.join(ends)}]</small></span>"
        )
    name = f"<span>Forgetting average<small>mean accuracy of {escape(', '.join(known[0]['tasks']))}</small></span>"
    return [[name, fmt.percent(known[0]["before"]), *cells]]


def programs(report: Report) -> str:
    """A table for each test whose answers are programs: pass@k, and how many programs differ; "" without one."""
    methods = list(report["methods"].values())
    tasks = [(task, result) for task, result in _tasks(methods) if result.get("pass_at_k")]
    if not tasks:
        return ""
    return (
        "<h2>Programs that pass</h2>\n"
        + "\n".join(_programs_table(methods, task, before) for task, before in tasks)
        + _PROGRAMS_READING
    )


def _programs_table(methods: Sequence[Entry], task: str, before: Mapping[str, Any]) -> str:
    models = [("Before", before), *((title(entry["label"]), entry["final"].get(task, {})) for entry in methods)]
    ks = sorted({int(k) for _, result in models for k in result.get("pass_at_k") or {}})
    rows = []
    for name, result in models:
        passing, unique = result.get("pass_at_k") or {}, result.get("unique") or {}
        different = [fmt.UNKNOWN if unique.get(key) is None else f"{unique[key]:.1f}" for key in _UNIQUE]
        rows.append([name, *(fmt.percent(passing.get(str(k))) for k in ks), *different])
    headers = ["Model", *(f"pass@{k}" for k in ks), *_UNIQUE.values()]
    samples = before.get("samples_per_problem", "unknown")
    about = f"{_kind(before)}, {before.get('n', 'unknown')} problems, {samples} programs for each"
    return f"<h3>{escape(task)} <small>{about}</small></h3>\n" + table(headers, rows)


def calibration(report: Report) -> str:
    """A table for each task of choices: how good the model's probabilities are; "" where that was not measured."""
    methods = list(report["methods"].values())
    tasks = [
        (task, before)
        for task, before in _tasks(methods)
        if any(entry["final"].get(task, {}).get("ece") is not None for entry in methods)
    ]
    if not tasks:
        return ""
    drawn = any(_posterior(entry, task) for entry in methods for task, _ in tasks)
    return (
        "<h2>Can the model's confidence be trusted?</h2>\n"
        + "\n".join(_domain_calibration(methods, tasks, domain, drawn) for domain in ("new", "old"))
        + _CALIBRATION_READING
        + (_POSTERIOR_READING if drawn else "")
    )


def _domain_calibration(
    methods: Sequence[Entry], tasks: Sequence[tuple[str, Mapping[str, Any]]], domain: str, drawn: bool
) -> str:
    """The tables of a domain's tests; of several, the means are shown and the tests can be unfolded."""
    of_domain = [(task, before) for task, before in tasks if _kind(before) == domain]
    singles = "\n".join(_calibration_table(methods, task, before, drawn) for task, before in of_domain)
    means = _mean_calibration(methods, dict(of_domain), domain)
    return f"{means}\n<details><summary>Each test</summary>{singles}</details>" if means else singles


def _mean_calibration(methods: Sequence[Entry], tasks: Mapping[str, Mapping[str, Any]], domain: str) -> str:
    """Means over a domain's tests; "" where it has a single one."""
    names = calibrated(tasks, domain)
    if len(names) < 2:
        return ""
    models = [("Before", methods[0]["calibration"]["initial"])]
    models += [(title(entry["label"]), entry["calibration"]["final"]) for entry in methods]
    rows = [[name, fmt.nats(means[domain]["nll"]), fmt.percent(means[domain]["ece"])] for name, means in models]
    about = f"<small>means over {escape(', '.join(names))}</small>"
    return f"<h3>{'New' if domain == 'new' else 'Old'} text {about}</h3>\n" + table(["Model", "NLL", "ECE"], rows)


def _calibration_table(methods: Sequence[Entry], task: str, before: Mapping[str, Any], drawn: bool) -> str:
    rows = [["Before", fmt.score(before), fmt.nats(before.get("nll")), fmt.percent(before.get("ece")), ""]]
    for entry in methods:
        after, name = entry["final"].get(task, {}), title(entry["label"])
        nll = colored(fmt.nats(after.get("nll")), entry["nll_tasks"].get(task))
        rows.append([name, _after(entry, task), nll, fmt.percent(after.get("ece")), ""])
        if mixture := _posterior(entry, task):
            name = f"<span>{name}<small>average of {mixture['samples']} draws</small></span>"
            score, nll = fmt.percent(mixture.get("score")), fmt.nats(mixture.get("nll"))
            rows.append(
                [name, score, nll, fmt.percent(mixture.get("ece")), fmt.nats(mixture.get("mutual_information"))]
            )
    headers = ["Model", "Accuracy", "NLL", "ECE", "Disagreement"][: 5 if drawn else 4]
    guessing = f"; guessing has NLL {fmt.nats(-math.log(before['chance']))}" if before.get("chance") else ""
    return (
        f"<h3>{escape(task)} <small>{_kind(before)} text, {before.get('n', 'unknown')} questions{guessing}</small></h3>\n"
        + table(headers, [row[: len(headers)] for row in rows])
    )


def _posterior(entry: Entry, task: str) -> Mapping[str, Any] | None:
    posterior: Mapping[str, Any] | None = entry["final"].get(task, {}).get("posterior")
    return posterior
