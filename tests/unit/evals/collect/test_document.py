"""The document: synthetic studies with everything that goes wrong, and real folders as the tests of evals write them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.synthetic_runs import KINDS, make_runs
from evals.collect.document import collect
from evals.collect.table import rows
from evals.errors import EvalError
from evals.report.summary import build_report


@pytest.fixture(scope="module")
def study40(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], dict[str, Any]]:
    """40 runs, and their document."""
    root = tmp_path_factory.mktemp("study")
    return make_runs(root, 40, examples=40, points=4), collect([root], processes=1)


def by_id(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {run["id"]: run for run in document["runs"]}


def of_kind(study40: tuple[list[Path], dict[str, Any]], kind: str) -> dict[str, Any]:
    made, document = study40
    number = next(number for number, its in KINDS.items() if its == kind)
    return by_id(document)["/".join(made[number].parts[-2:])]


def test_the_document_is_json_without_examples(study40: tuple[list[Path], dict[str, Any]]) -> None:
    _, document = study40
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text) == document
    assert "examples" not in text
    assert len(document["runs"]) == 39
    assert document["schema"] == 1


@pytest.mark.parametrize(
    ("kind", "status", "note"),
    [
        ("running", "running", None),
        ("dead", "stale", "says it is running, but wrote nothing for 48.0 h: dead?"),
        ("preempted", "preempted", None),
        ("diverged", "failed", "diverged: the last loss is not a number"),
        ("corrupt record", "unreadable", "run.json cannot be used"),
        ("no record", "unreadable", "no run.json: what the run is, is not known"),
        ("newer schema", "done", "run.json has schema 2, newer than 1: shown as far as it is understood"),
        ("half-written", "done", None),
    ],
)
def test_states(study40: tuple[list[Path], dict[str, Any]], kind: str, status: str, note: str | None) -> None:
    run = of_kind(study40, kind)
    assert run["status"] == status
    assert run["notes"] == ([] if note is None else [note])
    assert run["points"][-1]["learned"] is not None


def test_skipped_files_are_listed_once_with_their_reason(study40: tuple[list[Path], dict[str, Any]]) -> None:
    made, document = study40
    reasons = {each["path"]: each["reason"] for each in document["skipped"]}
    kinds = {kind: made[number] for number, kind in KINDS.items()}
    assert set(reasons) == {
        str(kinds["half-written"] / "evals" / "400.json"),
        str(kinds["corrupt record"] / "run.json"),
        str(kinds["unknown schema"] / "run.json"),
    }
    assert reasons[str(kinds["unknown schema"] / "run.json")] == "schema 'draft-7' is not known here"
    assert len(of_kind(study40, "half-written")["points"]) == 3


def test_branches_stages_and_ranks(study40: tuple[list[Path], dict[str, Any]]) -> None:
    made, document = study40
    branch, second = of_kind(study40, "branch"), of_kind(study40, "second stage")
    names = ["/".join(path.parts[-2:]) for path in made]
    assert (branch["parent"], branch["link"]) == (names[29], "branch")
    assert (second["parent"], second["link"]) == (names[31], "stage")
    assert document["stages"][0]["runs"] == [names[31], names[32]]
    with_rank = [run["id"] for run in document["runs"] if run["rank_change"]]
    assert with_rank == sorted(names[i] for i in range(0, 40, 8))
    front = {run for run, _ in document["pareto"]}
    assert front
    assert front <= set(names)
    assert {entry["method"] for entry in document["spreads"]} == {
        "LoRA",
        "MonteCLoRA",
        "LoRA + HiddenKey",
        "full finetuning",
    }


def test_fields_of_a_point(study40: tuple[list[Path], dict[str, Any]]) -> None:
    run = by_id(study40[1])["seed1/full-lr1e-05-b192"]
    assert (run["method"], run["adapter"], run["rank"], run["lr"], run["seed"]) == (
        "full finetuning",
        "none",
        None,
        1e-5,
        1,
    )
    assert run["tokens_per_epoch"] == 200 * 192 * 4096
    first, last = run["points"][0], run["points"][-1]
    assert (first["step"], first["learned"], first["forgotten"], first["tokens"]) == (0, None, None, 0)
    assert (last["step"], last["tokens"], last["epochs"]) == (400, 400 * 192 * 4096, 2.0)
    assert set(last["learned"]) == {"value", "stderr", "low", "high", "n", "unit"}
    assert last["learned"]["low"] < last["learned"]["value"] < last["learned"]["high"]
    assert last["learning_score"] == last["tasks"]["humaneval"]["score"]
    old = [task["score"] for name, task in last["tasks"].items() if name != "humaneval"]
    assert last["forgetting_average"] == pytest.approx(sum(old) / 3, rel=1e-5)


def test_numbers_are_those_of_the_report(study: Path) -> None:
    runs, report = by_id(collect([study])), build_report(study)
    assert set(runs) == {"base", "lora", "monteclora", "none"}
    for name, entry in report["methods"].items():
        last = runs[name]["points"][-1]
        for key in ("learned", "forgotten", "learned_accuracy", "forgotten_accuracy"):
            assert {k: last[key][k] for k in ("value", "stderr")} == pytest.approx(
                {k: entry[key][k] for k in ("value", "stderr")}, rel=1e-5
            )
            assert last[key]["unit"] == entry[key]["unit"]
        for domain, task in (("new", "code_choice"), ("old", "prose_choice")):
            assert last["calibration"][f"{domain}_nll"] == pytest.approx(entry["final"][task]["nll"], rel=1e-5)
    base = runs["base"]
    assert base["notes"] == ["from scratch: nothing to forget"]
    assert all(point["learned"] is None for point in base["points"])


def test_running_and_crashed_runs(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    running = make_run(tmp_path, "running", "lora", status="running", step=40, tokens_seen=163_840)
    (running / "evals" / "100.json").unlink()
    (make_run(tmp_path, "late", "lora") / "evals" / "0.json").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "run.json").write_text("{}")
    runs = by_id(collect([tmp_path]))
    assert (runs["running"]["step"], runs["running"]["tokens_seen"]) == (
        100,
        409_600,
    )  # metrics are ahead of the record
    assert runs["running"]["notes"] == ["not scored after training yet: evals/0.json is the only evaluation"]
    assert runs["late"]["notes"] == ["not scored before training: no evals/0.json; keep at_start on"]
    assert runs["late"]["points"][0]["learned"] is None
    assert (runs["empty"]["status"], runs["empty"]["points"]) == ("unreadable", [])
    assert runs["empty"]["notes"] == ["run.json cannot be used", "not evaluated yet"]


def test_a_run_is_stale_after_the_time_given(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    path = make_run(tmp_path, "a", "lora", status="running")
    now = time.time()
    for file in path.rglob("*"):
        os.utime(file, (now - 100, now - 100))
    assert by_id(collect([tmp_path], stale=101, now=now))["a"]["status"] == "running"
    assert by_id(collect([tmp_path], stale=99, now=now))["a"]["status"] == "stale"
    os.utime(path / "metrics.jsonl", (now - 5, now - 5))
    assert by_id(collect([tmp_path], stale=99, now=now))["a"]["status"] == "running"


def test_the_cache_changes_nothing_but_the_time(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs", 26, examples=8, points=3)
    cache = tmp_path / "out" / "cache.jsonl"

    def lasting(document: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in document.items() if key not in ("seconds", "collected_at")}

    now = time.time()
    first = lasting(collect([tmp_path / "runs"], cache, now=now))
    written = cache.stat().st_mtime_ns
    assert lasting(collect([tmp_path / "runs"], cache, now=now)) == first
    assert cache.stat().st_mtime_ns == written
    cache.write_text(cache.read_text()[:-500])
    assert lasting(collect([tmp_path / "runs"], cache, now=now)) == first
    cache.write_text("nonsense")
    assert lasting(collect([tmp_path / "runs"], cache, now=now)) == first
    assert lasting(collect([tmp_path / "runs"], now=now)) == first


def test_a_study_without_runs(tmp_path: Path) -> None:
    document = collect([tmp_path])
    assert [document[key] for key in ("runs", "skipped", "spreads", "pareto", "stages")] == [[]] * 5
    with pytest.raises(EvalError, match="no such folder"):
        collect([tmp_path / "none"])


def change_tasks(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a file of results."""
    content = json.loads(path.read_text())
    change(content["tasks"])
    path.write_text(json.dumps(content))


