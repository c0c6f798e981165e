"""Sequences of stages: the matrix's quantities by hand and against their formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.arithmetic.stages import Stage, histories, transfer
from evals.errors import EvalError


def scored(score: float | None, chance: float | None = 0.25, **overrides: Any) -> dict[str, Any]:
    """A result without examples."""
    return {
        "metric": "accuracy",
        "higher_is_better": True,
        "score": score,
        "chance": chance,
        "n": 100,
        "domain": "new",
    } | overrides


def answered(credit: list[float], **overrides: Any) -> dict[str, Any]:
    examples = [{"id": str(i), "correct": c} for i, c in enumerate(credit)]
    return scored(float(np.mean(credit)), n=len(credit), examples=examples, **overrides)


def row(**scores: float) -> dict[str, dict[str, Any]]:
    return {task: scored(score) for task, score in scores.items()}


BASE = row(code=0.30, maths=0.25, law=0.40, general=0.75)
STAGES = [
    Stage(name="code", results=row(code=0.65, maths=0.35, law=0.38, general=0.70), teaches=("code",)),
    Stage(name="maths", results=row(code=0.55, maths=0.75, law=0.36, general=0.60), teaches=("maths",)),
    Stage(name="law", results=row(code=0.45, maths=0.60, law=0.80, general=0.55), teaches=("law",)),
]


def test_histories_by_hand() -> None:
    found = {history.task: history for history in histories(STAGES, BASE)}
    code, maths, law, general = (found[task] for task in ("code", "maths", "law", "general"))
    assert (code.taught, code.base, code.scores) == (0, 0.30, (0.65, 0.55, 0.45))
    assert code.retention == pytest.approx(0.20 / 0.40)
    assert code.retention_raw == pytest.approx(0.45 / 0.65)
    assert code.kept_gain == pytest.approx(0.15 / 0.35)
    assert code.backward is not None
    assert (code.backward.value, code.backward.stderr, code.backward.n) == (pytest.approx(-0.20), None, 100)
    assert code.forgetting == pytest.approx(0.20)
    assert code.forward is None
    assert maths.forward is not None
    assert maths.forward.value == pytest.approx(0.10)
    assert law.forward is not None
    assert law.forward.value == pytest.approx(-0.04)
    assert (law.retention, law.kept_gain, law.forgetting) == (1, 1, None)
    assert law.backward is not None
    assert law.backward.value == 0
    assert (general.taught, general.kept_gain, general.forward) == (None, None, None)
    assert general.retention == pytest.approx(0.30 / 0.50)
    assert general.forgetting == pytest.approx(0.20)


def test_means_by_hand() -> None:
    means = transfer(STAGES, BASE)
    assert list(means) == ["accuracy"]
    found = means["accuracy"]
    assert found.average == pytest.approx((0.45 + 0.60 + 0.80) / 3)
    assert found.backward is not None
    assert found.backward.value == pytest.approx((-0.20 - 0.15) / 2)
    assert found.forward is not None
    assert found.forward.value == pytest.approx((0.10 - 0.04) / 2)
    assert found.forgetting == pytest.approx((0.20 + 0.15) / 2)
    assert found.base_backward is not None
    assert found.base_backward.value == pytest.approx(-0.20)


matrices = st.integers(2, 5).flatmap(
    lambda n: st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=n + 1, max_size=n + 1)
)


@given(matrices)
def test_means_are_the_published_formulas(matrix: list[list[float]]) -> None:
    """Rows 1 to T of the papers are those after the base's."""
    count = len(matrix[0])
    rows = [{f"t{j}": scored(score) for j, score in enumerate(scores)} for scores in matrix]
    stages = [Stage(name=f"s{i}", results=rows[i + 1], teaches=(f"t{i}",)) for i in range(count)]
    found = transfer(stages, rows[0])["accuracy"]
    r = np.array(matrix[1:])
    last = count - 1
    assert found.average == pytest.approx(r[last].mean())
    assert found.backward is not None
    assert found.backward.value == pytest.approx(np.mean([r[last, j] - r[j, j] for j in range(last)]))
    assert found.forward is not None
    assert found.forward.value == pytest.approx(np.mean([r[j - 1, j] - matrix[0][j] for j in range(1, count)]))
    assert found.forgetting == pytest.approx(np.mean([max(r[j:last, j]) - r[last, j] for j in range(last)]))


