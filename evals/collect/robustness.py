"""How much less the settings matter to one method than to another, for each pair of methods at equal rank and base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from evals.arithmetic.reduction import Measure, reduction
from evals.arithmetic.spread import Trial, by_configuration, over_configurations, seed_deviation, spread
from evals.collect.comparisons import MEASURES, Group, Run, grouped, trials_of, units_of

COMPARED = ("learned", "forgotten", "learning_score", "forgetting_average")
SPREADS: tuple[Measure, ...] = ("range", "std")
ADAPTERS = ("none", "lora", "monteclora")
"""The earlier one is the reference of the later."""
DRAWS = 2000


def reductions(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The spreads over settings of two methods beside each other, and how much lower the one is than the other's.

    Returns:
        An entry for each base, rank, pair of methods, measure and unit with two configurations on both sides: `method` and
        `reference`, each {"name", "best", "median", "worst", "range", "std", "n", "seed_deviation", ...} over configurations,
        the mean over seeds standing for each; `range` and `std`: what `reduction` says of these two spreads.
    """
    groups = grouped(runs)
    return [
        entry
        for reference, method in sorted(_pairs(groups), key=lambda pair: pair[0].rank is None)
        for measure in COMPARED
        for unit in units_of(measure, [*groups[reference], *groups[method]])
        for entry in _compared(reference, method, measure, unit, groups)
    ]


def _pairs(groups: Mapping[Group, Sequence[Run]]) -> Iterator[tuple[Group, Group]]:
    """(reference, method) of one base and rank; full finetuning, which has none, is a reference at every rank."""

    def place(group: Group) -> tuple[int, int, str, int]:
        adapter = groups[group][0]["adapter"]
        order = ADAPTERS.index(adapter) if adapter in ADAPTERS else len(ADAPTERS)
        return order, len(group.method), group.method, group.rank or 0

    for reference, method in combinations(sorted(groups, key=place), 2):
        is_comparable = reference.rank in (None, method.rank) and reference.method != method.method
        if reference.base == method.base and is_comparable:
            yield reference, method


def _compared(
    reference: Group, method: Group, measure: str, unit: str, groups: Mapping[Group, Sequence[Run]]
) -> Iterator[dict[str, Any]]:
    """One entry, or none where a side has fewer than two configurations with a value."""
    ours, theirs = (trials_of(measure, unit, groups[group]) for group in (method, reference))
    if any(sum(map(bool, by_configuration(trials).values())) < 2 for trials in (ours, theirs)):
        return
    is_higher_better = MEASURES[measure]
    yield {
        "base": method.base,
        "rank": method.rank,
        "metric": measure,
        "unit": unit,
        "higher_is_better": is_higher_better,
        "method": {"name": method.method} | _side(ours, is_higher_better),
        "reference": {"name": reference.method} | _side(theirs, is_higher_better),
    } | {each: reduction(ours, theirs, each, resamples=DRAWS).as_dict() for each in SPREADS}


def _side(trials: Sequence[Trial], is_higher_better: bool) -> dict[str, Any]:
    over = spread(over_configurations(trials), higher_is_better=is_higher_better)
    return over.as_dict() | {"seed_deviation": seed_deviation(trials)}
