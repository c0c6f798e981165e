"""A checkpoint's summary against the arithmetic of single comparisons."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.arithmetic.forgetting import changes, estimate
from evals.collect.points import Evaluation, credits_of, quick_changes, read_evaluation, summarize
from evals.errors import EvalError
from evals.report.methods import measure
from evals.results import load_run


def entry(credits_: list[Any], domain: str = "old", **more: Any) -> dict[str, Any]:
    examples = [{"id": str(i), "correct": c, "nll": 0.5} for i, c in enumerate(credits_)]
    known = [c for c in credits_ if isinstance(c, int | float)]
    return {"kind": "harness", "metric": "accuracy", "higher_is_better": True, "domain": domain, "fingerprint": "f",
            "score": float(np.mean(known)), "n": len(credits_), "examples": examples} | more  # fmt: skip


def evaluation(**tasks: dict[str, Any]) -> Evaluation:
    return Evaluation(tasks={name.replace("_at_", "@"): task for name, task in tasks.items()})


credit_lists = st.integers(1, 30).flatmap(
    lambda n: st.tuples(*[st.lists(st.sampled_from([0, 1, 0.0, 1.0, 0.25]), min_size=n, max_size=n)] * 2)
)


@given(credit_lists, st.booleans())
def test_quick_changes_are_changes(pair: tuple[list[float], list[float]], is_higher_better: bool) -> None:
    before, after = (entry(list(each), higher_is_better=is_higher_better) for each in pair)
    quick = quick_changes("t", evaluation(t=before), evaluation(t=after))
    slow = changes(before, after)
    assert quick is not None
    assert (quick.ids, quick.groups, quick.metric, quick.fingerprint) == (slow.ids, slow.groups, slow.metric, "f")
    assert np.array_equal(quick.deltas, slow.deltas)
    assert np.array_equal(quick.weights, slow.weights)


@pytest.mark.parametrize(
    "broken",
    [
        {"metric": "bits_per_byte"},
        {"examples": []},
        {"examples": None},
        {"examples": [1]},
        {"examples": [{"id": "0"}]},
        {"examples": [{"id": 0, "correct": 1}]},
        {"examples": [{"id": "0", "correct": None}]},
        {"examples": [{"id": "0", "correct": "1"}]},
        {"examples": [{"id": "0", "correct": True}]},
        {"examples": [{"id": "0", "correct": math.nan}]},
        {"kind": "continuation_choice"},
        {"examples": [{"id": "0", "correct": 1}, {"id": "0", "correct": 1}]},
    ],
)
def test_other_examples_take_the_long_way(broken: dict[str, Any]) -> None:
    assert credits_of(entry([1]) | broken) is None


def test_other_questions_take_the_long_way_and_say_so() -> None:
    start, now = evaluation(t=entry([1, 0])), evaluation(t=entry([1, 0], fingerprint="g"))
    assert quick_changes("t", start, now) is None
    (note,) = summarize(now, start)["notes"]
    assert note.startswith("task 't': the same examples were tokenized or cut differently")
    shorter = evaluation(t=entry([1, 0, 1]))
    assert (
        "the examples differ: 0 only in the first result, 1 only in the second" in summarize(shorter, start)["notes"][0]
    )


def test_changes_are_those_of_the_report(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    path = make_run(tmp_path, "a", "monteclora")
    found = summarize(read_evaluation([path / "evals" / "100.json"]), read_evaluation([path / "evals" / "0.json"]))
    method = measure(load_run(path))
    for name, paired in method.changes.items():
        theirs, ours = estimate(paired), found["tasks"][name]["change"]
        assert (ours["value"], ours["stderr"]) == pytest.approx((theirs.value, theirs.stderr), rel=1e-5)
        assert ours["low"] <= ours["value"] <= ours["high"]
    assert "examples" not in json.dumps(found)


def test_answers_that_are_no_numbers_and_cut_prompts_are_told() -> None:
    broken = entry([0, 0], not_finite=1412, truncated=3)
    found = summarize(evaluation(arc=broken, boolq=entry([1, 1], not_finite=0, truncated=0)), None)
    assert found["flaws"] == {
        "truncated": ["3 prompts of arc were cut to the model's length"],
        "not_finite": ["1,412 answers of arc are not numbers: the model diverged"],
    }
    assert (found["tasks"]["arc"]["not_finite"], found["tasks"]["boolq"]["not_finite"]) == (1412, 0)


def test_another_protocol_is_not_paired() -> None:
    start = evaluation(piqa=entry([1, 1], harness={"task": "piqa", "metric": "acc"}))
    now = evaluation(piqa=entry([1, 0], harness={"task": "piqa", "metric": "acc_norm"}))
    found = summarize(now, start)
    assert found["tasks"]["piqa"]["change"] is None
    assert found["notes"]


def test_diverged_scores_are_null_and_noted() -> None:
    start = evaluation(t=entry([1, 0]))
    found = summarize(evaluation(t=entry([1, None], score=math.nan, nll=math.inf)), start)
    assert (found["tasks"]["t"]["score"], found["tasks"]["t"]["nll"], found["tasks"]["t"]["change"]) == (
        None,
        None,
        None,
    )
    assert "1 examples have no finite score" in found["notes"][0]


def test_examples_of_another_kind_are_noted() -> None:
    found = summarize(evaluation(t=entry([1], examples=[{"name": "x", "correct": 1}])), evaluation(t=entry([1])))
    assert found["notes"] == ["task 't': the result's examples are no scores by id; delete its file and evaluate again"]


def test_files_of_a_step_merge_and_broken_ones_are_named(tmp_path: Path) -> None:
    contents = {
        "5.json": {"schema": 1, "tasks": {"a": {"score": 1}}},
        "5.b.json": {"schema": 2, "tasks": {"a": {"score": 2}, "b": {"score": 2}}},
        "5.c.json": {"schema": "x", "tasks": {"c": {}}},
        "5.d.json": {"tasks": 3},
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "5.e.json").write_text('{"tasks": {"a"')
    (tmp_path / "5.f.json").write_text('{"tasks": ' + "[" * 99_999)
    names = [*contents, "5.e.json", "5.f.json", "5.g.json"]
    found = read_evaluation([tmp_path / name for name in names])
    assert found.tasks == {"a": {"score": 1}, "b": {"score": 2}}
    assert found.notes == ("5.b.json has schema 2, newer than 1: shown as far as it is understood",)
    reasons = {Path(path).name: reason for path, reason in found.skipped}
    assert list(reasons) == names[2:]
    assert reasons["5.c.json"] == "schema 'x' is not known here"
    assert "no tasks in this file" in reasons["5.d.json"]
    assert "not JSON" in reasons["5.e.json"]
    assert "cannot be read (No such file or directory)" in reasons["5.g.json"]
    # What is away now may be back the next time; what is broken stays it.
    assert not found.is_settled
    assert read_evaluation([tmp_path / name for name in names[:-1]]).is_settled


def test_an_evaluation_of_only_broken_files_has_no_tasks() -> None:
    found = summarize(Evaluation(tasks={}, skipped=(("p", "r"),)), None)
    assert (found["tasks"], found["skipped"]) == ({}, [["p", "r"]])
    with pytest.raises(EvalError):
        changes({}, {})
