"""The report about runs that lm-evaluation-harness's tasks were scored on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.report.summary import build_report
from evals.report.write import write_report
from evals.results import write_result

SUITE = ["hellaswag", "arc_challenge", "winogrande"]
NAME = "forgetting average (HellaSwag, ARC-challenge, WinoGrande)"


def section(html: str, heading: str) -> str:
    return html[html.index(heading) :].partition("<h2>")[0]


def keep(path: Path, wanted: Callable[[str], bool]) -> None:
    """Drop the other tasks from a file of results."""
    content = json.loads(path.read_text())
    content["tasks"] = {name: task for name, task in content["tasks"].items() if wanted(name)}
    path.write_text(json.dumps(content))


def credits_of(run: Path, task: str, step: int) -> np.ndarray:
    examples = json.loads((run / "evals" / f"{step}.suites.json").read_text())["tasks"][task]["examples"]
    return np.array([example["correct"] for example in examples])


def test_the_forgetting_average_is_the_suites_mean(harness_study: Path) -> None:
    report = build_report(harness_study)
    for name, entry in report["methods"].items():
        average = entry["forgetting_average"]
        before, after = ([credits_of(harness_study / name, t, s).mean() for t in SUITE] for s in (0, 100))
        assert average["tasks"] == SUITE == entry["forgotten_means"]["accuracy"]
        assert average["before"] == pytest.approx(np.mean(before))
        assert average["after"] == pytest.approx(np.mean(after))
        assert average["forgotten"]["value"] == pytest.approx(np.mean(before) - np.mean(after))
        assert average["forgotten"] == entry["forgotten_accuracy"]
        assert average["forgotten"]["bootstrap_low"] < average["forgotten"]["value"] < average["forgotten"]["high"]
        assert set(entry["forgotten_tasks"]) == {"prose", "prose_choice", *SUITE}


def test_statements_in_accuracy_are_about_the_forgetting_average(harness_study: Path) -> None:
    statements = {
        (s["method"], s["reference"], s["quantity"], s["metric"]): s for s in build_report(harness_study)["statements"]
    }
    less = statements["lora", "none", "forgotten", "accuracy"]
    assert (less["verdict"], less["tasks"]) == ("less", SUITE)
    assert less["text"].startswith(f"LoRA forgot less than full finetuning in the {NAME}: difference")
    per_task = [
        (credits_of(harness_study / "none", t, 100) - credits_of(harness_study / "lora", t, 100)).mean() for t in SUITE
    ]
    assert less["difference"]["value"] == pytest.approx(np.mean(per_task))
    low, high = (less["difference"][f"bootstrap_{end}"] for end in ("low", "high"))
    ends = [f"{100 * end:+.1f} points".replace("-", "\N{MINUS SIGN}") for end in (low, high)]
    assert f"95 % interval [{ends[0]}, {ends[1]}]" in less["text"]
    assert statements["lora", "none", "learned", "accuracy"]["text"].count(" in accuracy: ") == 1
    assert statements["lora", "none", "learned", "bits_per_byte"]["tasks"] == ["code"]


def test_a_verdict_is_the_bootstrap_intervals(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    """Where the two intervals disagree about 0, the verdict is the bootstrap's: a few large gains among small ones."""

    def task(credit: list[float]) -> dict[str, Any]:
        examples = [{"id": str(i), "correct": c} for i, c in enumerate(credit)]
        return {
            "domain": "old",
            "metric": "accuracy",
            "higher_is_better": True,
            "score": float(np.mean(credit)),
            "n": len(credit),
            "examples": examples,
        }

    start = [0.0] * 20
    for kind, end in (("none", start), ("lora", [0.02] * 18 + [0.7] * 2)):
        run = make_run(tmp_path, kind, kind)
        write_result(run, step=0, tasks={"t": task(start)}, seconds=1.0)
        write_result(run, step=100, tasks={"t": task(end)}, seconds=1.0)
    statement = next(s for s in build_report(tmp_path)["statements"] if s["metric"] == "accuracy")
    difference = statement["difference"]
    assert difference["low"] < 0 < difference["high"]
    assert difference["bootstrap_high"] < 0
    assert statement["verdict"] == "less"


def test_methods_are_compared_on_what_both_have(harness_study: Path) -> None:
    keep(harness_study / "lora" / "evals" / "100.suites.json", lambda name: name != "winogrande")
    report = build_report(harness_study)
    lora = report["methods"]["lora"]
    assert lora["forgetting_average"] is None
    assert lora["tasks_left_out"] == {"winogrande": "not scored at step 100, only before training"}
    statement = next(
        s
        for s in report["statements"]
        if (s["method"], s["quantity"], s["metric"]) == ("lora", "forgotten", "accuracy")
    )
    assert set(statement["tasks"]) == {"prose_choice", "hellaswag", "arc_challenge"}
    assert statement["text"].startswith("LoRA forgot less than full finetuning in accuracy: ")


