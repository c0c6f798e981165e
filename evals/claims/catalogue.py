"""The claims of the three papers, and what is measured for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evals.claims.comparisons import at_equal_learning, difference
from evals.claims.findings import Answer, Finding
from evals.claims.rank_growth import rank_findings
from evals.claims.roles import DECAY, DROPOUT, FULL, HIDDEN_KEY, LORA, MONTECLORA, NAMES, Arm
from evals.claims.spreads import spread_findings
from evals.claims.study import FORGOTTEN, LEARNED, Panel

Found = Finding | str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of a paper.

    Attributes:
        number: in the document.
        text: the claim.
        paper: where it is made.
        how: what is compared, and which side of it is the claim's.
        findings: what it gives on a panel, a sentence for what could not be measured.
    """

    number: int
    text: str
    paper: str
    how: str
    findings: Callable[[Panel], Iterable[Found]]


def answer(claim: Claim, panels: Sequence[Panel]) -> Answer:
    """What is found about a claim on all panels."""
    found = [each for panel in panels for each in claim.findings(panel)]
    missing = tuple(dict.fromkeys(each for each in found if isinstance(each, str)))
    return Answer(findings=tuple(each for each in found if isinstance(each, Finding)), missing=missing)


def _learns_less(panel: Panel) -> Iterator[Found]:
    for method, reference in _pairs(panel, LORA, FULL):
        yield difference(panel, 1, method, reference, LEARNED, -1)
    yield from _absent(panel, LORA, FULL)


def _forgets_less(panel: Panel) -> Iterator[Found]:
    for method, reference in _pairs(panel, LORA, FULL):
        yield difference(panel, 2, method, reference, FORGOTTEN, -1)
        yield at_equal_learning(panel, 2, method, reference)
    yield from _absent(panel, LORA, FULL)


def _regularises_more(panel: Panel) -> Iterator[Found]:
    for reference in panel.of(DECAY, DROPOUT):
        beside = _beside_full(panel, reference)
        for method in panel.of(LORA):
            for found in (
                difference(panel, 3, method, reference, FORGOTTEN, -1),
                at_equal_learning(panel, 3, method, reference),
            ):
                yield found if isinstance(found, str) else replace(found, details={**found.details, **beside})
    yield from _absent(panel, LORA, DECAY, DROPOUT)


def _beside_full(panel: Panel, reference: Arm) -> dict[str, Any]:
    """What a reference forgot more than plain full finetuning, as a detail; nothing where that can't be measured."""
    plain = panel.of(FULL)
    found = difference(panel, 3, reference, plain[0], FORGOTTEN, 1) if plain else None
    return {"beyond_full": found.measured.as_dict()} if isinstance(found, Finding) else {}


def _has_higher_rank(panel: Panel) -> Iterator[Found]:
    absent = list(_absent(panel, FULL))
    yield from absent or rank_findings(panel, 4)


def _spreads_less(panel: Panel) -> Iterator[Found]:
    for method, reference in _of_equal_rank(panel, MONTECLORA, LORA):
        yield from spread_findings(panel, 5, method, reference)
    yield from _absent_at_equal_rank(panel, MONTECLORA, LORA)


def _generalises_better(panel: Panel) -> Iterator[Found]:
    for method, reference in _of_equal_rank(panel, HIDDEN_KEY, LORA):
        yield difference(panel, 6, method, reference, LEARNED, 1)
    yield from _absent_at_equal_rank(panel, HIDDEN_KEY, LORA)


def _pairs(panel: Panel, role: str, other: str) -> Iterator[tuple[Arm, Arm]]:
    for reference in panel.of(other):
        for method in panel.of(role):
            yield method, reference


def _of_equal_rank(panel: Panel, role: str, other: str) -> list[tuple[Arm, Arm]]:
    return [(method, reference) for method, reference in _pairs(panel, role, other) if method.rank == reference.rank]


def _absent(panel: Panel, *roles: str) -> Iterator[str]:
    for role in roles:
        if not panel.of(role):
            yield f"{panel.name}: not measured: no runs with {NAMES[role]}"


def _absent_at_equal_rank(panel: Panel, role: str, other: str) -> Iterator[str]:
    absent = list(_absent(panel, role, other))
    yield from absent
    if not absent and not _of_equal_rank(panel, role, other):
        yield f"{panel.name}: not measured: no runs with {NAMES[role]} and {NAMES[other]} of the same rank"


LEARNS_LESS = "arXiv 2405.09673"
CLAIMS = (
    Claim(
        number=1,
        text="LoRA learns less than full finetuning",
        paper=LEARNS_LESS,
        how="What full finetuning learned minus what LoRA learned on held-out text of the new domain, each at its best learning "
        "rate; above zero is the claim's side.",
        findings=_learns_less,
    ),
    Claim(
        number=2,
        text="LoRA forgets less than full finetuning",
        paper=LEARNS_LESS,
        how="What full finetuning forgot minus what LoRA forgot on held-out text of the old domain: the two at the same "
        "budget, and where both have learned as much, each at the rate that forgets least there; above zero is the claim's side.",
        findings=_forgets_less,
    ),
    Claim(
        number=3,
        text="LoRA regularises more than weight decay and attention dropout",
        paper=LEARNS_LESS,
        how="What full finetuning with weight decay, or with attention dropout, forgot minus what LoRA forgot, at the same "
        "budget and where both have learned as much, each at the rate that forgets least there; above zero is the claim's side.",
        findings=_regularises_more,
    ),
    Claim(
        number=4,
        text="Full finetuning's change has 10 to 100 times the rank of typical LoRA",
        paper=LEARNS_LESS,
        how="The rank of the weight change (how many singular values hold 90 %, or what was asked for, of the sum of their squares), averaged over matrices, "
        "divided by LoRA's rank; above 10 is the claim's side. And, what the paper says besides, that this rank grows with tokens: its growth "
        "from the first measured step to the last; above zero is the paper's side.",
        findings=_has_higher_rank,
    ),
    Claim(
        number=5,
        text="MonteCLoRA's results spread less over learning rates than LoRA's",
        paper="arXiv 2411.04358",
        how="The standard deviation over learning rates of LoRA's results, the seeds' part taken out, minus that of MonteCLoRA's at "
        "the same rank and rates; above zero is the claim's side. Of seeds at equal learning rates, the ratio of standard deviations, "
        "LoRA's to MonteCLoRA's; above one is the claim's side.",
        findings=_spreads_less,
    ),
    Claim(
        number=6,
        text="HiddenKey generalises better than LoRA without it",
        paper="arXiv 2403.00812",
        how="What LoRA with HiddenKey learned minus what LoRA learned on held-out text of the new domain, at the same rank, each at "
        "its best learning rate; above zero is the claim's side.",
        findings=_generalises_better,
    ),
)
