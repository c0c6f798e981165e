"""Specifications of tasks, as people write them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.errors import EvalError
from evals.harness.specs import parse_specs, resampled
from evals.harness.suites import SUITES, TASKS

names = st.from_regex(r"[a-z][a-z0-9_-]{0,12}", fullmatch=True).filter(lambda name: name not in SUITES)


@given(
    name=names,
    domain=st.sampled_from([None, "new", "old"]),
    shots=st.none() | st.integers(0, 99),
    examples=st.none() | st.integers(1, 10_000),
)
def test_every_part_is_read_and_the_name_says_all_but_the_domain(
    name: str, domain: str | None, shots: int | None, examples: int | None
) -> None:
    suffix = ("" if shots is None else f":{shots}") + ("" if examples is None else f"@{examples}")
    (spec,) = parse_specs([("" if domain is None else f"{domain}=") + name + suffix])
    assert (spec.name, spec.task.name) == (name + suffix, TASKS[name].name if name in TASKS else name)
    assert (spec.domain, spec.shots, spec.examples) == (domain or "old", shots, examples)


def test_a_suite_is_its_tasks() -> None:
    specs = parse_specs(["forgetting@200", "learning-code"])
    assert [spec.name for spec in specs] == ["hellaswag@200", "arc_challenge@200", "winogrande@200", "humaneval"]
    assert [spec.domain for spec in specs] == ["old", "old", "old", "new"]
    assert [spec.task.metric for spec in specs] == ["acc_norm", "acc_norm", "acc", None]
    assert {spec.suite for spec in specs[:3]} == {"forgetting"}
    assert [spec.examples for spec in specs] == [200, 200, 200, None]
    assert parse_specs(["old=learning-math"])[0].domain == "old"


def test_the_suites_are_those_of_the_studies() -> None:
    assert SUITES["forgetting"].tasks == ("hellaswag", "arc_challenge", "winogrande")
    assert len(SUITES["commonsense"].tasks) == 8
    pass_1, pass_k = TASKS["humaneval"], TASKS["humaneval-256"]
    assert (pass_1.samples, pass_1.temperature, pass_1.top_p) == (50, 0.2, 0.95)
    assert (pass_k.samples, pass_k.temperature, pass_k.top_p) == (256, 0.8, 0.95)
    assert (TASKS["gsm8k"].metric, TASKS["gsm8k"].filter) == ("exact_match", "strict-match")
    assert all(name in TASKS for suite in SUITES.values() for name in suite.tasks)


def test_a_task_of_two_suites_is_scored_once() -> None:
    specs = parse_specs(["forgetting", "commonsense"])
    assert [spec.name for spec in specs].count("hellaswag") == 1
    assert len(specs) == 3 + 5


def test_a_path_is_a_task_file_named_by_its_stem() -> None:
    (spec,) = parse_specs(["new=/some/where:with@signs=x/my_task.yaml:2@10"])
    assert spec.is_file
    assert (spec.task.name, spec.name) == ("/some/where:with@signs=x/my_task.yaml", "my_task:2@10")
    assert not parse_specs(["hellaswag"])[0].is_file


def test_all_problems_are_listed_at_once() -> None:
    texts = ["x=a", "b:some", "c@0", "", "d@", "e:1:2", "f", "f"]
    with pytest.raises(EvalError) as caught:
        parse_specs(texts)
    message = str(caught.value)
    assert "'x=a': 'x' is not a domain; use new (taught) or old" in message
    assert "'b:some': 'some' is not a number of examples in the prompt" in message
    assert "'c@0': '0' is not a number of examples to score; use 1 or more" in message
    assert "'d@': '' is not a number of examples to score" in message
    assert "'' does not have the form [DOMAIN=]NAME[:SHOTS][@EXAMPLES]" in message
    assert "'e:1:2' does not have the form" in message
    assert "f is named twice, by 'f' and 'f'; name it once" in message


@pytest.mark.parametrize("texts", [["hellaswag", "new=hellaswag"], ["forgetting", "forgetting"]])
def test_one_task_twice_is_refused(texts: list[str]) -> None:
    with pytest.raises(EvalError, match="hellaswag is named twice"):
        parse_specs(texts)


def test_other_sampling_is_another_task() -> None:
    specs = resampled(parse_specs(["forgetting", "learning-code@5"]), samples=10, temperature=0.8)
    assert [spec.name for spec in specs][-2:] == ["winogrande", "humaneval-n10-t0.8@5"]
    assert (specs[-1].task.samples, specs[-1].task.temperature, specs[-1].task.top_p) == (10, 0.8, 0.95)
    same = parse_specs(["learning-code"])
    assert resampled(same) == resampled(same, samples=50, temperature=0.2) == same


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["forgetting"], {"samples": 3}, "are for tasks that sample .humaneval, humaneval-256., and none is named"),
        (["humaneval"], {"samples": 0}, "0 samples per prompt cannot be judged; use 1 or more"),
        (["humaneval"], {"temperature": -1.0}, "-1.0 is not a temperature; use 0 for"),
    ],
)
def test_sampling_that_cannot_be_is_explained(names: list[str], settings: dict[str, float], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        resampled(parse_specs(names), **settings)  # type: ignore[arg-type]


def test_specifications_are_read_without_heavy_libraries() -> None:
    code = "import sys, evals.harness.specs, evals.harness.suites; print({'torch', 'lm_eval', 'datasets'} & set(sys.modules))"
    root = Path(__file__).parents[4]
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root).stdout == "set()\n"
