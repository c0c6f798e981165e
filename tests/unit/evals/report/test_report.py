"""The report: its numbers against independent computation, its words against its numbers, its page and files."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from evals.errors import EvalError
from evals.report.summary import build_report, relative_change
from evals.report.write import summary_table, write_report
from evals.results import write_result


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def per_example(run: Path, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Bits saved and bytes of each document, read from the files without the package."""
    before, after = (json.loads((run / "evals" / f"{s}.json").read_text())["tasks"][task]["examples"] for s in (0, 100))
    saved = [(b["nll"] - a["nll"]) / math.log(2) for b, a in zip(before, after, strict=True)]
    return np.array(saved), np.array([b["bytes"] for b in before])


def test_learned_and_forgotten_are_the_files_differences(study: Path) -> None:
    report = build_report(study)
    assert list(report["methods"]) == ["none", "lora", "monteclora"]
    for name, entry in report["methods"].items():
        for key, task, sign in (("learned", "code", 1), ("forgotten", "prose", -1)):
            saved, size = per_example(study / name, task)
            value = sign * saved.sum() / size.sum()
            residual = saved - saved.sum() / size.sum() * size
            stderr = math.sqrt(100 / 99 * (residual**2).sum()) / size.sum()
            assert entry[key]["value"] == pytest.approx(value)
            assert entry[key]["stderr"] == pytest.approx(stderr)
            assert (entry[key]["n"], entry[key]["unit"]) == (100, "bits per byte")
            assert entry[f"{key}_tasks"][task] == entry[key]
    assert report["methods"]["none"]["learned_accuracy"]["value"] == pytest.approx(0.14)
    assert report["methods"]["none"]["forgotten_accuracy"]["value"] == pytest.approx(0.09)


def test_bits_of_responses_are_reported_as_those_of_texts(study: Path) -> None:
    for path in study.glob("*/evals/*.json"):
        edit(path, lambda content: content["tasks"]["code"].update(kind="response_bits_per_byte"))
    report, page = write_report(study)
    saved, size = per_example(study / "lora", "code")
    learned = report["methods"]["lora"]["learned"]
    assert (learned["value"], learned["unit"]) == (pytest.approx(saved.sum() / size.sum()), "bits per byte")
    assert "new responses, bits per byte, lower is better" in page.read_text()
    assert "old text, bits per byte, lower is better" in page.read_text()


def test_entries_say_what_ran(study: Path) -> None:
    report = build_report(study)
    lora = report["methods"]["lora"]
    assert (lora["label"], lora["run"], lora["seconds"], lora["tokens_seen"]) == ("LoRA", "lora", 61.5, 409_600)
    assert (lora["trainable_parameters"], lora["total_parameters"]) == (130_000, 2_730_000)
    assert lora["adapter"] == {"kind": "lora", "rank": 16}
    assert lora["initial"]["code"]["score"] > lora["final"]["code"]["score"]
    assert "examples" not in lora["final"]["code"]
    assert len(lora["loss_curve"]) == 100
    assert report["base"]["label"] == "from scratch"
    assert (report["metric"], report["left_out"], report["same_questions"]) == ("bits_per_byte", {}, True)


def test_statements_follow_from_paired_differences(study: Path) -> None:
    statements = {
        (s["method"], s["reference"], s["quantity"], s["metric"]): s for s in build_report(study)["statements"]
    }
    assert len(statements) == 12
    saved, size = per_example(study / "lora", "prose")
    saved_full, _ = per_example(study / "none", "prose")
    less = statements["lora", "none", "forgotten", "bits_per_byte"]
    assert less["verdict"] == "less"
    assert less["difference"]["value"] == pytest.approx((saved_full - saved).sum() / size.sum())
    assert less["difference"]["high"] < 0
    assert less["text"].startswith("LoRA forgot less than full finetuning: difference \N{MINUS SIGN}0.2")
    assert statements["lora", "none", "learned", "bits_per_byte"]["verdict"] == "less"
    undecided = statements["monteclora", "lora", "learned", "accuracy"]
    assert undecided["verdict"] == "undecided"
    assert undecided["text"].startswith("Undecided whether MonteCLoRA learned less or more than LoRA")
    assert undecided["text"].endswith("which includes 0.")


def test_headline_says_what_the_verdicts_say(study: Path) -> None:
    headline = build_report(study)["headline"]
    assert headline == "Compared with full finetuning, LoRA and MonteCLoRA learned less and forgot less."


