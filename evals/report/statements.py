"""What the measurements allow one to say, in words, computed from the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evals.arithmetic.bootstrap import estimate_mean
from evals.arithmetic.forgetting import Estimate, contrast
from evals.errors import EvalError
from evals.formatting import signed
from evals.report.methods import FORGETTING_AVERAGE, Method, averaged, forgetting_suite

QUANTITIES = {"forgotten": "old", "learned": "new"}


def compare_methods(methods: Sequence[Method], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Every LoRA-type run against full finetuning, and every MonteCLoRA run against LoRA, paired per example.

    Where there are several runs of the reference's kind, the first by name is the reference.
    """
    statements = []
    for method in methods:
        for kind in {"lora": ["none"], "monteclora": ["none", "lora"]}.get(method.run.adapter or "", []):
            reference = next((m for m in methods if m.run.adapter == kind), None)
            if reference is None:
                continue
            for metric in metrics:
                statements += [s for q in QUANTITIES if (s := compare(method, reference, q, metric))]
    return statements


def compare(method: Method, reference: Method, quantity: str, metric: str) -> dict[str, Any] | None:
    """One comparison: the paired difference method - reference of what was learned or forgotten, and what follows.

    Returns:
        method, reference (run names), quantity, metric, tasks (the difference is the mean over them), verdict (less,
        more, undecided: the 95 % bootstrap interval includes 0; unknown: no comparison possible), difference (or None),
        text. None when the two were not scored on such a task in common.
    """
    domain = QUANTITIES[quantity]
    tasks = averaged(method.final, [t for t in method.changes if t in reference.changes], domain, metric)
    if not tasks:
        return None
    statement: dict[str, Any] = {
        "method": method.name,
        "reference": reference.name,
        "quantity": quantity,
        "metric": metric,
        "tasks": tasks,
    }
    try:
        difference = estimate_mean([contrast(method.changes[t], reference.changes[t]) for t in tasks])
    except EvalError as error:
        text = f"{method.label} and {reference.label} cannot be compared: {error}"
        return statement | {"verdict": "unknown", "difference": None, "text": text}
    if quantity == "forgotten":
        difference = difference.negated()
    verdict = _verdict(difference)
    accuracy = f"the {FORGETTING_AVERAGE}" if forgetting_suite(method.final, tasks) == tasks else "accuracy"
    text = _sentence(method.label, reference.label, quantity, verdict, difference, accuracy)
    return statement | {"verdict": verdict, "difference": difference.as_dict(), "text": text}


def headline(methods: Sequence[Method], statements: Sequence[dict[str, Any]], metric: str) -> str:
    """One sentence for somebody who reads nothing else."""
    labels = {m.name: m.label for m in methods}
    full = next((m.name for m in methods if m.run.adapter == "none"), None)
    groups: dict[tuple[str, str], list[str]] = {}
    for name in labels:
        verdicts = {
            s["quantity"]: s["verdict"]
            for s in statements
            if s["method"] == name and s["reference"] == full and s["metric"] == metric
        }
        if set(verdicts) == set(QUANTITIES) and "unknown" not in verdicts.values():
            groups.setdefault((verdicts["forgotten"], verdicts["learned"]), []).append(labels[name])
    if full is None or not groups:
        return _plain_headline(methods, metric)
    clauses = [f"{_join(names)} {_clause(*verdicts)}" for verdicts, names in groups.items()]
    return f"Compared with {labels[full]}, {'; '.join(clauses)}."


def _verdict(difference: Estimate) -> str:
    low, high = difference.interval
    if high < 0:
        return "less"
    return "more" if low > 0 else "undecided"


def _sentence(label: str, reference: str, quantity: str, verdict: str, difference: Estimate, accuracy: str) -> str:
    """`accuracy`: what an accuracy is called."""
    verb = "forgot" if quantity == "forgotten" else "learned"
    opening = {
        ("forgotten", "less"): f"{label} forgot less than {reference}",
        ("forgotten", "more"): f"{label} did NOT forget less than {reference}, it forgot more",
        ("learned", "less"): f"{label} learned less than {reference}",
        ("learned", "more"): f"{label} learned more than {reference}",
    }.get((quantity, verdict), f"Undecided whether {label} {verb} less or more than {reference}")
    suffix = "" if difference.unit == "accuracy" else f" {difference.unit}"
    number = f"difference {signed(difference.value, difference.unit)}{suffix}"
    if difference.stderr is None:
        return f"{opening}: {number} on a single example, which has no interval."
    low, high = (signed(end, difference.unit) for end in difference.interval)
    interval = f"95 % interval [{low}, {high}]"
    ending = ", which includes 0" if verdict == "undecided" else ""
    kind = f" in {accuracy}" if difference.unit == "accuracy" else ""
    return f"{opening}{kind}: {number}, {interval}{ending}."


def _clause(forgot: str, learned: str) -> str:
    phrases = {"less": "less", "more": "more", "undecided": "about as much (no clear difference)"}
    if forgot == learned:
        return f"learned {phrases[learned]} and forgot {phrases[forgot]}"
    good = {"forgot": forgot == "less", "learned": learned == "more"}
    word = "and" if good["forgot"] == good["learned"] or "undecided" in (forgot, learned) else "but"
    return f"forgot {phrases[forgot]} {word} learned {phrases[learned]}"


def _plain_headline(methods: Sequence[Method], metric: str) -> str:
    parts = []
    for method in methods:
        new, old = method.effect("new", metric), method.effect("old", metric)
        if new is not None and old is not None:
            parts.append(
                f"{method.label} learned {signed(new.value, new.unit)} and forgot {signed(old.value, old.unit)}"
            )
    if not parts:
        return "What was measured does not show both learning and forgetting."
    unit = " (accuracy)" if metric == "accuracy" else " (bits per byte)"
    return f"{'; '.join(parts)}{unit}."


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
