"""The report's page: one HTML file without references to anything outside, from the report's dict alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from evals import formatting as fmt
from evals.report import plots
from evals.report.page_style import CSS
from evals.report.summary import relative_change

Report = Mapping[str, Any]

_READING = """<h2>How to read this</h2>
<p><b>Bits per byte</b> says how well a model predicts text: how many bits it would need to write down one byte of
it. A model that predicts well needs few. <b>Accuracy</b>, where shown, is how often the model picks the true
continuation of a passage among several.</p>
<p><b>Learned</b> is the improvement on the new kind of text, <b>forgotten</b> the loss on the old kind. Both compare
the model after training with the same model before, example by example. The <b>95 % interval</b> covers the chance in
which examples were drawn, not other seeds or settings: a single run per method shows this run, not the method in
general.</p>
<p><b>Full finetuning</b> changes every parameter. <b>LoRA</b> keeps them and trains a small addition to them.
<b>MonteCLoRA</b> is LoRA whose addition is random during training, around a learned mean.</p>"""
_CALIBRATION_READING = """
<p class="soft"><b>NLL</b>: how unlikely the model found the true continuation, in nats; lower is better. Green and
orange mark clear changes, as above. <b>ECE</b>: how far its confidence is from how often it is right; 0 % is honest,
and chance alone adds some, the more the fewer the questions.</p>"""
_POSTERIOR_READING = """
<p class="soft"><b>Average of draws</b>: MonteCLoRA learns a distribution over weights. Elsewhere on this page its mean
is the model; in these rows, which are not marked, the average over models drawn from it predicts. <b>Disagreement</b>:
how much those models differ, as mutual information of weights and answer in nats; 0 when all predict the same.</p>"""


def render(report: Report) -> str:
    """The whole page as HTML text."""
    sections = (
        _opening(report),
        _result(report),
        _methods_table(report),
        _statements(report),
        _task_table(report),
        _calibration(report),
        _curves(report),
        _setup(report),
        _READING,
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Learned and forgotten</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def _opening(report: Report) -> str:
    methods = list(report["methods"].values())
    size = fmt.count((report["base"] or methods[0]).get("total_parameters"))
    model = "A pretrained language model" + ("" if size == fmt.UNKNOWN else f" of {size} parameters")
    ways = f"in {len(methods)} ways" if len(methods) > 1 else f"with {methods[0]['label']}"
    new, old = (_subject(report, domain) for domain in ("new", "old"))
    notices = [
        f"{_capital(entry['label'])} is not finished ({entry['status']})."
        for entry in methods
        if entry["status"] != "done"
    ]
    if report["same_base"] is False:
        notices.append("The runs did not start from the same base weights, so they cannot be compared fairly.")
    if report["same_batches"] is False:
        notices.append("The runs did not train on the same batches.")
    if len({entry["tokens_seen"] for entry in methods}) > 1:
        notices.append("The runs have read different amounts of text.")
    return (
        '<p class="eyebrow">What a language model learned, and what it forgot</p>\n'
        f"<h1>{escape(report['headline'])}</h1>\n"
        f'<p class="lead">{escape(model)} was taught something new (<b>{new}</b>), {escape(ways)}. '
        "Then it was tested on text it had never seen: how much better does it predict the new kind, "
        f"and how much worse the kind it already knew (<b>{old}</b>)?</p>"
        + "".join(f'\n<p class="notice">{escape(notice)}</p>' for notice in notices)
    )


def _result(report: Report) -> str:
    figure = plots.learning_forgetting(report)
    if figure is None:
        return ""
    svg = plots.inline_svg(figure, "Learned against forgotten, one point per method")
    color = plots.colors(report["methods"])
    items = "".join(
        f'<li style="border-color:{color[name]}"><b class="name">{_title(entry["label"])}</b>{_in_words(entry)}</li>'
        for name, entry in report["methods"].items()
    )
    return (
        f'<div class="beside"><figure>{svg}<figcaption>Up is good: more learned. Left is good: less forgotten. '
        f"The bars are 95 % intervals.</figcaption></figure>\n<ul>{items}</ul></div>"
    )


def _in_words(entry: Mapping[str, Any]) -> str:
    """What happened to one model, for somebody who does not know the unit."""
    learned, forgotten = relative_change(entry, "learned"), relative_change(entry, "forgotten")
    if learned is None or forgotten is None:
        return f"learned {fmt.effect(entry['learned'])}, forgot {fmt.effect(entry['forgotten'])}"
    new = "fewer" if learned >= 0 else "more"
    old = "more" if forgotten >= 0 else "fewer"
    return (
        f"needs {fmt.percent(abs(learned))} {new} bits to write new text, and {fmt.percent(abs(forgotten))} {old} "
        "to write old text"
    )


def _methods_table(report: Report) -> str:
    accuracy = any(e["learned_accuracy"] or e["forgotten_accuracy"] for e in report["methods"].values())
    accuracy = accuracy and any(
        (e["learned"] or e["forgotten"] or {}).get("unit") != "accuracy" for e in report["methods"].values()
    )
    headers = ["Method", "Trained parameters", "Learned", "Forgotten"]
    headers += ["Learned, accuracy", "Forgotten, accuracy"] if accuracy else []
    rows = []
    for entry in report["methods"].values():
        rank = (entry["adapter"] or {}).get("rank") if (entry["adapter"] or {}).get("kind") != "none" else None
        name = _title(entry["label"]) + (f"<small>rank {escape(str(rank))}</small>" if rank is not None else "")
        row = [f"<span>{name}</span>", _trainable(entry), _effect(entry["learned"]), _effect(entry["forgotten"])]
        row += [_effect(entry["learned_accuracy"]), _effect(entry["forgotten_accuracy"])] if accuracy else []
        rows.append([*row, fmt.duration(entry["seconds"])])
    unit = "accuracy" if report["metric"] == "accuracy" else "bits per byte"
    return (
        "<h2>The methods</h2>\n"
        + _table([*headers, "Training time"], rows)
        + f'\n<p class="soft">Learned and forgotten: {unit} '
        "gained on new text and lost on old text, with 95 % intervals. Minus = the opposite happened.</p>"
    )


def _statements(report: Report) -> str:
    if not report["statements"]:
        return ""
    main = [s["text"] for s in report["statements"] if s["metric"] == report["metric"]]
    rest = [s["text"] for s in report["statements"] if s["metric"] != report["metric"]]
    more = f"\n<details><summary>The same in accuracy</summary>{_list(rest)}</details>" if rest else ""
    return (
        f'<h2>What can be said</h2>\n{_list(main)}{more}\n<p class="soft">Each model is compared with '
        "the other on every test example, so the intervals are those of the difference.</p>"
    )


def _task_table(report: Report) -> str:
    methods = list(report["methods"].values())
    rows = []
    for task, before in sorted(methods[0]["initial"].items(), key=lambda item: (item[1].get("domain", ""), item[0])):
        kind = "new" if before.get("domain") == "new" else "old"
        metric = {"bits_per_byte": "bits per byte", "accuracy": "accuracy"}.get(
            before.get("metric"), before.get("metric")
        )
        better = "higher" if before.get("higher_is_better") else "lower"
        chance = "" if before.get("chance") is None else f"; guessing scores {fmt.percent(before['chance'], 0)}"
        name = (
            f"<span>{escape(task)}<small>{kind} text, {escape(str(metric))}, {better} is better{chance}</small></span>"
        )
        rows.append([name, fmt.score(before), *(_after(entry, task) for entry in methods)])
    counts = [t["n"] for t in methods[0]["initial"].values() if t.get("n")]
    count = " to ".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else "No"
    headers = ["Test", "Before", *(_title(entry["label"]) for entry in methods)]
    return (
        "<h2>Every test, before and after</h2>\n"
        + _table(headers, rows)
        + f'\n<p class="soft">{count} examples per test. '
        "Green: clearly better than before. Orange: clearly worse. Plain: no clear change.</p>"
    )


def _after(entry: Mapping[str, Any], task: str) -> str:
    text = fmt.score(entry["final"].get(task))
    change = entry["learned_tasks"].get(task)
    return _colored(text, change) if change else _colored(text, entry["forgotten_tasks"].get(task), sign=-1)


def _colored(text: str, change: Mapping[str, Any] | None, sign: int = 1) -> str:
    """Green for a clear improvement, orange for a clear loss: the 95 % interval of sign * change excludes 0."""
    if not change or change["low"] is None or change["low"] <= 0 <= change["high"]:
        return text
    return f'<span class="{"good" if sign * change["value"] > 0 else "bad"}">{text}</span>'


def _calibration(report: Report) -> str:
    """A table for each task of choices: how good the model's probabilities are; "" where that was not measured."""
    methods = list(report["methods"].values())
    tasks = [
        (task, before)
        for task, before in sorted(methods[0]["initial"].items(), key=lambda item: (item[1].get("domain", ""), item[0]))
        if any(entry["final"].get(task, {}).get("ece") is not None for entry in methods)
    ]
    if not tasks:
        return ""
    drawn = any(_posterior(entry, task) for entry in methods for task, _ in tasks)
    return (
        "<h2>Can the model's confidence be trusted?</h2>\n"
        + "\n".join(_calibration_table(methods, task, before, drawn) for task, before in tasks)
        + _CALIBRATION_READING
        + (_POSTERIOR_READING if drawn else "")
    )


