"""Means over tasks: which tasks count at which point, and the numbers by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evals.arithmetic.bootstrap import estimate_mean
from evals.arithmetic.forgetting import Changes
from evals.collect.intervals import interval
from evals.collect.means import mean_change, over_run

SUITE = ("hellaswag", "arc_challenge", "winogrande")


def task(score: float, change: float | None = None, domain: str = "old", **more: Any) -> dict[str, Any]:
    arms = {"stderr": 0.01, "low": (change or 0) - 0.02, "high": (change or 0) + 0.02}
    estimate = None if change is None else {"value": change, **arms, "n": 100, "unit": "accuracy"}
    return {"kind": "harness", "domain": domain, "metric": "accuracy", "suite": None, "harness": None, "has_nll": False,
            "score": score, "change": estimate} | more  # fmt: skip


def suite(score: float, change: float | None = None, part: str = "") -> dict[str, dict[str, Any]]:
    return {f"{name}{part}": task(score, change, suite="forgetting", harness={"task": name}) for name in SUITE}


def test_points_of_a_run_are_over_the_tasks_they_share_and_its_end_over_the_whole() -> None:
    ends = {0: suite(0.7) | suite(0.8, part="@50"), 9: suite(0.5, -0.2) | suite(0.7, -0.1, part="@50")}
    found = over_run({0: ends[0], 5: suite(0.75, -0.05, part="@50"), 9: ends[9]})
    assert [point["forgetting_average"] for point in found.values()] == pytest.approx([0.8, 0.75, 0.7])
    assert [found[step]["forgotten"]["value"] for step in (5, 9)] == pytest.approx([0.05, 0.1])
    assert found[0]["forgotten"] is None
    parts = [f"{name}@50" for name in SUITE]
    assert found[0]["over"] == {"forgetting_average": parts}
    assert found[5]["over"]["forgotten"] == found[9]["over"]["forgotten"] == parts
    whole = over_run({9: ends[9]})[9]
    assert (whole["forgetting_average"], whole["forgotten"]["value"]) == pytest.approx((0.5, 0.2))
    assert whole["over"]["forgotten"] == list(SUITE)


def test_points_that_share_no_tasks_are_over_their_own() -> None:
    found = over_run({5: suite(0.75, -0.05, part="@50"), 9: suite(0.5, -0.2)})
    assert [point["forgetting_average"] for point in found.values()] == pytest.approx([0.75, 0.5])
    assert found[9]["over"]["forgotten"] == list(SUITE)


def test_a_point_that_was_not_scored_on_a_domain_does_not_count_for_what_is_shared() -> None:
    new = {"humaneval": task(0.2, 0.1, "new")}
    found = over_run({5: new, 9: new | suite(0.5, -0.2)})
    assert (found[5]["forgotten"], found[5]["forgetting_average"]) == (None, None)
    assert found[9]["forgotten"]["value"] == pytest.approx(0.2)
    assert [point["learned"]["value"] for point in found.values()] == [0.1, 0.1]


def test_a_larger_part_of_a_task_counts_alone() -> None:
    tasks = {"arc": task(0.5, -0.5), "arc@4": task(0.0, -1.0), "boolq": task(1.0, 0.0)}
    (found,) = over_run({9: tasks}).values()
    assert found["forgotten"]["value"] == 0.25
    assert found["learned"] is None


def test_the_forgetting_suite_counts_alone_where_it_is_whole() -> None:
    tasks = suite(0.5, -0.5) | {"piqa": task(0.0, -1.0)}
    assert over_run({9: tasks})[9]["forgotten"]["value"] == 0.5
    del tasks["hellaswag"]
    (found,) = over_run({9: tasks}).values()
    assert found["forgotten"]["value"] == pytest.approx(2 / 3)
    assert found["forgetting_average"] is None


def test_our_own_choices_do_not_count_in_a_learning_score_with_a_suite() -> None:
    own = {"code_choice": task(0.9, domain="new", kind="continuation_choice")}
    assert over_run({9: own})[9]["learning_score"] == 0.9
    (found,) = over_run(
        {9: own | {"humaneval": task(0.2, domain="new"), "humaneval@9": task(0.7, domain="new")}}
    ).values()
    assert (found["learning_score"], found["over"]) == (0.2, {"learning_score": ["humaneval"]})


def test_bits_per_byte_are_the_effects_of_a_run_that_has_them() -> None:
    change = {"value": 0.5, "stderr": None, "low": None, "high": None, "n": 9, "unit": "bits per byte"}
    bits = task(1.5, domain="new", metric="bits_per_byte") | {"change": change}
    (found,) = over_run({9: {"code": bits, "humaneval": task(0.2, 0.1, "new")}}).values()
    assert found["learned"] == change
    assert (found["learned_accuracy"]["value"], found["over"]["learned_accuracy"]) == (0.1, ["humaneval"])


def test_a_run_with_both_in_no_single_metric_has_each_in_its_own() -> None:
    bits = {"value": 0.3, "stderr": 0.01, "low": 0.28, "high": 0.32, "n": 9, "unit": "bits per byte"}
    new = {"code": task(1.1, None, "new", kind="bits_per_byte", metric="bits_per_byte") | {"change": bits}}
    (found,) = over_run({9: new | suite(0.5, -0.2)}).values()
    assert (found["learned"]["value"], found["learned"]["unit"]) == (0.3, "bits per byte")
    assert (found["forgotten"]["value"], found["forgotten"]["unit"]) == (pytest.approx(0.2), "accuracy")
    # With an accuracy in the new domain there is one that has both.
    (found,) = over_run({9: new | suite(0.5, -0.2) | {"gsm8k": task(0.3, 0.1, "new")}}).values()
    assert (found["learned"]["value"], found["learned"]["unit"]) == (0.1, "accuracy")


def test_calibration_is_over_the_largest_part_and_unknown_where_one_is() -> None:
    asked = {"has_nll": True, "ece": 0.1, "posterior": {"nll": 0.5}}
    tasks = {"a": task(0.5, nll=1.0, **asked), "a@9": task(0.5, nll=9.0, **asked), "b": task(0.5, nll=2.0, **asked)}
    (found,) = over_run({9: tasks | {"gsm8k": task(0.5)}}).values()
    assert (found["calibration"]["old_nll"], found["calibration"]["old_posterior_nll"]) == (1.5, 0.5)
    tasks["b"]["nll"] = None
    assert over_run({9: tasks})[9]["calibration"]["old_nll"] is None
    assert over_run({9: tasks})[9]["calibration"]["new_nll"] is None


def test_the_interval_of_a_mean_is_near_the_bootstraps_over_all_tasks() -> None:
    rng = np.random.default_rng(5)
    paired = []
    for count, rate in ((400, 0.3), (300, 0.6), (150, 0.2)):
        ids = tuple(map(str, range(count)))
        deltas = rng.choice([-1.0, 0.0, 1.0], count, p=[rate / 3, 1 - rate, 2 * rate / 3])
        paired.append(Changes("accuracy", ids, deltas, np.ones(count), ids))
    theirs = estimate_mean(paired)
    ends = [interval(each) for each in paired]
    values = [float(each.deltas.mean()) for each in paired]
    ours = mean_change(
        [{"value": v, "stderr": 0.0, "low": low, "high": high, "n": 1, "unit": "accuracy"}
         for v, (low, high) in zip(values, ends, strict=True)]
    )  # fmt: skip
    width = theirs.interval[1] - theirs.interval[0]
    assert (ours["low"], ours["high"]) == pytest.approx(theirs.interval, abs=0.06 * width)


def test_what_one_change_lacks_the_mean_lacks() -> None:
    known = {"value": 0.25, "stderr": 0.3, "low": 0.0, "high": 0.5, "n": 9, "unit": "accuracy"}
    both = mean_change([known, known | {"stderr": 0.4}])
    assert (both["value"], both["n"], both["stderr"]) == pytest.approx((0.25, 18, 0.25))
    assert (both["low"], both["high"]) == pytest.approx((0.25 - 0.25 / 2**0.5, 0.25 + 0.25 / 2**0.5))
    less = mean_change([known, known | {"stderr": None, "low": None, "high": None}])
    assert (less["value"], less["stderr"], less["low"], less["high"]) == (0.25, None, None, None)
