"""The matrices of two states of a model, matched by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evals.errors import EvalError
from evals.weights.names import in_order, is_wanted, layer_of, module_names
from evals.weights.stored import Weights

SHOWN_PROBLEMS = 20
"""Differences of two models that are listed; of more the number is told."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A weight that is compared."""

    name: str
    layer: int | None
    module: str
    shape: tuple[int, int]

    @property
    def cost(self) -> int:
        """Multiplications of an SVD, but for a factor."""
        return self.shape[0] * self.shape[1] * min(self.shape)


def matrices(before: Weights, after: Weights, patterns: Sequence[str] = ()) -> list[Matrix]:
    """What is compared, in the model's order as far as names give it.

    Raises:
        EvalError: the models differ in matrices or their shapes (all are named), or no module fits a pattern.
    """
    sides = [
        {name: (shape[0], shape[1]) for name, shape in each.shapes.items() if len(shape) == 2 and math.prod(shape) > 0}
        for each in (before, after)
    ]
    modules = module_names(sides[0] | sides[1])
    wanted = [name for name in sides[0] | sides[1] if is_wanted(name, modules[name], patterns)]
    if not wanted:
        there = ", ".join(in_order(modules.values()))
        raise EvalError(f"--modules {','.join(patterns)}: fits no matrix; there are {there}" if modules else
                        f"{before.label} and {after.label}: hold no matrices")  # fmt: skip
    problems = []
    for name in wanted:
        for one, other, here in ((before, after, 0), (after, before, 1)):
            if name not in sides[here]:
                problems.append(f"{name} is in {other.label} and not in {one.label}")
        if all(name in side for side in sides) and sides[0][name] != sides[1][name]:
            problems.append(
                f"{name} is {list(sides[0][name])} in {before.label} and {list(sides[1][name])} in {after.label}"
            )
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems[:SHOWN_PROBLEMS])
        more = f"\n  and {len(problems) - SHOWN_PROBLEMS:,} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise EvalError(
            f"{before.label} and {after.label} are not the same model before and after training; name two that are:{listed}{more}"
        )
    order = {module: number for number, module in enumerate(in_order(modules.values()))}
    found = [
        Matrix(name=name, layer=layer_of(name), module=modules[name], shape=sides[0][name]) for name in wanted
    ]  # fmt: skip
    return sorted(found, key=lambda each: (each.layer is None, each.layer or 0, order[each.module], each.name))