def test_the_page_shows_the_suites(harness_study: Path) -> None:
    report, path = write_report(harness_study)
    html = path.read_text()
    tests = section(html, "Every test, before")
    assert (
        "old, acc_norm, higher is better; hellaswag of lm-eval, no examples in the prompt; guessing scores 25 %"
        in tests
    )
    assert "new, pass@1 of 50 programs, higher is better; humaneval of lm-eval, no examples in the prompt<" in tests
    assert "Forgetting average<small>mean accuracy of hellaswag, arc_challenge, winogrande</small>" in tests
    for entry in report["methods"].values():
        average = entry["forgetting_average"]
        cell = f'<span class="bad">{100 * average["after"]:.1f} %</span><small>lost +'
        assert cell in tests
        ends = [f"{100 * average['forgotten'][f'bootstrap_{end}']:+.1f}" for end in ("low", "high")]
        assert f"<small>[{ends[0]}, {ends[1]}]</small>" in tests
    assert f"Accuracy is forgotten in the {NAME}; other old tests do not count in it." in html
    assert "not scored on the same tests" not in html
    assert "Tests left out" not in html
    assert "could not be used" not in html


def test_the_page_shows_programs(harness_study: Path) -> None:
    programs = section(write_report(harness_study)[1].read_text(), "Programs that pass")
    assert "humaneval <small>new, 164 problems, 50 programs for each</small>" in programs
    for column in ("pass@1", "pass@10", "Different", "of these pass", "of these fail"):
        assert f"<th>{column}</th>" in programs
    assert programs.count("<tr>") == 1 + 4
    assert programs.count('data-label="of these pass">4.2</td>') == 4
    assert programs.count('data-label="of these fail">\N{EN DASH}</td>') == 4


def test_calibration_of_many_tests_is_summed_up(harness_study: Path) -> None:
    report, path = write_report(harness_study)
    calibration = section(path.read_text(), "confidence be trusted")
    assert (
        "<h3>Old text <small>means over arc_challenge, hellaswag, prose_choice, winogrande</small></h3>" in calibration
    )
    assert "<h3>New text" not in calibration
    assert calibration.index("<h3>code_choice") < calibration.index("<details>") < calibration.index("<h3>hellaswag")
    for entry in report["methods"].values():
        tasks = [task for task in entry["final"].values() if task["domain"] == "old" and task.get("nll") is not None]
        assert entry["calibration"]["final"]["old"]["nll"] == pytest.approx(np.mean([t["nll"] for t in tasks]))
        assert f"{entry['calibration']['final']['old']['nll']:.3f}" in calibration


def test_the_page_says_what_is_missing_and_broken(harness_study: Path) -> None:
    keep(harness_study / "lora" / "evals" / "100.suites.json", lambda name: name != "humaneval")
    (harness_study / "none" / "evals" / "0.more.json").write_text("{")
    content = json.loads((harness_study / "none" / "evals" / "0.suites.json").read_text())
    content["tasks"]["winogrande"] |= {"truncated": 3, "not_finite": 1}
    (harness_study / "none" / "evals" / "0.suites.json").write_text(json.dumps(content))
    report, path = write_report(harness_study)
    html = path.read_text()
    assert "The runs were not scored on the same tests: a mean over tests is over each run&#x27;s own." in html
    assert "<li>LoRA: humaneval: not scored at step 100, only before training</li>" in html
    assert re.search(r"could not be used:</p><ul[^>]*><li>Full finetuning: none/evals/0\.more\.json: not JSON", html)
    assert "3 prompts cut to the model&#x27;s length; 1 answers without a finite score" in html
    assert report["methods"]["none"]["damaged"][0].startswith("none/evals/0.more.json: ")


def test_suites_alone_make_a_page_in_accuracy(harness_study: Path) -> None:
    for path in harness_study.glob("*/evals/*.json"):
        keep(path, lambda name: name in ("humaneval", *SUITE))
    report, path = write_report(harness_study)
    assert report["metric"] == "accuracy"
    assert report["headline"] == ("Compared with full finetuning, LoRA and MonteCLoRA learned less and forgot less.")
    html = path.read_text()
    assert "(<b>humaneval</b>)" in html
    assert "(<b>arc_challenge, hellaswag, winogrande</b>)" in html
    assert "how much better does it answer the new kind" in html


def test_the_larger_part_of_a_task_counts(harness_study: Path) -> None:
    for name in ("none", "lora", "monteclora"):
        for step in (0, 100):
            path = harness_study / name / "evals" / f"{step}.suites.json"
            tasks = json.loads(path.read_text())["tasks"]
            part = tasks["hellaswag"] | {"score": 0.0, "examples": tasks["hellaswag"]["examples"][:50]}
            write_result(harness_study / name, step=step, tasks={"hellaswag@50": part}, seconds=1.0, name="quick")
    entry = build_report(harness_study)["methods"]["lora"]
    assert entry["forgetting_average"]["tasks"] == SUITE
    assert entry["forgotten_accuracy"]["n"] == 600
    assert "hellaswag@50" in entry["forgotten_tasks"]