def _calibration_table(methods: Sequence[Mapping[str, Any]], task: str, before: Mapping[str, Any], drawn: bool) -> str:
    rows = [["Before", fmt.score(before), fmt.nats(before.get("nll")), fmt.percent(before.get("ece")), ""]]
    for entry in methods:
        after, name = entry["final"].get(task, {}), _title(entry["label"])
        nll = _colored(fmt.nats(after.get("nll")), entry["nll_tasks"].get(task))
        rows.append([name, _after(entry, task), nll, fmt.percent(after.get("ece")), ""])
        if mixture := _posterior(entry, task):
            name = f"<span>{name}<small>average of {mixture['samples']} draws</small></span>"
            score, nll = fmt.percent(mixture.get("score")), fmt.nats(mixture.get("nll"))
            rows.append(
                [name, score, nll, fmt.percent(mixture.get("ece")), fmt.nats(mixture.get("mutual_information"))]
            )
    headers = ["Model", "Accuracy", "NLL", "ECE", "Disagreement"][: 5 if drawn else 4]
    kind = "new" if before.get("domain") == "new" else "old"
    guessing = f"; guessing has NLL {fmt.nats(-math.log(before['chance']))}" if before.get("chance") else ""
    return (
        f"<h3>{escape(task)} <small>{kind} text, {before.get('n', 'unknown')} questions{guessing}</small></h3>\n"
        + _table(headers, [row[: len(headers)] for row in rows])
    )


