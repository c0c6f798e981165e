"""What one comparison gave: the estimate at the largest budget, its curve over budgets, and what to say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evals.claims.estimates import Measured

ALPHA = 0.05
"""Level at which p-values are looked at, as that of the intervals."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A comparison of two methods on one panel; positive (above the threshold) is the claim's side.

    Attributes:
        claim: number of the claim.
        panel: name of the panel.
        what: what is compared, such as "learned".
        method: label of the arm that the claim is about.
        reference: label of the other.
        against: what kind of method the other is, the same at all ranks.
        rank: that tells findings of one kind apart; 0 without one.
        unit: of the estimate.
        tokens: the budget.
        measured: what decides.
        plain: the same with each method at the rate that learned most with all seeds and documents, where that is another.
        curve: tokens -> estimate, at every budget that both have.
        levels: of what is compared at equal learning, share of the level -> estimate there.
        details: further numbers, by their names.
    """

    claim: int
    panel: str
    what: str
    method: str
    reference: str
    against: str
    rank: int
    unit: str
    tokens: int
    measured: Measured
    plain: Measured | None = None
    curve: Mapping[int, Measured] = field(default_factory=dict)
    levels: Mapping[float, Measured] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "claim": self.claim,
            "panel": self.panel,
            "what": self.what,
            "method": self.method,
            "reference": self.reference,
            "against": self.against,
            "rank": self.rank,
            "unit": self.unit,
            "tokens": self.tokens,
            "measured": self.measured.as_dict(),
            "plain": None if self.plain is None else self.plain.as_dict(),
            "curve": [{"tokens": tokens} | each.as_dict() for tokens, each in sorted(self.curve.items())],
            "levels": [{"share": share} | each.as_dict() for share, each in self.levels.items()],
            "details": dict(self.details),
        }


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was found about a claim.

    Attributes:
        findings: one for each panel, rank and way of comparing.
        missing: why a part of it could not be measured, a sentence each.
    """

    findings: tuple[Finding, ...]
    missing: tuple[str, ...] = ()
