"""Every script has its place, every promise a script whose claims have that name, and the hour its worst known cases."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import adapter_step, checkpoint, peers, train_step
from benchmarks.claims import is_met
from benchmarks.scaling import PAGE
from benchmarks.scaling_predictions import plan_json
from benchmarks.suite import LEFT_OUT, NOT_RUN, PROMISES, SCRIPTS, Promise

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_every_script_is_run_or_named_with_the_reason() -> None:
    scripts = {path.stem for path in FOLDER.glob("*.py") if '\nif __name__ == "__main__":\n' in path.read_text()}
    scripts.remove("__main__")
    assert sorted([*(script.name for script in SCRIPTS), *NOT_RUN]) == sorted(scripts)


def test_the_set_fits_an_hour() -> None:
    assert sum(script.minutes for script in SCRIPTS) < 60


def test_peers_of_scripts_are_known() -> None:
    assert {name for script in SCRIPTS for name in script.peers} == set(peers.PEERS)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: f"{promise.script}-{promise.claims[0]}")
def test_a_promise_has_a_script_that_makes_such_claims(promise: Promise) -> None:
    assert is_met(0.0, promise.goal) is not None
    source = (FOLDER / f"{promise.script}.py").read_text()
    # The strings of the source, with anything where something is filled in.
    templates = [re.sub(r"\{[^{}]*\}", "*", text) for text in re.findall(r'"([^"\n ]+)"', source)]
    names = [template for template in templates if len(template.replace("*", "")) >= 8]
    for pattern in promise.claims:
        example = pattern.replace("*", "x").replace("?", "4")
        is_made = any(fnmatchcase(example, name) or fnmatchcase(name.replace("*", "x"), pattern) for name in names)
        assert is_made, f"{promise.script} makes no claim {pattern}"


def test_what_is_left_out_can_be_measured() -> None:
    assert {each.script for each in LEFT_OUT} <= {script.name for script in SCRIPTS}
    for each in LEFT_OUT:
        assert each.command.startswith(f"python benchmarks/{each.script}.py")
        assert "--bench" not in each.command
        for file in re.findall(r"`(results/\S+\.txt)`", each.measured):
            assert (FOLDER / file).exists()


def test_a_peer_that_fails_ends_its_script_with_a_message() -> None:
    for script in SCRIPTS:
        source = (FOLDER / f"{script.name}.py").read_text()
        if "from benchmarks import peers" in source:
            assert source.endswith("\n    peers.reported(main)\n"), script.name


def test_no_script_makes_turns_of_its_own() -> None:
    for path in FOLDER.glob("*.py"):
        if path.name != "claims.py":
            assert not re.search(r"(turn|repetition|round)\w* % ", path.read_text()), path.name


def test_the_hour_has_the_rank_at_which_monteclora_costs_most() -> None:
    place = adapter_step.Place(torch.device("cpu"), torch.float32)
    (ranks,) = (ranks for workload, ranks, _ in adapter_step.workloads(place, "bench") if workload.num_blocks)
    assert ranks == (16, 256)


def test_the_hour_has_full_finetuning_without_a_mask() -> None:
    found = {(case.method, case.masked) for case in train_step.cases("bench") if "ours_zero3" in case.contenders}
    assert ("full", 0.0) in found


def test_the_hour_has_checkpoints_of_one_rank_and_of_two(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[int, Sequence[str]]] = []

    def timings(bench: Any, case: Any, ranks: int, rounds: int, saves: int, ways: Sequence[str]) -> dict[str, Any]:
        asked.append((ranks, ways))
        return {}

    for name in ("memory", "weigh"):
        monkeypatch.setattr(checkpoint, name, lambda *_: ([], {}))
    monkeypatch.setattr(
        checkpoint,
        "export",
        lambda *_: ({"claim": "x", "ratio": 1, "goal": "none", "min": 1, "max": 1, "peer": ""}, {}),
    )
    monkeypatch.setattr(checkpoint, "timings", timings)
    monkeypatch.setattr(checkpoint, "timing_claims", lambda *_: [])
    monkeypatch.setattr(checkpoint, "file_system", lambda *_: "ext4")
    monkeypatch.setattr(sys, "argv", ["checkpoint.py", "--bench", "--dir", str(tmp_path)])
    checkpoint.main()
    assert asked == [(1, ("ours", "torch")), (2, ("ours", "torch", "deepspeed", "async"))]


@pytest.mark.parametrize(("kind", "method", "claim"), [
    ("lora", "LoRA", "lora_tokens_per_second"), ("none", "full", "full_tokens_per_second"),
])  # fmt: skip
def test_what_the_plan_says_of_one_h200(kind: str, method: str, claim: str) -> None:
    speed = _h200(kind)
    (promise,) = (each for each in PROMISES if each.claims == (claim,))
    assert promise.predicted == f"{speed:,.0f}"
    assert f"| {method} | ≥ {float(promise.goal[2:]):,.0f} | {promise.predicted} |\n" in PAGE.read_text()
    if kind == "lora":
        share = float(promise.goal[2:]) / speed * 0.45
        assert f"takes {share:.0%} of".replace("%", " %") in PAGE.read_text()


def test_what_the_plan_says_of_monteclora_on_one_h200() -> None:
    ratio = f"{_h200('monteclora') / _h200('lora'):.4f}"
    (promise,) = (each for each in PROMISES if each.claims == ("monteclora_over_lora_tokens_per_second",))
    assert promise.predicted.startswith(f"{ratio}, ")
    assert f"| MonteCLoRA | ≥ {promise.goal[2:]} of LoRA | {ratio} of LoRA |\n" in PAGE.read_text()


def _h200(kind: str) -> float:
    plan = plan_json("--shape", "llama-2-7b", "--gpus", "1", "--gpu", "H200", "--adapter.kind", kind)
    return float(plan["recommended"]["tokens_per_second"])


@pytest.mark.parametrize("name", [*(script.name for script in SCRIPTS), "gpu_step"])
def test_the_readme_says_what_each_measures(name: str) -> None:
    assert f"`{name}.py`" in README
