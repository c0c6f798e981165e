"""The report: what is wrong first, then a line per check."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.preflight.verdict import Judgement, failing_nodes

WIDTH = 9
"""Of the names of checks."""

MOST_NAMES = 8
"""Nodes that the head line names."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What rank 0 says when all is done."""

    judgements: Sequence[Judgement]
    nodes: Sequence[str]
    ranks: int
    seconds: float
    parts: Mapping[str, float] = field(default_factory=dict)
    """Of them, those of each part as rank 0 saw it."""

    @property
    def code(self) -> int:
        """Exit code: 1 when something fails."""
        return int(any(finding.level == "fail" for each in self.judgements for finding in each.findings))

    @property
    def failing(self) -> list[str]:
        """Names of the nodes that fail."""
        return failing_nodes(self.judgements)

    def text(self) -> str:
        """For people."""
        findings = [finding for each in self.judgements for finding in each.findings]
        failures = [f"  FAIL  {finding}" for finding in findings if finding.level == "fail"]
        warnings = [f"  warn  {finding}" for finding in findings if finding.level == "warn"]
        lines = [f"  {each.check:<{WIDTH}} {each.line}" for each in self.judgements]
        gap = [""] if failures or warnings else []
        return "\n".join([f"preflight: {self._head(len(failures), len(warnings))}", *failures, *warnings, *gap, *lines])

    def _head(self, failures: int, warnings: int) -> str:
        names = ", ".join(self.nodes[:MOST_NAMES]) + (", ..." if len(self.nodes) > MOST_NAMES else "")
        size = f"{len(self.nodes)} node(s) ({names}), {self.ranks} rank(s), {self.seconds:.1f} s"
        if failures:
            failing = self.failing
            who = f"{', '.join(failing)} {'fails' if len(failing) == 1 else 'fail'}" if failing else "something fails"
            return f"{who}; {size}"
        return f"healthy{f', {warnings} warning(s)' if warnings else ''}; {size}"

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "schema": 1, "code": self.code, "failing": self.failing, "nodes": list(self.nodes), "ranks": self.ranks,
            "seconds": round(self.seconds, 3), "parts": {name: round(each, 3) for name, each in self.parts.items()},
            "checks": [dataclasses.asdict(each) for each in self.judgements],
        }  # fmt: skip