def test_an_adapter_that_forgets_more_is_called_so(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    full, lora = make_run(tmp_path, "full", "none"), make_run(tmp_path, "r8", "lora")
    for step in ("0", "100"):
        (full / "evals" / "x").write_bytes((full / "evals" / f"{step}.json").read_bytes())
        (full / "evals" / f"{step}.json").write_bytes((lora / "evals" / f"{step}.json").read_bytes())
        (lora / "evals" / f"{step}.json").write_bytes((full / "evals" / "x").read_bytes())
    report = build_report(tmp_path)
    assert report["headline"] == "Compared with full finetuning, LoRA learned more and forgot more."
    texts = [s["text"] for s in report["statements"] if s["quantity"] == "forgotten"]
    assert texts[0].startswith("LoRA did NOT forget less than full finetuning, it forgot more: difference +0.2")


def test_equal_runs_are_undecided(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    full, lora = make_run(tmp_path, "full", "none"), make_run(tmp_path, "r8", "lora")
    (lora / "evals" / "100.json").write_bytes((full / "evals" / "100.json").read_bytes())
    report = build_report(tmp_path)
    assert {s["verdict"] for s in report["statements"]} == {"undecided"}
    assert report["headline"] == (
        "Compared with full finetuning, LoRA learned about as much (no clear difference) "
        "and forgot about as much (no clear difference)."
    )


def test_without_full_finetuning_the_headline_gives_the_numbers(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    make_run(tmp_path, "r8", "lora")
    report = build_report(tmp_path)
    assert re.fullmatch(r"LoRA learned \+0\.5\d\d and forgot \+0\.0\d\d \(bits per byte\)\.", report["headline"])
    assert report["statements"] == []
    assert (report["same_batches"], report["same_base"], report["base"]) == (None, None, None)


def test_batches_are_compared_by_their_running_hash(study: Path) -> None:
    assert (build_report(study)["same_batches"], build_report(study)["same_batches_step"]) == (True, 100)
    metrics = study / "lora" / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text("".join(whole.splitlines(keepends=True)[:50]))
    assert build_report(study)["same_batches_step"] == 50
    metrics.write_text(whole.replace('"hash100"', '"other"'))
    assert build_report(study)["same_batches"] is False
    metrics.write_text(re.sub(r', "data_hash": "\w+"', "", whole))
    assert build_report(study)["same_batches"] is None


def test_base_weights_are_compared_by_their_hash(study: Path) -> None:
    assert build_report(study)["same_base"] is True
    edit(study / "lora" / "run.json", lambda record: record.update(base_fingerprint="sha256:other"))
    assert build_report(study)["same_base"] is False
    edit(study / "lora" / "run.json", lambda record: record.pop("base_fingerprint"))
    assert build_report(study)["same_base"] is None


def test_two_runs_of_a_kind_are_told_apart(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    for name in ("a/lora", "b/lora", "full"):
        make_run(tmp_path, name, "none" if name == "full" else "lora")
    report = build_report(tmp_path)
    assert {name: entry["label"] for name, entry in report["methods"].items()} == {
        "full": "full finetuning",
        "a/lora": "LoRA (a/lora)",
        "b/lora": "LoRA (b/lora)",
    }


def test_crashed_and_unfinished_runs_are_left_out_with_a_reason(study: Path, make_run: Callable[..., Path]) -> None:
    make_run(study, "no_start", "lora").joinpath("evals", "0.json").unlink()
    make_run(study, "no_end", "lora").joinpath("evals", "100.json").unlink()
    make_run(study, "half", "lora").joinpath("evals", "100.json").write_text('{"tas')
    make_run(study, "broken", "lora").joinpath("run.json").write_text("{")
    diverged = make_run(study, "diverged", "lora")
    tasks = json.loads((diverged / "evals" / "100.json").read_text())["tasks"]
    tasks["code"]["examples"][3]["nll"] = math.nan
    write_result(diverged, step=100, tasks=tasks, seconds=1.0)
    report, page = write_report(study)
    reasons = report["left_out"]
    assert set(reasons) == {"no_start", "no_end", "half", "broken", "diverged"}
    assert "no evals/0.json" in reasons["no_start"]
    assert "not scored after training" in reasons["no_end"]
    assert "not JSON" in reasons["half"]
    assert "run.json" in reasons["broken"]
    assert "task 'code': 1 examples have no finite score (first: d3); the model diverged" in reasons["diverged"]
    assert list(report["methods"]) == ["none", "lora", "monteclora"]
    assert "the model diverged" in page.read_text()


def test_a_bare_record_still_makes_a_page(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(tmp_path, "bare", "lora")
    (run / "run.json").write_text('{"config": {"model": {"base": "x"}}}')
    (run / "metrics.jsonl").unlink()
    report, page = write_report(tmp_path)
    assert report["methods"]["bare"]["label"] == "unknown"
    assert "Unknown is not finished (unknown)." in page.read_text()


def test_runs_evaluated_on_different_questions_are_not_compared(study: Path) -> None:
    for step in (0, 100):
        edit(study / "lora" / "evals" / f"{step}.json", lambda c: c["tasks"]["prose"].update(fingerprint="sha256:9"))
    report = build_report(study)
    assert report["same_questions"] is False
    unknown = [s for s in report["statements"] if s["verdict"] == "unknown"]
    assert {(s["method"], s["reference"], s["quantity"]) for s in unknown} == {
        ("lora", "none", "forgotten"),
        ("monteclora", "lora", "forgotten"),
    }
    assert unknown[0]["text"].startswith("LoRA and full finetuning cannot be compared: ")
    assert report["headline"].startswith("Compared with full finetuning, MonteCLoRA ")


def test_accuracy_is_the_metric_where_nothing_else_was_measured(study: Path) -> None:
    def keep_choices(content: dict[str, Any]) -> None:
        content["tasks"] = {name: task for name, task in content["tasks"].items() if name.endswith("_choice")}

    for path in study.glob("*/evals/*.json"):
        edit(path, keep_choices)
    report, page = write_report(study)
    assert report["metric"] == "accuracy"
    assert report["methods"]["none"]["learned"] == report["methods"]["none"]["learned_accuracy"]
    assert "forgotten (accuracy)" in page.read_text()


def test_relative_change_is_in_terms_of_the_start(study: Path) -> None:
    entry = build_report(study)["methods"]["none"]
    start = entry["initial"]["prose"]["score"]
    assert relative_change(entry, "forgotten") == pytest.approx(entry["forgotten"]["value"] / start)
    assert relative_change(entry | {"forgotten": None}, "forgotten") is None


def test_nothing_to_report_says_why(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    make_run(tmp_path, "base", base=None)
    make_run(tmp_path, "young", "lora").joinpath("evals", "100.json").unlink()
    with pytest.raises(EvalError, match=r"nothing to report among 2 runs; .*\n  young: not scored after training"):
        build_report(tmp_path)
    with pytest.raises(EvalError, match="no such folder"):
        build_report(tmp_path / "missing")


class Page(HTMLParser):
    """Tags that are open at the end, and everything a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        self.ids += [value or "" for key, value in attrs if key == "id"]
        for key, value in attrs:
            if key in ("src", "href", "xlink:href", "data") and not (value or "").startswith("#"):
                self.fetched.append(f"{tag} {key}={value}")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_for_nothing(study: Path) -> None:
    report, path = write_report(study)
    html = path.read_text()
    page = Page()
    page.feed(html)
    assert page.open == []
    assert page.fetched == []
    assert len(set(page.ids)) == len(page.ids)
    for forbidden in ("http:", "https:", "//", "url(h", "@import", "<script"):
        assert forbidden not in html, forbidden
    assert html.count("<svg") == 3
    assert "prefers-color-scheme: dark" in html
    assert report["headline"] in html
    for statement in report["statements"]:
        assert statement["text"] in html
    for entry in report["methods"].values():
        assert f"{entry['learned']['value']:+.3f}" in html
        assert f"{entry['final']['prose']['score']:.3f}" in html
    assert "guessing scores 25 %" in html
    assert "verified by hash up to step 100" in html


def without_calibration(path: Path) -> None:
    """Make an evaluation's file one of those written before there was calibration."""

    def strip(content: dict[str, Any]) -> None:
        for task in content["tasks"].values():
            for part in (task, *(task["examples"] if task["metric"] == "accuracy" else [])):
                for key in ("nll", "ece", "posterior"):
                    part.pop(key, None)

    edit(path, strip)


def test_calibration_is_reported_with_its_paired_change(study: Path) -> None:
    lora = build_report(study)["methods"]["lora"]
    before, after = (json.loads((study / "lora" / "evals" / f"{s}.json").read_text())["tasks"] for s in (0, 100))
    for task in ("code_choice", "prose_choice"):
        pairs = zip(before[task]["examples"], after[task]["examples"], strict=True)
        saved = np.array([b["nll"] - a["nll"] for b, a in pairs])
        assert lora["nll_tasks"][task]["value"] == pytest.approx(saved.mean())
        assert lora["nll_tasks"][task]["stderr"] == pytest.approx(saved.std(ddof=1) / 10)
    assert set(lora["nll_tasks"]) == {"code_choice", "prose_choice"}
    assert build_report(study)["methods"]["monteclora"]["final"]["code_choice"]["posterior"]["samples"] == 8


def test_the_page_shows_calibration(study: Path) -> None:
    report, path = write_report(study)
    html = path.read_text()
    section = html[html.index("confidence be trusted") : html.index("<h2>Training")]
    assert section.count("<table>") == 2
    assert section.count("average of 8 draws") == 2
    assert "guessing has NLL 1.386" in section
    for name, entry in report["methods"].items():
        for task in ("code_choice", "prose_choice"):
            final, change = entry["final"][task], entry["nll_tasks"][task]
            text = f"{final['nll']:.3f}"
            if change["low"] > 0:
                text = f'<span class="good">{text}</span>'
            elif change["high"] < 0:
                text = f'<span class="bad">{text}</span>'
            assert f'<td data-label="NLL">{text}</td><td data-label="ECE">7.0 %</td>' in section, (name, task)
    assert '<span class="good">' in section
    assert '<span class="bad">' in section
    posterior = report["methods"]["monteclora"]["final"]["code_choice"]["posterior"]
    assert f'<td data-label="NLL">{posterior["nll"]:.3f}</td><td data-label="ECE">5.5 %</td>' in section
    assert '<td data-label="Disagreement">0.012</td>' in section


def test_without_draws_there_is_no_disagreement(study: Path) -> None:
    edit(
        study / "monteclora" / "evals" / "100.json",
        lambda content: [task.pop("posterior") for task in content["tasks"].values()] and None,
    )
    html = write_report(study)[1].read_text()
    assert "confidence be trusted" in html
    assert "Disagreement" not in html
    assert "draws" not in html


def test_results_without_calibration_make_the_page_without_it(study: Path) -> None:
    for path in study.glob("*/evals/*.json"):
        without_calibration(path)
    report, page = write_report(study)
    assert "confidence be trusted" not in page.read_text()
    assert report["methods"]["lora"]["nll_tasks"] == {}
    assert list(report["methods"]) == ["none", "lora", "monteclora"]


def test_a_run_without_calibration_beside_others(study: Path) -> None:
    without_calibration(study / "lora" / "evals" / "100.json")
    report, page = write_report(study)
    row = '<td data-label="NLL">–</td><td data-label="ECE">–</td>'
    assert page.read_text().count(row) == 2
    assert report["left_out"] == {}


def test_the_page_warns_of_unfair_comparisons(study: Path) -> None:
    edit(
        study / "lora" / "run.json",
        lambda r: r.update(base_fingerprint="other", tokens_seen=5, status="running"),
    )
    metrics = study / "lora" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"hash', '"other'))
    html = write_report(study)[1].read_text()
    assert "LoRA is not finished (running)." in html
    assert "did not start from the same base weights" in html
    assert "did not train on the same batches" in html
    assert "have read different amounts of text" in html


def test_names_are_escaped(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    make_run(tmp_path, "a<b>&", "lora")
    make_run(tmp_path, "other", "lora")
    html = write_report(tmp_path)[1].read_text()
    assert "a<b>" not in html
    assert "a&lt;b&gt;&amp;" in html
    Page().feed(html)


def test_files_beside_the_page(study: Path, tmp_path: Path) -> None:
    report, page = write_report(study, tmp_path / "out" / "here")
    out = tmp_path / "out" / "here"
    assert {file.name for file in out.iterdir()} == {
        "index.html",
        "report.json",
        "learning_forgetting.svg",
        "learning_forgetting.png",
    }
    assert page == out / "index.html"
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
    assert (out / "learning_forgetting.png").read_bytes().startswith(b"\x89PNG")
    text = "".join(ET.fromstring((out / "learning_forgetting.svg").read_text()).itertext())
    assert all(label in text for label in ("full finetuning", "LoRA", "MonteCLoRA", "forgotten (bits per byte)"))


def test_the_same_runs_give_the_same_bytes(study: Path, tmp_path: Path) -> None:
    pages = [write_report(study, tmp_path / name)[1].read_bytes() for name in ("one", "two")]
    assert pages[0] == pages[1]


def test_the_terminal_table_has_every_method(study: Path) -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(summary_table(build_report(study)))
    text = capture.get()
    assert all(label in text for label in ("full finetuning", "LoRA", "MonteCLoRA", "130 k (4.76 %)", "62 s"))


def test_a_run_that_has_not_started_is_left_out_and_is_no_base(study: Path) -> None:
    before = build_report(study)["base"]
    for name, job in (("a", {"job": "12", "event": "ended", "message": "preflight failed on n2"}), ("b", {})):
        (study / name).mkdir()
        (study / name / "run.json").write_text(json.dumps({"schema": 1, "status": "not started", "job": job}))
    report = build_report(study)
    assert report["left_out"] == {"a": "not started: preflight failed on n2", "b": "not started"}
    assert report["base"] == before
