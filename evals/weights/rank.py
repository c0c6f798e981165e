"""The rank of the weight change: SVD of W, of W after training and of their difference, one matrix at a time.

The protocol is that of "LoRA Learns Less and Forgets Less" (Biderman et al., arXiv 2405.09673), for every matrix of the
model. What is in no matrix (norms, biases) has no rank, and second names of tied weights are not counted twice.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evals.errors import EvalError
from evals.weights.matrices import Matrix, matrices
from evals.weights.names import in_order
from evals.weights.spectrum import LowRank, Spectrum, spectrum
from evals.weights.stored import Weights

SCHEMA = 1
ROUNDING_SHOWS = 3
"""A change smaller than so many times what rounding adds is not told from it: a tenth of its squares would be rounding's."""

MEASURES = ("rank", "stable_rank", "numerical_rank", "norm")
"""Of a spectrum, in a row each of W before, of W after and of the change."""


class NotFiniteError(EvalError):
    """A matrix with values that are infinite or no numbers, which has no singular values."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How changes are measured."""

    share: float = 0.9
    """Of the squared singular values that the k largest explain."""
    modules: tuple[str, ...] = ()
    """Patterns of modules or weights; none: all."""
    only_change: bool = False
    """Whether the spectra of W before and after, which take nearly all the time of an adapter, are left out."""

    def __post_init__(self) -> None:
        """Refuse a share that says nothing.

        Raises:
            EvalError: it is not between 0 and 1.
        """
        if not 0 < self.share < 1:
            raise EvalError(
                f"share {self.share:g}: must be between 0 and 1, such as 0.9; the rank of all of a matrix is in the rows "
                "in any case, as numerical_rank"
            )


Report = Callable[[int, int, str], None]
"""Is told the work done, the work in all, and the matrix that was compared last."""


def compare(
    before: Weights,
    after: Weights,
    matrix: Matrix,
    settings: Settings,
    device: str = "cpu",
    known_before: Spectrum | None = None,
) -> dict[str, Any]:
    """Decompose a matrix before, after and the difference; at most the two are in memory, and what a decomposition needs.

    Args:
        before: usually the base.
        after: what training made of it.
        matrix: of both.
        settings: how.
        device: of the decompositions.
        known_before: of W before, where it was decomposed earlier.

    Returns:
        The row of a document; see `rank_of_change`.

    Raises:
        NotFiniteError: values that are infinite or no numbers.
    """
    begun = time.perf_counter()
    factors = _factors(before, after, matrix.name)
    spectra: dict[str, Spectrum | None] = dict.fromkeys(("before", "after", "change"))
    first = _finite(before, matrix.name, device)
    norm_before = _norm(first)
    if not settings.only_change:
        spectra["before"] = known_before or spectrum(first, settings.share)
    if factors is None:
        second = _finite(after, matrix.name, device)
        if not settings.only_change:
            spectra["after"] = spectrum(second, settings.share)
        second -= first
        del first
        spectra["change"] = spectrum(second, settings.share)
    else:
        del first
        _check_finite(factors.B, after, matrix.name)
        _check_finite(factors.A, after, matrix.name)
        spectra["change"] = spectrum(factors, settings.share)
        if factors.most == 0:
            spectra["after"] = spectra["before"]
        elif not settings.only_change:
            spectra["after"] = spectrum(_finite(after, matrix.name, device), settings.share)
    return _row(matrix, spectra, norm_before, factors, time.perf_counter() - begun) | {
        "is_rounding": factors is None and _is_rounding(spectra["change"], norm_before, after.epsilon)
    }


def _row(
    matrix: Matrix,
    spectra: Mapping[str, Spectrum | None],
    norm_before: float,
    factors: LowRank | None,
    seconds: float,
) -> dict[str, Any]:
    change = spectra["change"]
    assert change is not None
    found = {
        measure: {which: getattr(one, measure) if one else None for which, one in spectra.items()}
        for measure in MEASURES
    }
    return {
        "name": matrix.name,
        "layer": matrix.layer,
        "module": matrix.module,
        "shape": list(matrix.shape),
        "full_rank": min(matrix.shape),
        "at_most": None if factors is None else factors.most,
        **found,
        "relative_change": change.norm / norm_before if norm_before > 0 else None,
        "is_unchanged": change.norm == 0,
        "seconds": round(seconds, 3),
    }


def _is_row(row: Any, matrix: Matrix) -> bool:
    """Whether it is what `compare` makes of a matrix, as far as can be told without comparing."""
    try:
        of_matrix = [row[key] for key in ("name", "layer", "module", "shape", "full_rank")]
        flags = [row["is_unchanged"], row["is_rounding"]]
        known = [row["seconds"], *(row[measure]["change"] for measure in MEASURES)]
        others = [row[measure][which] for measure in MEASURES for which in ("before", "after")]
        others += [row["relative_change"], row["at_most"]]
    except (KeyError, TypeError):
        return False
    numbers = [*known, *(value for value in others if value is not None)]
    return (
        of_matrix == [matrix.name, matrix.layer, matrix.module, list(matrix.shape), min(matrix.shape)]
        and all(isinstance(flag, bool) for flag in flags)
        and all(isinstance(number, int | float) and 0 <= number <= sys.float_info.max for number in numbers)
    )


