"""Spreads and fronts of small sets of runs, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from evals.collect.comparisons import pareto, spreads


def run(name: str, *places: tuple[float, float], unit: str = "accuracy", **fields: Any) -> dict[str, Any]:
    def effect(value: float) -> dict[str, Any]:
        return {"value": value, "stderr": 0.1, "low": None, "high": None, "n": 9, "unit": unit}

    points = [
        {"step": 100 * i, "learned": effect(learned), "forgotten": effect(forgotten), "learning_score": None,
         "forgetting_average": None, "calibration": {"new_nll": 2 * learned, "old_nll": None},
         "over": {"learned": ["code"], "forgotten": ["prose"]}}
        for i, (learned, forgotten) in enumerate(places, 1)
    ]  # fmt: skip
    defaults = {
        "method": "LoRA",
        "rank": 16,
        "status": "done",
        "is_continuation": False,
        "is_diverged": False,
        "base_fingerprint": "b",
        "base": "models/b",
        "lr": 1e-4,
        "batch_rows": 8,
        "seed": 1,
        "adapter": "lora",
    }
    return {"id": name, "points": points, "final": points[-1] if points else None} | defaults | fields


def by_metric(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {entry["metric"]: entry for entry in spreads(runs)}


def test_spread_over_the_runs_that_ended() -> None:
    runs = [
        run("a", (0.9, 0.9), (0.3, 0.1)),
        run("b", (0.1, 0.3)),
        run("c", (0.2, 0.2)),
        run("going", (9, 9), status="running"),
        run("gone", (9, 9), status="failed"),
        run("empty"),
        run("branch", (9, 9), is_continuation=True),
        run("bad", (0.5, 0.5), status="failed", is_diverged=True),
    ]
    found = by_metric(runs)
    assert set(found) == {"learned", "forgotten", "new_nll"}
    learned = found["learned"]
    assert (learned["best"], learned["median"], learned["worst"], learned["n"], learned["diverged"]) == (
        0.3,
        0.2,
        0.1,
        3,
        1,
    )
    assert (learned["runs"], learned["values"], learned["diverged_runs"]) == (["a", "b", "c"], [0.3, 0.1, 0.2], ["bad"])
    assert learned["unscored_runs"] == ["empty"]
    assert (found["forgotten"]["best"], found["forgotten"]["worst"]) == (0.1, 0.3)
    assert (found["new_nll"]["best"], found["new_nll"]["unit"]) == (0.2, "nats")


def test_methods_ranks_and_units_are_apart() -> None:
    runs = [
        run("a", (1, 1)),
        run("b", (2, 2), rank=64),
        run("c", (3, 3), method="full finetuning", rank=None),
        run("d", (4, 4), unit="bits per byte"),
    ]
    found = [(e["method"], e["rank"], e["unit"], e["values"]) for e in spreads(runs) if e["metric"] == "learned"]
    assert found == [
        ("LoRA", 16, "accuracy", [1]),
        ("LoRA", 16, "bits per byte", [4]),
        ("LoRA", 64, "accuracy", [2]),
        ("full finetuning", None, "accuracy", [3]),
    ]


def test_front_of_what_can_be_compared() -> None:
    runs = [
        run("a", (0.1, 0.05), (0.2, 0.1)),
        run("b", (0.15, 0.1), (0.3, 0.3)),
        run("other base", (9, 0), base_fingerprint="c"),
        run("other unit", (9, 0), unit="bits per byte"),
    ]
    assert pareto(runs) == [("a", 100), ("a", 200), ("b", 200)]


def test_without_effects_there_is_no_front() -> None:
    half = run("a", (1, 1))
    half["points"][0]["learned"] = None
    assert pareto([half]) == []
    assert spreads([]) == []


def test_a_common_base_is_no_continuation_and_other_bases_have_other_boxes() -> None:
    runs = [
        run("a", (1, 1), parent="base", link="stage"),
        run("b", (2, 2), parent="base", link="stage"),
        run("c", (9, 9), base_fingerprint="c"),
        run("d", (5, 5), base_fingerprint=None),
    ]
    found = {(e["base"], e["method"]): e["values"] for e in spreads(runs) if e["metric"] == "learned"}
    assert found == {("b", "LoRA"): [1, 2], ("c", "LoRA"): [9], ("models/b", "LoRA"): [5]}


def test_settings_and_seeds_are_apart() -> None:
    runs = [
        run("a1", (0.2, 0.0)),
        run("a2", (0.4, 0.0), seed=2),
        run("b1", (0.6, 0.0), lr=1e-3),
        run("b2", (0.6, 0.0), lr=1e-3, seed=2),
        run("nan", (0.0, 0.0), lr=1e-2, is_diverged=True),
    ]
    found = by_metric(runs)["learned"]
    assert found["range"] == pytest.approx(0.4)
    settings = found["settings"]
    assert (settings["worst"], settings["best"], settings["n"], settings["diverged"]) == pytest.approx((0.3, 0.6, 2, 1))
    assert found["seed_deviation"] == pytest.approx((0.02 / 2) ** 0.5)


def test_the_end_counts_in_a_spread_and_not_the_shared_tasks() -> None:
    one = run("a", (0.2, 0.1))
    one["final"] = one["points"][0] | {"learned": one["points"][0]["learned"] | {"value": 0.25}}
    assert by_metric([one])["learned"]["values"] == [0.25]


def test_points_over_other_tasks_have_fronts_of_their_own() -> None:
    runs = [run("a", (0.1, 0.05), (0.2, 0.1)), run("b", (0.9, 0.0))]
    runs[1]["points"][0]["over"] = {"learned": ["code"], "forgotten": ["prose@50"]}
    assert pareto(runs) == [("a", 100), ("a", 200)]


def test_runs_that_differ_in_another_axis_of_their_sweep_are_no_seeds_of_one_setting() -> None:
    def cell(decay: float) -> dict[str, Any]:
        return {"sweep": "s", "name": "c", "values": {"optim.weight_decay": decay, "optim.lr": 1e-4, "run.seed": 1}}

    runs = [
        run("a", (1.0, 0.0), cell=cell(0.0)),
        run("b", (3.0, 0.0), cell=cell(0.1)),
        run("c", (5.0, 0.0), cell=cell(0.1), seed=2),
    ]
    learned = by_metric(runs)["learned"]
    assert (learned["settings"]["n"], learned["settings"]["worst"], learned["settings"]["best"]) == (2, 1.0, 4.0)
    assert learned["seed_deviation"] == pytest.approx(2**0.5)


def test_runs_from_scratch_have_a_named_base() -> None:
    bases = {
        entry["base"]
        for entry in spreads([run("a", (1.0, 0.0), is_from_scratch=True, base=None, base_fingerprint=None)])
    }
    assert bases == {"random weights"}