def test_parts_on_the_way_and_the_whole_at_both_ends(tmp_path: Path) -> None:
    (path,) = make_runs(tmp_path, 1, examples=20, points=3)
    for step, share in ((0, 1.0), (400, 0.5)):

        def add_whole(tasks: dict[str, Any], share: float = share) -> None:
            for name in [name for name in tasks if name.endswith("@20")]:
                examples = [{"id": str(i), "correct": float(i < 40 * share), "nll": 1.0} for i in range(40)]
                tasks[name.removesuffix("@20")] = tasks[name] | {"score": share, "n": 40, "examples": examples}

        change_tasks(path / "evals" / f"{step}.json", add_whole)
    document = collect([tmp_path])
    (run,) = document["runs"]
    names = [f"{name}@20" for name in ("hellaswag", "arc_challenge", "winogrande")]
    assert [point["over"].get("forgotten") for point in run["points"]] == [None, names, names]
    assert [point["over"]["forgetting_average"] for point in run["points"]] == [names] * 3
    last = run["points"][-1]
    assert last["forgetting_average"] == pytest.approx(
        sum(last["tasks"][name]["score"] for name in names) / 3, rel=1e-5
    )
    assert last["forgotten"]["n"] == 60
    final = run["final"]
    assert (final["step"], final["forgetting_average"], final["forgotten"]["value"]) == (400, 0.5, 0.5)
    assert (final["forgotten"]["n"], final["over"]["forgotten"]) == (120, [name.removesuffix("@20") for name in names])
    (spread,) = (each for each in document["spreads"] if each["metric"] == "forgotten")
    assert spread["values"] == [0.5]
    assert {row["forgotten_over"] for row in rows(document)} == {None, " ".join(names)}
    assert {row["final_forgotten"] for row in rows(document)} == {0.5}


