"""The report's page: one HTML file without references to anything outside, from the report's dict alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from evals import formatting as fmt
from evals.report import plots
from evals.report.methods import FORGETTING_AVERAGE
from evals.report.page_parts import capital, effect, table, text_list, title
from evals.report.page_style import CSS
from evals.report.page_tests import calibration, programs, task_table
from evals.report.summary import DOMAINS, relative_change

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


def render(report: Report) -> str:
    """The whole page as HTML text."""
    sections = (
        _opening(report),
        _result(report),
        _methods_table(report),
        _statements(report),
        task_table(report),
        programs(report),
        calibration(report),
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
        f"{capital(entry['label'])} is not finished ({entry['status']})."
        for entry in methods
        if entry["status"] != "done"
    ]
    if report["same_base"] is False:
        notices.append("The runs did not start from the same base weights, so they cannot be compared fairly.")
    if report["same_batches"] is False:
        notices.append("The runs did not train on the same batches.")
    if not _same_tests(methods):
        notices.append("The runs were not scored on the same tests: a mean over tests is over each run's own.")
    if len({entry["tokens_seen"] for entry in methods}) > 1:
        notices.append("The runs have read different amounts of text.")
    return (
        '<p class="eyebrow">What a language model learned, and what it forgot</p>\n'
        f"<h1>{escape(report['headline'])}</h1>\n"
        f'<p class="lead">{escape(model)} was taught something new (<b>{new}</b>), {escape(ways)}. '
        f"{_question(report)} (<b>{old}</b>)?</p>"
        + "".join(f'\n<p class="notice">{escape(notice)}</p>' for notice in notices)
    )


def _same_tests(methods: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all methods' means are over the same tests."""
    means = [[set(tasks) for domain in DOMAINS.values() for tasks in e[f"{domain}_means"].values()] for e in methods]
    return all(each == means[0] for each in means)


def _question(report: Report) -> str:
    if report["metric"] == "accuracy":
        return (
            "Then it was asked questions it had never seen: how much better does it answer the new kind, and how much "
            "worse the kind it could already answer"
        )
    return (
        "Then it was tested on text it had never seen: how much better does it predict the new kind, and how much "
        "worse the kind it already knew"
    )


def _result(report: Report) -> str:
    figure = plots.learning_forgetting(report)
    if figure is None:
        return ""
    svg = plots.inline_svg(figure, "Learned against forgotten, one point per method")
    color = plots.colors(report["methods"])
    items = "".join(
        f'<li style="border-color:{color[name]}"><b class="name">{title(entry["label"])}</b>{_in_words(entry)}</li>'
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
        name = title(entry["label"]) + (f"<small>rank {escape(str(rank))}</small>" if rank is not None else "")
        row = [f"<span>{name}</span>", _trainable(entry), effect(entry["learned"]), effect(entry["forgotten"])]
        row += [effect(entry["learned_accuracy"]), effect(entry["forgotten_accuracy"])] if accuracy else []
        rows.append([*row, fmt.duration(entry["seconds"])])
    unit = "accuracy" if report["metric"] == "accuracy" else "bits per byte"
    return (
        "<h2>The methods</h2>\n"
        + table([*headers, "Training time"], rows)
        + f'\n<p class="soft">Learned and forgotten: {unit} '
        "gained on new text and lost on old text, with 95 % intervals. Minus = the opposite happened."
        f"{_forgetting_average(report)}</p>"
    )


def _forgetting_average(report: Report) -> str:
    if not any(entry["forgetting_average"] for entry in report["methods"].values()):
        return ""
    return f" Accuracy is forgotten in the {FORGETTING_AVERAGE}; other old tests do not count in it."


def _statements(report: Report) -> str:
    if not report["statements"]:
        return ""
    main = [s["text"] for s in report["statements"] if s["metric"] == report["metric"]]
    rest = [s["text"] for s in report["statements"] if s["metric"] != report["metric"]]
    more = f"\n<details><summary>The same in accuracy</summary>{text_list(rest)}</details>" if rest else ""
    return (
        '<h2>What can be said</h2>\n<p class="soft">Models are compared on every test example; the intervals, from a bootstrap, are about '
        "which examples these are. Each model is one run: another seed or learning rate may change more than they show, and a "
        f"difference can be certain and too small to matter.</p>\n{text_list(main)}{more}"
    )


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
    entries = [(capital(entry["label"]), entry) for entry in methods]
    tests = [f"{label}: {task}: {reason}" for label, e in entries for task, reason in e["tasks_left_out"].items()]
    damaged = [f"{label}: {message}" for label, e in entries for message in e["damaged"]]
    lists = {
        "Runs left out of this page:": left_out,
        "Tests left out of what was learned and forgotten:": tests,
        "Files of results that could not be used:": damaged,
    }
    return f"<h2>How it was done</h2>\n<dl>{listed}</dl>" + "".join(
        f"\n<p>{heading}</p>{text_list(texts)}" for heading, texts in lists.items() if texts
    )


def _subject(report: Report, domain: str) -> str:
    """The domain by the names of its tasks in the report's main metric."""
    key = f"{DOMAINS[domain]}_means"
    names = {task for entry in report["methods"].values() for task in entry[key][report["metric"]]}
    return escape(", ".join(sorted(names))) or "nothing"


def _trainable(entry: Mapping[str, Any]) -> str:
    part, _, share = fmt.trainable(entry).partition(" (")
    return f"<span>{part}<small>{share.removesuffix(')')}</small></span>" if share else part


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
