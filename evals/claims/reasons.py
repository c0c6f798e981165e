"""Why a verdict may be what it is at this scale, said by rule from the numbers; nothing here is an opinion."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from scipy import stats

from evals.claims.comparisons import EQUAL_LEARNING
from evals.claims.estimates import FAILS, HOLDS, LEVEL, UNDECIDED, Measured
from evals.claims.findings import ALPHA, Finding
from evals.claims.rank_growth import LEAST_RATIO
from evals.claims.result import Result
from evals.claims.roles import setting
from evals.claims.selection import Choice
from evals.claims.study import Panel
from evals.claims.wording import number_of
from evals.formatting import MINUS, percent


def reasons(result: Result, findings: Sequence[Finding]) -> list[str]:
    """Sentences about findings that differ in rank alone."""
    panel = next(each for each in result.study.panels if each.name == findings[0].panel)
    choices = {choice.arm.label: choice for choice in result.choices[panel.name]}
    found = [*_width(findings), *_size(findings), *_rank_limits(findings), *_edges(findings, choices)]
    found += [*_training_loss(findings), *_diverged(findings), *_trained(panel, findings)]
    found += [*_few(findings), *_beside_full(findings), *_disagreements(findings)]
    return [*found, *_levels(findings), *_seeds_alone(findings)]


def _width(findings: Sequence[Finding]) -> Iterator[str]:
    if single := [f for f in findings if f.measured.seeds < 2]:
        yield f"{_named(single)}one seed, so how much the seed matters is not known and no verdict is given"
    wide = [f for f in findings if f.measured.verdict == UNDECIDED and f.measured.seeds > 1 and f.measured.has_interval]
    shares = [share for f in wide if math.isfinite(share := _way_to_end(f.measured))]
    if shares:
        yield f"{_named(wide)}{_threshold(wide[0])} lies {_range(shares, percent=True)} of the way from the estimate to the end of its interval"
    # Of a ratio the standard error is that of its logarithm, and over learning rates.
    if by_t := [f for f in wide if f.unit != "ratio" and _is_by_t(f.measured)]:
        times = max(float(stats.t.ppf((1 + LEVEL) / 2, f.measured.degrees)) for f in by_t)
        seeds = min(f.measured.seeds for f in by_t)
        yield f"{_named(by_t)}with {seeds} seeds the interval is up to {times:.1f} standard errors to each side"


def _way_to_end(measured: Measured) -> float:
    """Where the threshold is between the estimate (0) and the end of its interval on that side (1); nan where both are one."""
    end = measured.low if measured.value > measured.threshold else measured.high
    return (measured.value - measured.threshold) / (measured.value - end) if measured.value != end else math.nan


def _is_by_t(measured: Measured) -> bool:
    """Whether both ends of the interval that decides are those of Student's t."""
    return (measured.low, measured.high) == (measured.t_low, measured.t_high)


def _size(findings: Sequence[Finding]) -> Iterator[str]:
    parts = [
        abs(f.measured.value) / abs(of)
        for f in findings
        if (of := f.details.get("of_reference"))
        and f.what in ("learned", "forgotten")
        and math.isfinite(f.measured.value)
    ]
    if parts:
        verb = {"learned": "learned", "forgotten": "forgot"}[findings[0].what]
        yield f"the difference is {_range(parts, percent=True)} of what {findings[0].against} {verb}"
    if opposite := [f for f in findings if f.measured.verdict == FAILS and f.what in ("learned", "forgotten")]:
        yield f"{_named(opposite)}the difference is on the other side, and its interval, too"


def _rank_limits(findings: Sequence[Finding]) -> Iterator[str]:
    limited = [f for f in findings if is_limited(f)]
    if limited:
        full = limited[0].details["full_rank"]
        yield (
            f"{_named(limited)}it cannot hold here: the matrices have rank {full:.0f} at most, so the ratio is "
            f"{_range([f.details['most_possible'] for f in limited])} at most"
        )
    if shares := [f.details["share"] for f in findings if "share" in f.details]:
        yield f"the change has {percent(shares[0], 0)} of the rank that it could have"


def _edges(findings: Sequence[Finding], choices: dict[str, Choice]) -> Iterator[str]:
    used: dict[tuple[str, float], None] = {}
    for key, labels in (("lr", [f.method for f in findings]), ("lr_reference", [f.reference for f in findings])):
        for f, label in zip(findings, labels, strict=True):
            rates = f.details.get(key, []) if f.details.get("is_best_lr", True) else []
            used |= {(label, lr): None for lr in (rates if isinstance(rates, list) else [rates]) if label in choices}
    is_least = findings[0].what == EQUAL_LEARNING
    named = "the learning rate at equal learning" if is_least else "the best learning rate"
    for edge in ("lowest", "highest", "only"):
        if at := [label for label, lr in used if choices[label].edge(lr) == edge]:
            what = "the only one" if edge == "only" else f"the {edge}"
            yield f"{named} of {_listed(at)} is {what} that was tried: a better one may lie beyond"
    for label, lr in used:
        for side, near, why in choices[label].barred(lr):
            yield f"{named} of {label} is {lr:g}; the next {side} one, {near:g}, {why}"


