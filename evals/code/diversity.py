"""Diversity: how many different texts a model writes for one problem."""

from __future__ import annotations

from collections.abc import Sequence


def count_unique(generations: Sequence[str], passed: Sequence[bool]) -> dict[str, int]:
    """Unique strings among one problem's generations: `all`, those that `passed`, those that `failed`.

    Strings are compared as they are, white space and comments included.
    """
    pairs = list(zip(generations, passed, strict=True))
    return {
        "all": len(set(generations)),
        "passed": len({text for text, has_passed in pairs if has_passed}),
        "failed": len({text for text, has_passed in pairs if not has_passed}),
    }


def mean_unique(counts: Sequence[dict[str, int]]) -> dict[str, float]:
    """The mean over problems of each of `count_unique`'s numbers; a problem without passing generations counts as 0."""
    return {name: sum(count[name] for count in counts) / len(counts) for name in ("all", "passed", "failed")}
