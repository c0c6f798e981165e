"""What a check has found: a line for a reader, findings about nodes, and how the odd one out of several is told."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

Value = TypeVar("Value", bound=Hashable)

SLOW, BROKEN = 0.6, 0.25
"""Parts of the median below which a figure is worth a warning, and below which it is a failure."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it should be."""

    level: Literal["fail", "warn"]
    message: str
    node: str | None = None
    """The node whose it is; None when it can't be told, or is nobody's."""

    def __str__(self) -> str:
        return self.message if self.node is None else f"{self.node}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What became of one check."""

    check: str
    """Its name, a word."""
    line: str
    """The figures, or why there are none."""
    findings: Sequence[Finding] = ()


def fail(message: str, node: str | None = None) -> Finding:
    """A finding with which no training should be started."""
    return Finding(level="fail", message=message, node=node)


def warn(message: str, node: str | None = None) -> Finding:
    """A finding that a person should look at."""
    return Finding(level="warn", message=message, node=node)


def failing_nodes(judgements: Iterable[Judgement]) -> list[str]:
    """Names of the nodes that fail, sorted."""
    return sorted({f.node for each in judgements for f in each.findings if f.level == "fail" and f.node is not None})


def majority(values: Mapping[str, Value]) -> Value:
    """The value that most nodes have; where several have as many, that of the first node among them."""
    counts = Counter(values.values())
    most = max(counts.values())
    return next(value for value in values.values() if counts[value] == most)


def odd_ones(values: Mapping[str, Value]) -> tuple[Value, list[str]]:
    """The value that most nodes have, and the nodes that have another."""
    usual = majority(values)
    return usual, [node for node, value in values.items() if value != usual]


def others(values: Mapping[str, object], odd: Sequence[str]) -> str:
    """The nodes that are not odd, for a message: the name of a single one, else their number."""
    rest = [node for node in values if node not in odd]
    return rest[0] if len(rest) == 1 else f"the other {len(rest)} nodes"


def slow_ones(figures: Mapping[str, float], what: str, unit: str, *, is_shared: bool = False) -> list[Finding]:
    """The nodes whose figure is well below the median of all.

    Args:
        figures: of each node; more is better.
        what: they are figures of, for the message.
        unit: of the figures.
        is_shared: whether processes share the cores they were measured with: then a large difference is worth a warning only.
    """
    if len(figures) < 2:
        return []
    usual = statistics.median(figures.values())
    least = (BROKEN if is_shared else SLOW) * usual
    return [
        (fail if figure < BROKEN * usual and not is_shared else warn)(
            f"{what} {figure:.3g} {unit}, the median of all is {usual:.3g} {unit}", node
        )
        for node, figure in figures.items() if figure < least
    ]  # fmt: skip


def readable(size: float) -> str:
    """Bytes with a unit."""
    for unit, least in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if abs(size) >= least:
            return f"{size / least:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"