def _training_loss(findings: Sequence[Finding]) -> Iterator[str]:
    losses = [(f, f.details.get("train_loss_of_method"), f.details.get("train_loss_of_reference")) for f in findings]
    parts = [
        f"{short(f)} {ours - theirs:+.3f}" for f, ours, theirs in losses if ours is not None and theirs is not None
    ]
    if findings[0].claim == 6 and parts:
        yield f"the training loss (with dropout on, in nats per token) differs by {_listed(parts)}".replace("-", MINUS)


def _diverged(findings: Sequence[Finding]) -> Iterator[str]:
    counts: dict[str, int] = {}
    for f in findings:
        counts |= {f.method: f.details.get("diverged", 0), f.reference: f.details.get("diverged_reference", 0)}
    if any(counts.values()):
        parts = [f"{n} of {label}" for label, n in counts.items() if n]
        yield f"diverged runs count as the worst score, a lower bound of their spread: {_listed(parts)}"


def _trained(panel: Panel, findings: Sequence[Finding]) -> Iterator[str]:
    if findings[0].claim not in (1, 2):
        return
    sizes = {run.arm.label: setting(run.record, "parameters.trainable") for run in panel.runs}
    pairs = [(f.method, sizes.get(f.method), sizes.get(f.reference)) for f in findings]
    shares = [f"{percent(ours / whole)} with {method}" for method, ours, whole in pairs if ours and whole]
    if shares:
        yield f"of the parameters that full finetuning trains, {_listed(shares)}"


def _few(findings: Sequence[Finding]) -> Iterator[str]:
    if points := [len(f.details["rates"]) for f in findings if "rates" in f.details]:
        seeds = min(f.details["seeds"] for f in findings)
        yield f"a spread over {min(points)} learning rates and {seeds} seeds is a rough one"


def _beside_full(findings: Sequence[Finding]) -> Iterator[str]:
    for f in {f.reference: f for f in findings if "beyond_full" in f.details}.values():
        beyond = f.details["beyond_full"]
        value, low, high = (number_of(beyond[key], f.unit) for key in ("value", "low", "high"))
        is_alike = beyond["low"] <= 0 <= beyond["high"]
        alike = (
            ": they can't be told apart, so this is no evidence beside that against full finetuning" if is_alike else ""
        )
        yield f"{f.reference} forgot {value} [{low}, {high}] more than full finetuning without it, each at its best rate{alike}"


def _disagreements(findings: Sequence[Finding]) -> Iterator[str]:
    if other := [f for f in findings if f.plain is not None and f.plain.verdict != f.measured.verdict]:
        is_least = findings[0].what == EQUAL_LEARNING
        otherwise = "with each method at the rate that learned most" if is_least else "without cross-fitting"
        yield f"{_named(other)}{otherwise} the verdict would be: {_listed(sorted({f.plain.verdict for f in other if f.plain}))}"


def _levels(findings: Sequence[Finding]) -> Iterator[str]:
    """Findings whose verdict is another where less was learned."""
    for f in findings:
        others: dict[str, list[str]] = {}
        for share, each in f.levels.items():
            if each.verdict != f.measured.verdict:
                others.setdefault(each.verdict, []).append(percent(share, 0))
        if others:
            parts = [f"{verdict} at {_listed(shares)} of it" for verdict, shares in others.items()]
            yield f"{_named([f])}the verdict depends on the level: {_listed(parts)}"


def _seeds_alone(findings: Sequence[Finding]) -> Iterator[str]:
    weak = [f for f in findings if f.measured.verdict != UNDECIDED and f.measured.p >= ALPHA]
    if weak:
        ps = [f"{f.measured.p:.3f}" for f in weak]
        seeds = max(f.measured.seeds for f in weak)
        yield f"{_named(weak)}decided by the interval, while p, which takes {seeds} seeds for all there is, is {_listed(ps)}"


def is_limited(finding: Finding) -> bool:
    """Whether the largest ratio of ranks that the matrices allow is below the claim's."""
    return bool(finding.details.get("most_possible", math.inf) < LEAST_RATIO)


def verdicts(findings: Sequence[Finding], verdict_of: Callable[[Finding], str] = lambda f: f.measured.verdict) -> str:
    """The verdict, or which rank has which."""
    by_verdict = {verdict: [f for f in findings if verdict_of(f) == verdict] for verdict in (HOLDS, FAILS, UNDECIDED)}
    known = {verdict: of for verdict, of in by_verdict.items() if of}
    if len(known) == 1:
        return f"**{next(iter(known))}**"
    return "; ".join(f"**{verdict}**: {_listed([short(f) for f in of])}" for verdict, of in known.items())


def short(finding: Finding) -> str:
    """What tells a finding from those of other ranks."""
    if not finding.rank:
        return finding.method
    _, bracket, variant = finding.method.partition(" (")
    return f"r{finding.rank}{bracket}{variant}"


def _named(findings: Sequence[Finding]) -> str:
    return f"{_listed([short(f) for f in findings])}: "


def _threshold(finding: Finding) -> str:
    return "zero" if finding.measured.threshold == 0 else f"{finding.measured.threshold:g}"


def _range(values: Sequence[float], *, percent: bool = False) -> str:
    ends = [f"{100 * value:.0f} %" if percent else f"{value:.2g}" for value in (min(values), max(values))]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _listed(parts: Sequence[str]) -> str:
    unique = list(dict.fromkeys(parts))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} and {unique[-1]}"