def test_examples_give_paired_intervals() -> None:
    before = [1.0, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    after = [1.0, 1, 1, 1, 0, 0, 0, 0, 0, 1]
    stages = [
        Stage(name="a", results={"x": answered(before), "y": answered([0.0] * 10)}, teaches=("x",)),
        Stage(name="b", results={"x": answered(after), "y": answered([1.0] * 10)}, teaches=("y",)),
    ]
    backward = histories(stages)[0].backward
    assert backward is not None
    assert backward.value == pytest.approx(-0.1)
    differences = np.array(after) - before
    assert backward.stderr == pytest.approx(differences.std(ddof=1) / math.sqrt(10))
    assert backward.bootstrap_low is not None
    assert backward.bootstrap_low < -0.1 < (backward.bootstrap_high or 0)
    found = transfer(stages)["accuracy"]
    assert found.backward == backward
    assert (found.forward, found.base_backward) == (None, None)


def test_bits_are_better_when_fewer() -> None:
    def bits(score: float) -> dict[str, Any]:
        return scored(score, None, metric="bits_per_byte", higher_is_better=False)

    stages = [
        Stage(name="a", results={"text": bits(1.5)}, teaches=("text",)),
        Stage(name="b", results={"text": bits(1.2)}),
        Stage(name="c", results={"text": bits(1.8)}),
    ]
    history = histories(stages, {"text": bits(2.0)})[0]
    assert (history.retention, history.retention_raw) == (None, None)
    assert history.kept_gain == pytest.approx(0.2 / 0.5)
    assert history.forgetting == pytest.approx(0.6)
    assert history.backward is not None
    assert (history.backward.value, history.backward.unit) == (pytest.approx(-0.3), "bits per byte")


def test_checkpoints_of_one_run_are_stages_that_teach_at_the_end() -> None:
    stages = [Stage(name=f"step {i}", results=row(general=score)) for i, score in enumerate((0.7, 0.74, 0.6))]
    history = histories(stages, row(general=0.72))[0]
    assert history.forgetting == pytest.approx(0.14)
    assert history.retention_raw == pytest.approx(0.6 / 0.72)
    assert transfer(stages)["accuracy"].base_backward is None


@pytest.mark.parametrize("missing", [None, scored(None), scored(math.nan)])
def test_what_was_not_scored_is_none(missing: dict[str, Any] | None) -> None:
    middle = {} if missing is None else {"code": missing}
    stages = [
        Stage(name="a", results=row(code=0.6), teaches=("code",)),
        Stage(name="b", results=middle),
        Stage(name="c", results=row(code=0.5)),
    ]
    history = histories(stages)[0]
    assert (history.base, history.scores, history.kept_gain) == (None, (0.6, None, 0.5), None)
    assert history.forgetting == pytest.approx(0.1)
    ended = histories([*stages, Stage(name="d", results=middle)])[0]
    assert (ended.scores[-1], ended.retention, ended.backward, ended.forgetting) == (None, None, None, None)
    assert transfer([*stages, Stage(name="d", results=middle)])["accuracy"].average is None


def test_a_task_no_better_than_chance_has_no_retention() -> None:
    stages = [Stage(name="a", results=row(code=0.25), teaches=("code",)), Stage(name="b", results=row(code=0.3))]
    history = histories(stages, row(code=0.25))[0]
    assert (history.retention, history.retention_raw, history.kept_gain) == (None, pytest.approx(1.2), None)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "no stages"),
        ([Stage(name="a", results={}, teaches=("code",))], "stage 'a': teaches 'code' but was not scored on it"),
        (
            [Stage(name=n, results=row(code=1), teaches=("code",)) for n in "ab"],
            "stage 'b': 'code' is taught by 'a' already",
        ),
        (
            [
                Stage(name="a", results={"x": answered([1, 0])}, teaches=("x",)),
                Stage(name="b", results={"x": answered([1, 0, 1])}),
            ],
            "task 'x': the examples differ",
        ),
    ],
)
def test_stages_that_cannot_be_compared(stages: list[Stage], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        histories(stages)
