"""Which run began with which, and what was kept through a chain of stages."""

from __future__ import annotations

from typing import Any

import pytest

from evals.collect.lineage import link, stages


def run(name: str, **fields: Any) -> dict[str, Any]:
    defaults = {"dir": None, "branch_from": None, "init_from": None, "base": "models/base", "data": None, "points": []}
    return {"id": name} | defaults | fields


def linked(*runs: dict[str, Any]) -> dict[str, tuple[str | None, str | None]]:
    link(runs, {each["id"]: f"/now/{each['id']}" for each in runs})
    return {each["id"]: (each["parent"], each["link"]) for each in runs}


def test_links_by_the_folder_as_it_was_called_and_as_it_is() -> None:
    found = linked(
        run("a", dir="runs/a"),
        run("branch", branch_from="runs/a/checkpoints/200"),
        run("stage", base="/now/a/export"),
        run("adapter", init_from="./runs/a/export/"),
        run("both", branch_from="runs/branch/checkpoints/1", base="runs/a/export", dir="runs/both"),
        run("own", base="runs/own/export", dir="runs/own"),
        run("similar", base="runs/ab/export"),
    )
    assert found == {
        "a": (None, None),
        "branch": ("a", "branch"),
        "stage": ("a", "stage"),
        "adapter": ("a", "stage"),
        "both": ("a", "stage"),
        "own": (None, None),
        "similar": (None, None),
    }


def point(step: int, **scores: tuple[float, str]) -> dict[str, Any]:
    tasks = {
        name: {
            "domain": domain,
            "metric": "accuracy",
            "higher_is_better": True,
            "score": score,
            "n": 100,
            "chance": 0.0,
        }
        for name, (score, domain) in scores.items()
    }
    return {"step": step, "tasks": tasks}


def chain() -> list[dict[str, Any]]:
    first = run("first", dir="r/first", points=[
        point(0, code=(0.1, "new"), common=(0.8, "old")),
        point(9, code=(0.5, "new"), common=(0.6, "old")),
    ])  # fmt: skip
    second = run("second", base="r/first/export", points=[
        point(0, code=(0.5, "old"), common=(0.6, "old"), maths=(0.2, "new")),
        point(9, code=(0.3, "old"), common=(0.5, "old"), maths=(0.7, "new")),
    ])  # fmt: skip
    runs = [first, second]
    linked(*runs)
    return runs


def test_retention_and_backward_transfer() -> None:
    (found,) = stages(chain())
    assert (found["runs"], found["problem"]) == (["first", "second"], None)
    tasks = {task["task"]: task for task in found["tasks"]}
    assert (tasks["code"]["taught"], tasks["maths"]["taught"], tasks["common"]["taught"]) == (0, 1, None)
    assert tasks["code"]["scores"] == [0.5, 0.3]
    assert tasks["maths"]["scores"] == [0.2, 0.7]  # what the first stage made of it, from step 0 of the second
    assert tasks["code"]["retention"] == pytest.approx(0.6)
    assert tasks["common"]["retention"] == pytest.approx(0.5 / 0.8)
    assert found["means"]["accuracy"]["backward"]["value"] == pytest.approx(-0.2)
    assert found["means"]["accuracy"]["base_backward"]["value"] == pytest.approx(-0.3)


def test_chains_without_scores_and_circles_are_no_chains() -> None:
    runs = chain()
    runs[0]["points"] = []
    assert stages(runs) == []
    circle = [run("a", dir="r/a", base="r/b/export"), run("b", dir="r/b", base="r/a/export")]
    linked(*circle)
    assert stages(circle) == []


def test_a_run_on_the_data_of_the_one_before_is_a_continuation_and_one_from_a_common_base_is_not() -> None:
    runs = [
        run("base", dir="r/base", data=["prose"]),
        run("a", dir="r/a", base="r/base/export", data=["code"]),
        run("more", base="r/a/export", data=["code"]),
        run("next", base="r/a/export", data=["maths"]),
        run("unknown", base="r/a/export"),
        run("branch", branch_from="r/a/checkpoints/5", data=["code"]),
        run("adapter", init_from="elsewhere/export", data=["maths"]),
    ]
    linked(*runs)
    assert [each["id"] for each in runs if each["is_continuation"]] == ["more", "branch", "adapter"]