def _is_rounding(change: Spectrum | None, norm_before: float, epsilon: float) -> bool:
    """Whether the change is not told from what rounding to a type with this spacing adds.

    Rounding moves a value by an error that is uniform between two neighbours: together by epsilon / sqrt(12) of the norm at most.
    """
    return change is not None and 0 < change.norm < ROUNDING_SHOWS * epsilon / math.sqrt(12) * norm_before


def rank_of_change(
    before: Weights,
    after: Weights,
    settings: Settings = Settings(),
    *,
    device: str = "cpu",
    step: int | None = None,
    done: Mapping[str, Mapping[str, Any]] | None = None,
    earlier: Mapping[str, Mapping[str, Any]] | None = None,
    on_row: Callable[[Mapping[str, Any]], None] | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Compare every matrix of two states of a model.

    Args:
        before: usually the base.
        after: what training made of it.
        settings: how.
        device: of the decompositions.
        step: of the run at which `after` was saved.
        done: rows from an earlier call, by name, which are not computed again, unless they are damaged.
        earlier: rows, by name, of a comparison of the same `before` with the same share: of these, W before is taken over.
        on_row: is given every new row as soon as it is there.
        report: is told of the progress.

    Returns:
        A document for `<run>/weights/rank-<step>.json`. `rank[i][j]` is the smallest k for the change of `modules[j]` in layer
        `layers[i]`, null where the layer has no such module; so are `full_rank`, the largest that it could be, and
        `relative_change`, |change| / |W|, in Frobenius norms. `rows` has everything, also of matrices in no layer; `notes` says what
        to think of.

    Raises:
        EvalError: the models do not fit each other, or hold values that are no numbers.
    """
    wanted = matrices(before, after, settings.modules)
    there = [(matrix, (done or {}).get(matrix.name)) for matrix in wanted]
    known = {matrix.name: dict(row) for matrix, row in there if row is not None and _is_row(row, matrix)}
    todo = [matrix for matrix in wanted if matrix.name not in known]
    total, so_far = sum(matrix.cost for matrix in todo), 0
    for matrix in todo:
        known[matrix.name] = row = compare(
            before, after, matrix, settings, device, known_before=_known_before((earlier or {}).get(matrix.name))
        )
        so_far += matrix.cost
        if on_row:
            on_row(row)
        if report:
            report(so_far, total, matrix.name)
    rows = [known[matrix.name] for matrix in wanted]
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    modules = in_order(row["module"] for row in rows if row["layer"] is not None)
    cells = {(row["layer"], row["module"]): row for row in rows}

    def grid(value: Callable[[Mapping[str, Any]], Any]) -> list[list[Any]]:
        return [
            [value(cells[at]) if (at := (layer, module)) in cells else None for module in modules] for layer in layers
        ]

    return {
        "schema": SCHEMA,
        "step": step,
        "before": before.label,
        "after": after.label,
        **identity(before, after, settings),
        "modules": modules,
        "layers": layers,
        "rank": grid(lambda row: row["rank"]["change"]),
        "full_rank": grid(lambda row: row["full_rank"]),
        "relative_change": grid(lambda row: row["relative_change"]),
        "max_rank": max(row["full_rank"] for row in rows),
        "left_out": {
            "no_matrix": sum(len(shape) != 2 for shape in after.shapes.values()),
            "tied": after.num_tied,
        },
        "notes": list(_notes(rows, settings.share)),
        "rows": rows,
    }


def identity(before: Weights, after: Weights, settings: Settings) -> dict[str, Any]:
    """What a result depends on: with the same, another computation would give it again."""
    return {
        "share": settings.share,
        "only_change": settings.only_change,
        "wanted": list(settings.modules),
        "states": {"before": before.state, "after": after.state},
    }


def _factors(before: Weights, after: Weights, name: str) -> LowRank | None:
    """The change of a matrix as factors, where both states are updates of the same base."""
    if before.base != after.base:
        return None
    one, other = before.update(name), after.update(name)
    return None if one is None or other is None else other.minus(one)


def _known_before(row: Mapping[str, Any] | None) -> Spectrum | None:
    if row is None or row["rank"]["before"] is None:
        return None
    return Spectrum(**{measure: row[measure]["before"] for measure in MEASURES})


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))


def _finite(weights: Weights, name: str, device: str) -> Tensor:
    value = weights.read(name).to(device)
    _check_finite(value, weights, name)
    return value


def _check_finite(value: Tensor, weights: Weights, name: str) -> None:
    if not bool(value.isfinite().all()):
        raise NotFiniteError(
            f"{weights.label}: {name} has values that are infinite or no numbers: the training diverged, or the file is "
            "damaged; name an earlier checkpoint"
        )


def _notes(rows: Iterable[Mapping[str, Any]], share: float) -> Iterable[str]:
    rows = list(rows)
    if unchanged := sum(row["is_unchanged"] for row in rows):
        yield f"{unchanged:,} of {len(rows):,} matrices did not change at all; their rank is 0."
    if rounded := sum(row["is_rounding"] for row in rows):
        yield (
            f"{rounded:,} of {len(rows):,} matrices changed by less than {ROUNDING_SHOWS} times what the rounding of the stored weights "
            "adds, so that the rank is mostly that of rounding. Compare weights that are stored in fp32, such as checkpoints, or the "
            "adapter itself."
        )
    if known := [row["at_most"] for row in rows if row["at_most"]]:
        yield f"Where an adapter made the change, it is known as factors of rank {max(known):,} at most, and exact."