def _posterior(entry: Mapping[str, Any], task: str) -> Mapping[str, Any] | None:
    posterior: Mapping[str, Any] | None = entry["final"].get(task, {}).get("posterior")
    return posterior


def _curves(report: Report) -> str:
    color = plots.colors(report["methods"])
    curves = [(entry["label"], color[name], entry["loss_curve"]) for name, entry in report["methods"].items()]
    base = report["base"]
    figures = [
        ("Learning the new text, from the base model.", plots.loss_curves(curves)),
        (
            "Before that: the base model, trained from scratch.",
            base and plots.loss_curves([(base["label"], plots.INK, base["loss_curve"])]),
        ),
    ]
    html = [
        f"<figure>{plots.inline_svg(figure, caption)}<figcaption>{caption}</figcaption></figure>"
        for caption, figure in figures
        if figure
    ]
    return f'<h2>Training</h2>\n<div class="two">{"".join(html)}</div>' if html else ""


def _setup(report: Report) -> str:
    methods = list(report["methods"].values())
    versions = methods[0]["versions"]
    facts = [
        ("Model", f"{fmt.count((report['base'] or methods[0]).get('total_parameters'))} parameters"),
        ("Training text", f"{_each(methods, lambda e: fmt.count(e['tokens_seen']))} tokens"),
        ("Steps", _each(methods, lambda e: str(e["step"] or fmt.UNKNOWN))),
        ("Same training batches", _same_batches(report)),
        ("Same starting weights", _yes_no(report["same_base"], "yes, verified by hash")),
        ("Same test questions", _yes_no(report["same_questions"], "yes, verified by hash")),
        ("Processes", _each(methods, lambda e: str(e["world_size"] or fmt.UNKNOWN))),
        ("Seed", _each(methods, lambda e: fmt.UNKNOWN if e["seed"] is None else str(e["seed"]))),
        ("Software", ", ".join(f"{name} {version}" for name, version in versions.items() if version) or fmt.UNKNOWN),
    ]
    if report["base"]:
        base = report["base"]
        facts.insert(1, ("Base model", f"{fmt.count(base['tokens_seen'])} tokens in {fmt.duration(base['seconds'])}"))
    listed = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    left_out = [f"{name}: {reason}" for name, reason in report["left_out"].items()]
    return f"<h2>How it was done</h2>\n<dl>{listed}</dl>" + (
        f"\n<p>Runs left out of this page:</p>{_list(left_out)}" if left_out else ""
    )


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; on a phone each row becomes a card, whose cells are named by `data-label`."""
    head = "".join(f"<th>{header}</th>" for header in headers)
    body = "".join(
        "<tr>"
        + "".join(f'<td data-label="{header}">{cell}</td>' for header, cell in zip(headers, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _subject(report: Report, domain: str) -> str:
    """The domain by the names of its tasks in the report's main metric."""
    wanted = (domain, report["metric"])
    results = [item for entry in report["methods"].values() for item in entry["initial"].items()]
    names = {task for task, result in results if (result.get("domain"), result.get("metric")) == wanted}
    return escape(", ".join(sorted(names))) or "nothing"


def _list(texts: Sequence[str]) -> str:
    return '<ul class="statements">' + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _trainable(entry: Mapping[str, Any]) -> str:
    part, _, share = fmt.trainable(entry).partition(" (")
    return f"<span>{part}<small>{share.removesuffix(')')}</small></span>" if share else part


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _title(label: str) -> str:
    return escape(_capital(label))


def _effect(estimate: Mapping[str, Any] | None) -> str:
    """A difference, and below it the half-width of its interval."""
    value, _, spread = fmt.effect(estimate).partition(" \N{PLUS-MINUS SIGN} ")
    return f"<span>{value}<small>\N{PLUS-MINUS SIGN} {spread}</small></span>" if spread else value


def _same_batches(report: Report) -> str:
    step = report["same_batches_step"]
    return _yes_no(report["same_batches"], f"yes, in the same order: verified by hash up to step {step}")


def _yes_no(value: bool | None, yes: str) -> str:
    return {True: yes, False: "NO", None: "not recorded"}[value]


def _each(methods: Sequence[Mapping[str, Any]], text: Any) -> str:
    """One text where all methods agree, else every method's."""
    texts = [text(entry) for entry in methods]
    return (
        texts[0]
        if len(set(texts)) == 1
        else ", ".join(f"{t} ({e['label']})" for t, e in zip(texts, methods, strict=True))
    )
