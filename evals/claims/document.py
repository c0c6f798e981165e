"""The document in Markdown: what was run, the claims in one table, a section for each, every cell, how to repeat it.

What a person writes between `<!-- notes: NAME, for DIGEST -->` and `<!-- end of notes -->` stays when the document is written
again. The digest is that of the verdicts at the time, so that a note about others is known; without it, the present ones count.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from evals.claims.comparisons import optimism
from evals.claims.estimates import DRAWS, UNDECIDED
from evals.claims.figures import Drawn
from evals.claims.findings import ALPHA, Answer, Finding
from evals.claims.reasons import is_limited, reasons, short, verdicts
from evals.claims.result import Result
from evals.claims.roles import Arm, setting
from evals.claims.selection import Choice
from evals.claims.study import FORGOTTEN, LEARNED, LEARNED_ACCURACY, Panel, StudyRun
from evals.claims.wording import interval, number_of
from evals.errors import EvalError
from evals.formatting import UNKNOWN, count, duration, percent

WRITTEN_BY = "<!-- Written by `python -m evals claims`; only what is between notes and end of notes stays. -->"
_NOTES = re.compile(r"<!-- notes: ([a-z0-9 ]+)(?:, for ([0-9a-f]+))? -->\n(.*?)<!-- end of notes -->", re.DOTALL)
_BY_RANK = re.compile(r"r\d")
"""A sentence that begins with a rank keeps its small letter."""
_BEGIN = re.compile(r"<!-- notes: [a-z0-9 ,]+ -->")


class Note(NamedTuple):
    """What a person has written, and the digest of the verdicts that it was written for; None where the marker has none."""

    text: str
    written_for: str | None


def notes_of(text: str, name: str) -> dict[str, Note]:
    """Section -> what a person has written there, in an earlier version of the document.

    Args:
        text: of the document; empty where there is none yet.
        name: of its file.

    Raises:
        EvalError: another file's text, or markers of notes that are not whole.
    """
    if not text:
        return {}
    if not text.startswith(WRITTEN_BY):
        raise EvalError(
            f"{name}: was not written by this command, so it is not overwritten; name another file with --out"
        )
    found = {section: Note(note, digest or None) for section, digest, note in _NOTES.findall(text)}
    if len(_BEGIN.findall(text)) != len(found):
        raise EvalError(
            f"{name}: a marker <!-- notes: … --> is without its <!-- end of notes -->, or there twice; mend it, so that no "
            "note is lost"
        )
    return {section: note for section, note in found.items() if note.text.strip()}


def outdated(result: Result, notes: Mapping[str, Note]) -> list[str]:
    """Sections whose notes were written when the verdicts were others."""
    present = verdict_digests(result)
    return [section for section, note in notes.items() if note.written_for not in (None, present.get(section))]


def verdict_digests(result: Result) -> dict[str, str]:
    """Section -> a digest of its verdicts; the overview has those of all claims."""
    said = {
        f"claim {claim.number}": [[f.panel, f.what, f.method, f.reference, f.measured.verdict] for f in found.findings]
        for claim, found in result.answers
    }
    return {section: _digest(of) for section, of in {"overview": said, **said}.items()}


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=3).hexdigest()


def markdown(result: Result, figures: Sequence[Drawn], *, folder: str, command: str, notes: Mapping[str, Note]) -> str:
    """The whole document.

    Args:
        result: what was found.
        figures: to refer to.
        folder: of the figures and claims.json, relative to the document.
        command: that writes the document.
        notes: section -> what a person has written there.
    """
    digests = verdict_digests(result)
    if unknown := set(notes) - set(digests):
        raise EvalError(f"notes in sections that the document does not have ({', '.join(sorted(unknown))}); move them")
    parts = [
        [WRITTEN_BY, "", "# What the papers claim, and what we measured", ""],
        _what_was_run(result),
        _note("overview", notes, digests),
        _table(result),
        _figures(figures, 0, folder),
        ["## How to read it", "", _reading(result), ""],
        *(
            [
                *_section(result, claim.number),
                *_figures(figures, claim.number, folder),
                *_note(f"claim {claim.number}", notes, digests),
            ]
            for claim, _ in result.answers
        ),
        _rates(result),
        _cells(result),
        _left_out(result),
        ["## How to repeat it", "", *_repeat(result, command, folder)],
    ]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _what_was_run(result: Result) -> Iterator[str]:
    study = result.study
    runs = [run for panel in study.panels for run in panel.runs]
    statuses = ", ".join(f"{n} {status}" for status, n in sorted(study.statuses.items()))
    seconds = math.fsum(_number(run.record.get("seconds")) for run in runs)
    changed = sum(bool(setting(run.record, "git.changed_files")) for run in runs)
    uncommitted = f", {changed} of them with uncommitted files" if changed else ""
    yield "## What was run"
    yield ""
    sweeps = f"Sweeps: {', '.join(study.sweeps)}. " if study.sweeps else ""
    diverged = sum(run.is_diverged for run in runs)
    yield (
        f"{sweeps}{sum(study.statuses.values())} runs ({statuses}), of which {len(runs)} count below{uncommitted}; {diverged} of these diverged "
        f"(their loss or answers stopped being numbers). These {len(runs)} trained for {duration(seconds)}, evaluations apart. Commit: {_commits(runs)}."
    )
    yield ""
    yield "| task | base | methods | learning rates × seeds | budgets (tokens) | held-out text |"
    yield "|---|---|---|---|---|---|"
    for panel in study.panels:
        seeds = {run.seed for run in panel.runs}
        rates = sorted(len({lr for lr, _ in panel.cells(arm)}) for arm in panel.arms)
        several = f"{rates[0]}" if rates[0] == rates[-1] else f"{rates[0]} to {rates[-1]}"
        budgets = [count(t) for t in sorted({t for arm in panel.arms for t in panel.budgets(arm)})]
        methods = ", ".join(arm.label for arm in panel.arms)
        over = "; ".join(_over(panel, effect) for effect in panel.measures)
        yield (
            f"| {panel.name} ({panel.kind}) | {panel.base}{_base_size(panel)} | {methods} | {several} × {len(seeds)} | "
            f"{', '.join(budgets)} | {over} |"
        )
    yield ""


def _over(panel: Panel, effect: str) -> str:
    over = panel.measures[effect]
    tasks = ", ".join(f"{name} ({len(each)} documents)" for name, each in zip(over.tasks, over.documents, strict=True))
    return (
        f"{effect.replace('_', ' in ')}: {tasks}, {over.unit}"
        if over.unit not in effect
        else f"{effect.replace('_', ' in ')}: {tasks}"
    )


def _base_size(panel: Panel) -> str:
    sizes = [setting(run.record, "parameters.trainable") for run in panel.runs if run.arm.rank == 0]
    known = [size for size in sizes if isinstance(size, int)]
    return f", {count(max(known))} parameters" if known else ""


def _commits(runs: Sequence[StudyRun]) -> str:
    commits = Counter(str(commit)[:12] for run in runs if (commit := setting(run.record, "git.commit")))
    unknown = len(runs) - sum(commits.values())
    parts = [commit if len(commits) == 1 else f"{commit} ({n} runs)" for commit, n in sorted(commits.items())]
    return ", ".join([*parts, *([f"not recorded for {unknown} runs"] if unknown else [])])


def _table(result: Result) -> Iterator[str]:
    yield "## The claims"
    yield ""
    yield _by_chance(result)
    yield ""
    yield "| claim | task | what we measured [95 % interval] | verdict at this scale | why that may be |"
    yield "|---|---|---|---|---|"
    for claim, each in result.answers:
        title, said = f"{claim.number}. {claim.text}", set[tuple[str, str]]()
        for group in _groups(each):
            first = group[0]
            what = f"{first.what}, against {first.against}, {_budget(first)} tokens ({first.unit})"
            values = "<br>".join(f"{short(f)}: {interval(f.measured, f.unit)}" for f in group)
            fresh = [reason for reason in reasons(result, group) if (first.panel, reason) not in said]
            said |= {(first.panel, reason) for reason in fresh}
            why = "<br>".join(f"{_capital(reason)}." for reason in fresh)
            verdict, corrected = verdicts(group), verdicts(group, result.verdict_corrected)
            shown = verdict if verdict == corrected else f"{verdict}<br>corrected: {corrected}"
            yield f"| {title} | {first.panel} | {what}<br>{values} | {shown} | {why} |"
            title = f"{claim.number}."
        for missing in each.missing:
            panel, _, reason = missing.partition(": ")
            yield f"| {title} | {panel} | {UNKNOWN} | **not measured** | {_capital(reason.removeprefix('not measured: '))}. |"
            title = f"{claim.number}."
    yield ""


def _by_chance(result: Result) -> str:
    """How many verdicts noise alone would give, and how many are left when that is corrected for."""
    able = result.testable
    decided = [f for f in able if f.measured.verdict != UNDECIDED]
    kept = [f for f in able if result.verdict_corrected(f) != UNDECIDED]
    sure = sum(is_limited(f) for f in kept)
    certain = f"; of {sure} of these the outcome was certain beforehand" if sure else ""
    return (
        f"Of the {len(able)} comparisons that can have a verdict, {ALPHA * len(able):.2g} would have one by chance if no method differed "
        f"from another. {len(decided)} have one, {len(kept)} of them also when all comparisons are corrected for (Holm){certain}."
    )


def _reading(result: Result) -> str:
    parts = (
        "**Learned** is the decrease of the loss on held-out text of the new domain since before training, **forgotten** its increase on "
        "that of the old domain.",
        "**Verdicts.** Every estimate is arranged so that above the threshold (zero, unless said otherwise) is the claim's side: *holds* "
        "means that the whole 95 % interval is there, *does not hold* that it is on the other side, *undecided* neither.",
        f"**Intervals** span a bootstrap ({DRAWS:,} draws) of seeds and documents, each drawn on its own, and Student's t over seeds with "
        "the documents' variance added: with few seeds the first is too narrow. For ranks, matrices take the place of documents. "
        "Methods are compared at equal seed, batches and documents.",
        "**At equal budgets** each method is at its best learning rate, that which learned most. The best of several looks better than it "
        "is, by luck, so differences are cross-fitted: a seed's score on one half of the documents is that of the rate which other seeds chose on "
        "the other half.",
        "**At equal learning** the level is the most that both methods have learned, and each is at the rate that forgot least where it first reached "
        "it, for each seed chosen on the mean of the other seeds, over all documents. A run is read before its end there, when its learning rate "
        "may not yet have come down.",
        "**At the rates that learned most**, in the last column, is the figure with each method at the rate that learned most with all seeds and "
        "documents.",
        "**p** is that of Student's t with one degree of freedom less than seeds at most (of the ratio over seeds, than learning rates): it can be "
        "above 0.05 where the interval decides, which trusts the documents' variance, too. The intervals are for one look each; p (Holm) is "
        f"corrected for all {len(result.testable)} comparisons that can have a verdict.",
    )
    return "\n".join(f"- {part}" for part in parts)


def _section(result: Result, number: int) -> Iterator[str]:
    claim, found = next((claim, each) for claim, each in result.answers if claim.number == number)
    yield f"## {number}. {claim.text}"
    yield ""
    yield f"{claim.how} ({claim.paper})"
    yield ""
    for missing in found.missing:
        yield f"- {missing}."
    if found.missing:
        yield ""
    if not found.findings:
        return
    yield "| task | what | method | against | tokens | seeds | estimate [95 % interval] | bootstrap | t | verdict | p | p (Holm) | at the rates that learned most |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for f in found.findings:
        m, unit = f.measured, f.unit
        boot, student = (
            f"{number_of(low, unit)} to {number_of(high, unit)}"
            for low, high in ((m.boot_low, m.boot_high), (m.t_low, m.t_high))
        )
        other = UNKNOWN if f.plain is None else interval(f.plain, unit)
        yield (
            f"| {f.panel} | {f.what} ({unit}) | {f.method} | {f.reference} | {_budget(f)} | {m.seeds} | {interval(m, unit)} | {boot} | "
            f"{student} | {m.verdict} | {_p(m.p)} | {_p(result.corrected[id(f)])} | {other} |"
        )
    yield ""
    yield from _curves(found)
    yield from _levels(found)
    yield from _details(found)


def _curves(found: Answer) -> Iterator[str]:
    curves = [f for f in found.findings if len(f.curve) > 1]
    if not curves:
        return
    yield "Over budgets:"
    yield ""
    for group in _groups(Answer(findings=tuple(curves))):
        budgets = sorted({tokens for f in group for tokens in f.curve})
        yield f"| {group[0].panel}: {group[0].what}, against {group[0].against} | {' | '.join(count(t) for t in budgets)} |"
        yield "|---|" + "---|" * len(budgets)
        for f in group:
            cells = [interval(f.curve[t], f.unit) if t in f.curve else UNKNOWN for t in budgets]
            yield f"| {f.method} against {f.reference} | {' | '.join(cells)} |"
        yield ""


def _levels(found: Answer) -> Iterator[str]:
    able = [f for f in found.findings if f.levels]
    if not able:
        return
    shares = sorted({share for f in able for share in f.levels}, reverse=True)
    yield (
        "Over levels of learning, in shares of the most that both have learned: there one of the two has no choice of its rate left; below, "
        "both have. What decides is the first column."
    )
    yield ""
    yield f"| task | what | method | against | {' | '.join(percent(share, 0) for share in shares)} |"
    yield "|---|---|---|---|" + "---|" * len(shares)
    for f in able:
        cells = [interval(f.levels[share], f.unit) if share in f.levels else UNKNOWN for share in shares]
        yield f"| {f.panel} | {f.what} | {f.method} | {f.reference} | {' | '.join(cells)} |"
    yield ""


DETAILS = {
    "level": "level of learning",
    "tokens_at_level": "method's tokens there",
    "tokens_at_level_reference": "other's tokens there",
    "of_method": "method's value",
    "of_reference": "other's value",
    "lr": "method's learning rate",
    "lr_reference": "other's learning rate",
    "rates": "learning rates",
    "rate_deviation_of_method": "method's std of rates",
    "rate_deviation_of_reference": "other's std of rates",
    "range_of_method": "method's range over rates",
    "range_of_reference": "other's range over rates",
    "seed_deviation_of_method": "method's std of seeds",
    "seed_deviation_of_reference": "other's std of seeds",
    "diverged": "method's diverged runs",
    "diverged_reference": "other's diverged runs",
    "train_loss_of_method": "method's training loss",
    "train_loss_of_reference": "other's training loss",
    "k": "rank of the change",
    "full_rank": "largest possible",
    "share": "share of it",
    "most_possible": "largest possible ratio",
    "matrices": "matrices",
    "documents": "documents",
}
"""Further numbers of findings -> heads of columns."""


def _details(found: Answer) -> Iterator[str]:
    keys = [key for key in DETAILS if any(key in f.details for f in found.findings)]
    yield f"| task | what | method | against | {' | '.join(DETAILS[key] for key in keys)} |"
    yield "|---|---|---|---|" + "---|" * len(keys)
    for f in found.findings:
        cells = [_plain(f.details.get(key)) for key in keys]
        yield f"| {f.panel} | {f.what} | {f.method} | {f.reference} | {' | '.join(cells)} |"
    yield ""


def _rates(result: Result) -> Iterator[str]:
    yield "## Chosen learning rates"
    yield ""
    yield (
        "By the mean over seeds of what was learned at the largest budget. The optimism is what that mean has more than the "
        "cross-fitted one."
    )
    yield ""
    yield "| task | method | chosen | learned by learning rate | optimism | diverged |"
    yield "|---|---|---|---|---|---|"
    for panel in result.study.panels:
        unit = panel.measures[LEARNED].unit
        for choice in result.choices[panel.name]:
            scores = ", ".join(f"{lr:g}: {number_of(value, unit)}" for lr, value in choice.scores.items())
            yield (
                f"| {panel.name} | {choice.arm.label} | {choice.lr:g} | {scores} | {number_of(optimism(panel, choice), unit)} | "
                f"{_diverged(choice)} |"
            )
    yield ""


def _diverged(choice: Choice) -> str:
    return ", ".join(f"{n} at {lr:g}" for lr, n in choice.diverged.items()) or "none"


def _cells(result: Result) -> Iterator[str]:
    yield "## Every cell at its end"
    yield ""
    yield (
        "Mean over the seeds that were scored there ± their standard deviation, the training loss over the same runs; the intervals above say "
        "what such a mean is worth. Runs that diverged are counted."
    )
    yield ""
    for panel in result.study.panels:
        effects = [effect for effect in (LEARNED, FORGOTTEN, LEARNED_ACCURACY) if effect in panel.measures]
        heads = " | ".join(f"{effect.replace('_', ' in ')} ({panel.measures[effect].unit})" for effect in effects)
        yield f"### {panel.name}"
        yield ""
        yield f"| method | learning rate | seeds | diverged | tokens | {heads} | training loss |"
        yield "|---|---|---|---|---|" + "---|" * len(effects) + "---|"
        for arm in panel.arms:
            for lr in sorted({lr for lr, _ in panel.cells(arm)}):
                yield _cell(panel, arm, lr, effects)
        yield ""


def _cell(panel: Panel, arm: Arm, lr: float, effects: Sequence[str]) -> str:
    runs = [run for (rate, _), run in sorted(panel.cells(arm).items()) if rate == lr]
    budgets = panel.budgets(arm)
    tokens = max((t for run in runs for t in run.at if t in budgets), default=0)
    scored = [run for run in runs if tokens in run.at]
    means = []
    for effect in effects:
        known = [score for run in scored if (score := panel.score(run, effect, tokens)) is not None]
        means.append(_mean_and_deviation(known, panel.measures[effect].unit))
    losses = [run.train_loss for run in scored if run.train_loss is not None]
    loss = f"{math.fsum(losses) / len(losses):.3f}" if losses else UNKNOWN
    diverged = sum(run.is_diverged for run in runs)
    return f"| {arm.label} | {lr:g} | {len(scored)} | {diverged} | {count(tokens)} | {' | '.join(means)} | {loss} |"


def _mean_and_deviation(values: Sequence[float], unit: str) -> str:
    if not values:
        return UNKNOWN
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return number_of(mean, unit)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{number_of(mean, unit)} ± {number_of(deviation, unit).removeprefix('+')}"


def _left_out(result: Result) -> Iterator[str]:
    if not result.study.left_out:
        return
    yield "## Runs that count nowhere"
    yield ""
    reasons_of: dict[str, list[str]] = {}
    for run, reason in result.study.left_out.items():
        reasons_of.setdefault(reason, []).append(run)
    for reason, runs in sorted(reasons_of.items()):
        shown = ", ".join(f"`{run}`" for run in runs[:8]) + (f" and {len(runs) - 8} more" if len(runs) > 8 else "")
        yield f"- {_capital(reason)}: {shown}."
    yield ""


def _repeat(result: Result, command: str, folder: str) -> Iterator[str]:
    named = f" ({', '.join(result.study.sweeps)})" if result.study.sweeps else ""
    yield "```bash"
    yield f"python -m launch study FILE      # the sweep's file{named}: corpus, base, runs and this page; what is done stays so"
    yield f"{command}      # this page alone"
    yield "```"
    yield ""
    yield f"All numbers are in [{folder}/claims.json]({folder}/claims.json)."


def _budget(finding: Finding) -> str:
    """The tokens of a comparison; of one at equal learning, the most that either may have taken."""
    return f"{'up to ' if finding.levels else ''}{count(finding.tokens)}"


def _groups(found: Answer) -> list[list[Finding]]:
    """Findings that differ in rank alone."""
    groups: dict[tuple[Any, ...], list[Finding]] = {}
    for f in found.findings:
        groups.setdefault((f.panel, f.what, f.against, f.tokens), []).append(f)
    return list(groups.values())


def _figures(figures: Sequence[Drawn], claim: int, folder: str) -> Iterator[str]:
    for figure in figures:
        if figure.claim == claim:
            yield f"![{figure.caption}]({folder}/{figure.name}.svg)"
            yield ""
            yield f"*{figure.caption}*"
            yield ""


def _note(section: str, notes: Mapping[str, Note], digests: Mapping[str, str]) -> list[str]:
    """A place for notes; of one that is there, who wrote it and whether it may be out of date."""
    present, note = digests[section], notes.get(section)
    if note is None:
        return [f"<!-- notes: {section}, for {present} -->", "<!-- end of notes -->", ""]
    digest = note.written_for or present
    stale = ["The note below was written when the verdicts were others.", ""] if digest != present else []
    kept = note.text.rstrip("\n").split("\n")
    head = [*stale, "**Note** (written by hand):", "", f"<!-- notes: {section}, for {digest} -->"]
    return [*head, *kept, "<!-- end of notes -->", ""]


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return UNKNOWN
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _p(p: float) -> str:
    return UNKNOWN if math.isnan(p) else ("< 0.001" if p < 0.001 else f"{p:.3f}")


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _capital(text: str) -> str:
    return text if _BY_RANK.match(text) else text[:1].upper() + text[1:]