def test_a_model_of_nans_has_diverged_though_its_loss_was_a_number(tmp_path: Path) -> None:
    path, _ = make_runs(tmp_path, 2, examples=20, points=3)

    def break_arc(tasks: dict[str, Any]) -> None:
        tasks["arc_challenge@20"] |= {"not_finite": 80, "truncated": 2, "score": 0.0, "stderr": 0.0}

    change_tasks(path / "evals" / "400.json", break_arc)
    document = collect([tmp_path])
    run = by_id(document)["/".join(path.parts[-2:])]
    assert run["notes"] == [
        "step 400: 80 answers of arc_challenge@20 are not numbers: the model diverged",
        "2 prompts of arc_challenge@20 were cut to the model's length",
    ]
    assert (run["status"], run["is_diverged"]) == ("done", True)
    assert all(run["id"] not in entry["runs"] for entry in document["spreads"])


@pytest.mark.parametrize("error", ["NonFiniteGradients", "LossSpikes"])
def test_a_run_that_gave_up_over_its_numbers_has_diverged_though_its_last_loss_is_one(
    tmp_path: Path, error: str
) -> None:
    path, other = make_runs(tmp_path, 2, examples=20, points=3)
    for folder, why in ((path, f"{error}: 3 steps in a row"), (other, "OSError: no space left")):
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(record | {"status": "failed", "error": why}))
    runs = by_id(collect([tmp_path]))
    assert [runs["/".join(folder.parts[-2:])]["is_diverged"] for folder in (path, other)] == [True, False]


def test_a_run_without_any_effect_is_listed_and_noted(tmp_path: Path) -> None:
    path, *_ = make_runs(tmp_path, 11, examples=20, points=3)

    def rename(tasks: dict[str, Any]) -> None:
        for task in tasks.values():
            task["fingerprint"] = "another"

    change_tasks(path / "evals" / "0.json", rename)
    document = collect([tmp_path])
    run = by_id(document)["/".join(path.parts[-2:])]
    assert (
        "nothing learned or forgotten: no task was scored in the same way before training and after it" in run["notes"]
    )
    listed = [
        e["unscored_runs"] for e in document["spreads"] if (e["method"], e["metric"]) == (run["method"], "learned")
    ]
    assert listed == [[run["id"]]]


def test_runs_from_another_runs_export_have_a_spread(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    base = make_run(tmp_path, "base", base=None)
    config = json.loads((make_run(tmp_path, "a", "lora", base=str(base / "export")) / "run.json").read_text())["config"]
    branch = config | {"run": config.get("run", {}) | {"branch_from": str(tmp_path / "a" / "checkpoints" / "50")}}
    make_run(tmp_path, "branch", "lora", base=str(base / "export"), config=branch)
    document = collect([tmp_path])
    runs = by_id(document)
    assert (runs["a"]["parent"], runs["a"]["link"]) == ("base", "stage")
    assert [each["runs"] for each in document["spreads"] if each["metric"] == "learned"] == [["a"]]
    assert document["reductions"] == []


def test_the_study_says_how_much_less_settings_matter(study40: tuple[list[Path], dict[str, Any]]) -> None:
    found = study40[1]["reductions"]
    names = {(e["reference"]["name"], e["method"]["name"], e["rank"], e["metric"]) for e in found}
    assert ("LoRA", "MonteCLoRA", 64, "learned") in names
    assert ("full finetuning", "LoRA", 16, "forgotten") in names
    assert all(entry["range"]["relative_low"] <= entry["range"]["relative_high"] for entry in found)


def test_names_and_texts_that_are_no_unicode(tmp_path: Path) -> None:
    run = tmp_path / os.fsdecode(b"run\xff")
    (run / "evals").mkdir(parents=True)
    (run / "run.json").write_text(
        json.dumps({"schema": 1, "status": "failed", "config": {}, "error": os.fsdecode(b"no \xff")})
    )
    (run / "evals" / "0.json").write_text("{")
    document = collect([tmp_path], processes=1)
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    assert text.encode().decode() == text
    assert [entry["id"] for entry in document["runs"]] == ["run\ufffd"]
    assert "failed: no \ufffd" in document["runs"][0]["notes"]
    assert document["skipped"][0]["path"].endswith("run\ufffd/evals/0.json")
