"""Paired differences: signs, hand-computed values, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.arithmetic.forgetting import (
    Estimate,
    average,
    changes,
    contrast,
    estimate,
    forgotten,
    learned,
    nll_changes,
    without_subsets,
)
from evals.errors import EvalError


def bits(values: list[float], sizes: list[int], **overrides: Any) -> dict[str, Any]:
    examples = [
        {"id": f"d{i}", "nll": v * math.log(2), "bytes": b} for i, (v, b) in enumerate(zip(values, sizes, strict=True))
    ]
    return {"metric": "bits_per_byte", "higher_is_better": False, "examples": examples} | overrides


def choice(credits_: list[float], documents: list[str] | None = None, **overrides: Any) -> dict[str, Any]:
    names = documents or [f"d{i}" for i in range(len(credits_))]
    examples = [
        {"id": f"{d}#{i}", "document": d, "correct": c} for i, (d, c) in enumerate(zip(names, credits_, strict=True))
    ]
    return {"metric": "accuracy", "higher_is_better": True, "examples": examples} | overrides


def test_bits_saved_by_hand() -> None:
    before, after = bits([4, 15], [1, 3]), bits([3, 10], [1, 3])
    # Bits saved 1 and 5 over 1 and 3 bytes: as in test_estimators, 1.5 with standard error 0.25.
    effect = learned(before, after)
    assert (effect.value, effect.stderr, effect.n, effect.unit) == (
        pytest.approx(1.5),
        pytest.approx(0.25),
        2,
        "bits per byte",
    )
    assert effect.low == pytest.approx(1.5 - 1.959964 * 0.25)
    assert effect.high == pytest.approx(1.5 + 1.959964 * 0.25)
    lost = forgotten(before, after)
    assert lost.value == pytest.approx(-1.5)
    assert (lost.low, lost.high) == (pytest.approx(-effect.high), pytest.approx(-effect.low))


def test_credit_gained_by_hand() -> None:
    effect = learned(choice([0, 0, 1, 1]), choice([1, 1, 1, 0]))
    # Differences 1, 1, 0, -1: mean 0.25, s = sqrt(2.75 / 3), se = s / 2.
    assert effect.value == 0.25
    assert effect.stderr == pytest.approx(math.sqrt(2.75 / 3) / 2)


def with_nll(losses: list[float], documents: list[str] | None = None, **overrides: Any) -> dict[str, Any]:
    result = choice([1.0] * len(losses), documents, nll=sum(losses) / len(losses))
    for example, loss in zip(result["examples"], losses, strict=True):
        example["nll"] = loss
    return result | overrides


def test_loss_saved_by_hand() -> None:
    change = nll_changes(with_nll([2, 1, 3, 3], ["a", "a", "b", "b"]), with_nll([1, 0, 3, 3], ["a", "a", "b", "b"]))
    assert change is not None
    effect = estimate(change)
    # Two documents with means 1 and 0: s / sqrt(2) = 0.7071 / 1.4142 = 0.5.
    assert (effect.value, effect.stderr, effect.n, effect.unit) == (0.5, pytest.approx(0.5), 4, "nats")


@pytest.mark.parametrize("without", [choice([1.0, 1.0]), with_nll([1, 2], nll=None), bits([1, 2], [1, 1])])
def test_no_loss_no_change_of_it(without: dict[str, Any]) -> None:
    assert nll_changes(with_nll([1, 2]), without) is None
    assert nll_changes(without, with_nll([1, 2])) is None
    assert nll_changes(without, without) is None


def test_losses_of_other_questions_are_refused() -> None:
    with pytest.raises(EvalError, match="the examples differ: 0 only in the first result, 1 only in the second"):
        nll_changes(with_nll([1, 2]), with_nll([1, 2, 3]))
    with pytest.raises(EvalError, match="tokenized or cut differently"):
        nll_changes(with_nll([1], fingerprint="a"), with_nll([1], fingerprint="b"))
    with pytest.raises(EvalError, match="1 examples have no finite score"):
        nll_changes(with_nll([1]), choice([1.0], nll=1.0))


def test_questions_about_one_document_count_as_one_unit() -> None:
    same = ["a", "a", "b", "b"]
    effect = learned(choice([0, 0, 0, 0], same), choice([1, 1, 0, 0], same))
    assert effect.value == 0.5
    assert effect.stderr == pytest.approx(0.5)
    assert effect.n == 4


def test_pairing_removes_the_spread_between_documents() -> None:
    sizes = [100] * 20
    levels = np.linspace(100, 400, 20)
    effect = learned(bits(list(levels), sizes), bits(list(levels - 10), sizes))
    assert effect.value == pytest.approx(0.1)
    assert effect.stderr == pytest.approx(0, abs=1e-9)


@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(1, 1000)), min_size=1, max_size=20))
def test_nothing_changed_is_exactly_zero(units: list[tuple[float, int]]) -> None:
    result = bits([u[0] for u in units], [u[1] for u in units])
    for effect in (learned(result, result), forgotten(result, result)):
        assert effect.value == 0
        assert math.copysign(1, effect.value) == 1
        assert effect.stderr == (0 if len(units) > 1 else None)


def test_examples_are_matched_by_id_not_by_place() -> None:
    before, after = bits([4, 15, 9], [1, 3, 2]), bits([3, 10, 8], [1, 3, 2])
    shuffled = after | {"examples": after["examples"][::-1]}
    assert learned(before, shuffled) == learned(before, after)


def test_contrast_is_the_paired_difference_of_two_runs() -> None:
    before = bits([4, 15], [1, 3])
    a, b = changes(before, bits([3, 10], [1, 3])), changes(before, bits([3, 13], [1, 3]))
    difference = estimate(contrast(a, b))
    # Bits saved 1, 5 and 1, 2: differences 0, 3 over 1, 3 bytes: 0.75; residuals -0.75, 0.75.
    assert difference.value == pytest.approx(0.75)
    assert difference.stderr == pytest.approx(math.sqrt(2 * 2 * 0.75**2) / 4)
    assert estimate(contrast(b, a)).value == pytest.approx(-0.75)
    assert estimate(contrast(a, a)).value == 0


def test_average_over_independent_tasks() -> None:
    a = Estimate(value=1.0, n=10, stderr=0.3, unit="accuracy")
    b = Estimate(value=2.0, n=20, stderr=0.4, unit="accuracy")
    assert average([a, b]) == Estimate(value=1.5, n=30, stderr=0.25, unit="accuracy")
    assert average([a]) == a
    assert average([a, Estimate(value=2.0, n=1, stderr=None, unit="accuracy")]).stderr is None


def test_an_unknown_standard_error_is_null_in_json() -> None:
    assert Estimate(value=1.0, n=1, stderr=None, unit="accuracy").as_dict() == {
        "value": 1.0,
        "n": 1,
        "stderr": None,
        "low": None,
        "high": None,
        "unit": "accuracy",
    }


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (bits([1, 2], [1, 1]), bits([1], [1]), r"1 only in the first result, 0 only in the second \(d1\)"),
        (bits([1], [1]), choice([1]), "the metrics differ"),
        (bits([1], [1], fingerprint="a"), bits([1], [1], fingerprint="b"), "tokenized or cut differently"),
        (bits([1], [1]), bits([1], [1], examples=[{"id": "d0", "nll": None, "bytes": 1}]), "the model diverged"),
        (bits([1], [1], examples=[]), bits([1], [1]), "no per-example scores"),
        (bits([1], [1], metric="vibes"), bits([1], [1], metric="vibes"), "the metric 'vibes' is unknown"),
    ],
)
def test_results_that_cannot_be_paired_are_refused(before: dict[str, Any], after: dict[str, Any], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        changes(before, after)


def test_runs_evaluated_on_other_examples_are_not_contrasted() -> None:
    a, b = bits([1, 2], [1, 1]), bits([1], [1])
    with pytest.raises(EvalError, match="the examples differ"):
        contrast(changes(a, a), changes(b, b))
    with pytest.raises(EvalError, match="the metrics differ"):
        contrast(changes(b, b), changes(choice([1]), choice([1])))
    other = bits([1, 2], [1, 1], fingerprint="x")
    same = bits([1, 2], [1, 1], fingerprint="y")
    with pytest.raises(EvalError, match="tokenized or cut differently"):
        contrast(changes(other, other), changes(same, same))


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["hellaswag@200", "winogrande", "hellaswag"], ["winogrande", "hellaswag"]),
        (["hellaswag@50", "hellaswag@200"], ["hellaswag@200"]),
        (["hellaswag@9", "hellaswag@10"], ["hellaswag@10"]),
        (["hellaswag", "hellaswag:10", "hellaswag:10@5"], ["hellaswag", "hellaswag:10"]),
        (["mail@home", "mail"], ["mail@home", "mail"]),
        (["@5"], ["@5"]),
        ([], []),
    ],
)
def test_of_a_task_and_its_parts_the_largest_counts(names: list[str], kept: list[str]) -> None:
    assert without_subsets(names) == kept
    assert without_subsets(iter(names)) == kept


def harness(credit: list[float], **settings: Any) -> dict[str, Any]:
    return choice(
        credit, kind="harness", harness={"task": "x", "version": 1.0, "metric": "acc", "filter": "none"} | settings
    )


def test_results_of_the_harness_are_paired() -> None:
    effect = forgotten(harness([1, 1, 0.5, 0]), harness([1, 0, 0.25, 0]))
    assert (effect.value, effect.n, effect.unit) == (0.3125, 4, "accuracy")


def test_results_scored_in_different_ways_are_refused() -> None:
    a, b = harness([1, 0]), harness([1, 0], metric="acc_norm")
    with pytest.raises(EvalError, match=r"different ways \(version 1.0, metric acc, filter none; .* metric acc_norm"):
        changes(a, b)
    with pytest.raises(EvalError, match="scored in different ways"):
        contrast(changes(a, a), changes(b, b))
    with pytest.raises(EvalError, match="scored in different ways"):
        changes(choice([1, 0]), a)
    assert changes(a, harness([1, 0], lm_eval="0.5")).protocol == "version 1.0, metric acc, filter none"


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ("text", "no scores by id"), (["text"], "no scores by id"), ([{"nll": 1.0, "bytes": 3}], "no scores by id"), ({"a": 1}, "no scores by id"),
        ([{"id": "d0", "nll": 10**400, "bytes": 3}], "no finite score"), ([{"id": "d0", "nll": math.inf, "bytes": 3}], "no finite score"), ([{"id": "d0", "nll": 1e30, "bytes": 3}], "no finite score"),
        ([{"id": "d0", "nll": math.nan, "bytes": 3}], "no finite score"), ([{"id": "d0", "nll": 1.0, "bytes": "x"}], "no finite score"),
    ],
)  # fmt: skip
def test_examples_that_no_evaluation_writes(examples: Any, message: str) -> None:
    good = bits([1.0], [3])
    for before, after in ((good, good | {"examples": examples}), (good | {"examples": examples}, good)):
        with pytest.raises(EvalError, match=message):
            learned(before, after)


def test_a_protocol_that_is_none() -> None:
    good = bits([1.0], [3])
    assert learned(good | {"harness": 3}, good).value == 0
